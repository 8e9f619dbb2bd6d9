"""The one place where kernels and rearranged forms replace the modules of a layer.

A module is replaced only if nobody can notice (:func:`mmscconv.layers.intact.intact`) and a kernel is built
for its input (:func:`mmscconv.ops.choose_backend`, :func:`mmscconv.ops.fits`).

=================  =============================================================
``replacing``      the decorator of a layer's ``forward``, which tries the functions of the other files
``for_sru``        SRU
``for_cru``        CRU, and SRU with the CRU behind it
``for_deployed``   the CRU's deploy form, and SRU with it
``for_exports``    the CRU in few operators, for exported graphs
``squeezes``       the squeezes of a CRU, with the SRU in front of them or alone
``transform``      a CRU from the squeezed branches to its output
``precision``      the dtypes that the joined kernels take
=================  =============================================================
"""

from mmscconv.layers.fused.for_cru import cru, sru_then_cru
from mmscconv.layers.fused.for_deployed import OpArguments, deployed, op_arguments, sru_then_deployed
from mmscconv.layers.fused.for_exports import cru_of_halves
from mmscconv.layers.fused.for_sru import group_norm_kept, sru, sru_arguments, sru_halves
from mmscconv.layers.fused.replacing import replaced_by

__all__ = [
    'OpArguments',
    'cru',
    'cru_of_halves',
    'deployed',
    'group_norm_kept',
    'op_arguments',
    'replaced_by',
    'sru',
    'sru_arguments',
    'sru_halves',
    'sru_then_cru',
    'sru_then_deployed',
]
