"""SCConv: SRU and CRU as a replacement for a convolution (CVPR 2023, sections 2 and 3.2).

Not to be confused with the self-calibrated convolution of SCNet (CVPR 2020),
which goes by the same short name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Device, Size2d, check_window, padding_amounts
from mmscconv.layers.conv_like import Conv2dLike
from mmscconv.layers.cru import CRU
from mmscconv.layers.deploy import DeployedCRU
from mmscconv.layers.intact import change_of, undisturbed
from mmscconv.layers.recompute import recomputed
from mmscconv.layers.sru import SRU

ARRANGEMENTS = ('S+C', 'C+S', 'C&S', 'S', 'C')


class SCConv(Conv2dLike):
    """A replacement for a dense ``nn.Conv2d``, with its argument order and attributes.

    ===========  =======================================================
    arrangement  output (Table 1)
    ===========  =======================================================
    ``'S+C'``    CRU(SRU(X)), the paper's SCConv
    ``'C+S'``    SRU(CRU(X))
    ``'C&S'``    CRU(X) + pool(SRU(X)); needs in_channels = out_channels
    ``'S'``      conv(SRU(X)), with a plain k x k convolution
    ``'C'``      CRU(X)
    ===========  =======================================================

    ``pool`` brings SRU's output to the convolution's size (the identity at
    stride 1): the paper does not say how the parallel form is strided.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As
            ``nn.Conv2d``'s.
        groups: Must be 1, SCConv is dense; the paper's g is ``gwc_groups``.
        bias: Add one bias per output channel at the end.
        padding_mode: Must be ``'zeros'``.
        device, dtype: Device and dtype of all parameters and buffers.
        alpha, squeeze_ratio, gwc_groups, low_squeeze, inner_norm: Of
            :class:`CRU`, where ``gwc_groups`` is called ``groups``.
        num_groups, threshold, gate: Arguments of :class:`SRU`.
        arrangement: One of the table's first column.
        backend: ``'plain'``, ``'native'`` or ``'triton'``
            (:mod:`mmscconv.ops.backend`); None for the fastest that runs.
        recompute: Recompute the layer's intermediate results in backward: the memory
            of a convolution for the time of another forward.

    Shape:
        Input (N, in_channels, H, W) or (in_channels, H, W); output as
        ``nn.Conv2d``'s, in the output dtype of the convolutions.

    Raises:
        ValueError: ``groups`` other than 1, an unknown ``arrangement``, ``'C&S'``
            between different channel counts, and whatever SRU and CRU refuse.
    """

    sru: SRU | None
    cru: CRU | DeployedCRU | None
    conv: nn.Conv2d | None
    pool: AlignedAvgPool2d | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Size2d | str = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = 'zeros',
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 0.5,
        squeeze_ratio: int = 2,
        gwc_groups: int = 2,
        low_squeeze: str = 'input',
        inner_norm: bool = False,
        num_groups: int = 16,
        threshold: float = 0.5,
        gate: str = 'soft',
        arrangement: str = 'S+C',
        backend: str | None = None,
        recompute: bool = False,
    ) -> None:
        if groups != 1:
            raise ValueError(f"SCConv is dense: groups must be 1, got {groups}; the paper's g is gwc_groups")
        if arrangement not in ARRANGEMENTS:
            raise ValueError(f'arrangement must be one of {ARRANGEMENTS}, got arrangement={arrangement!r}')
        if arrangement == 'C&S' and in_channels != out_channels:
            raise ValueError(
                "arrangement='C&S' adds SRU's output to CRU's and needs in_channels = out_channels, "
                f"got {in_channels} and {out_channels}; 'S+C' and 'C+S' do not"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.arrangement = arrangement
        self.recompute = recompute
        window = self.inner_window

        self.sru = self.cru = self.conv = self.pool = None
        if arrangement != 'C':
            channels = out_channels if arrangement == 'C+S' else in_channels
            self.sru = SRU(channels, num_groups, threshold, gate, backend=backend, device=device, dtype=dtype)
        if arrangement == 'S':
            self.conv = nn.Conv2d(in_channels, out_channels, *window, bias=False, device=device, dtype=dtype)
        else:
            self.cru = CRU(
                in_channels,
                out_channels,
                *window,
                alpha,
                squeeze_ratio,
                gwc_groups,
                low_squeeze,
                inner_norm,
                backend,
                device=device,
                dtype=dtype,
            )
        if arrangement == 'C&S':
            self.pool = AlignedAvgPool2d(*window)

    def transform(self, x: Tensor) -> Tensor:
        if not self.recompute:
            return self._arranged(x)
        units = [unit for unit in (self.sru, self.cru) if unit is not None]
        known = type(self) is SCConv and all(type(unit) in (SRU, CRU) and change_of(unit) is None for unit in units)
        known = known and undisturbed(self.conv, self.pool)  # these have nothing random
        # A subclass may compute with tensors of its own. The bias of this class is added outside.
        modules = list(self.children()) if known else [self]
        return recomputed(self._arranged, x, *modules, random=not known)

    def _arranged(self, x: Tensor) -> Tensor:
        sru, cru = self.sru, self.cru
        if cru is None:  # 'S'
            assert sru is not None and self.conv is not None
            amounts = padding_amounts(self.padding, self.kernel_size, self.stride, self.dilation)
            check_window(x.shape[2:], self.kernel_size, amounts, self.dilation)
            return self.conv(sru(x))
        if sru is None or self.arrangement == 'S+C':  # 'C' has no SRU
            if sru is None:
                return cru(x)
            # Asks the class: a wrapper that forwards attributes has to be called itself.
            return cru.after(sru, x) if hasattr(type(cru), 'after') else cru(sru(x))
        if self.pool is None:  # 'C+S'
            return sru(cru(x))
        return cru(x) + self.pool(sru(x))  # 'C&S'

    @property
    def multiplies(self) -> bool:
        """True if the output is a product of several convolutions' weights."""
        return self.arrangement != 'S'

    def mark_output_kept(self) -> None:
        """Declare that the next layer keeps its input for backward and does not change it, as a norm does."""
        if isinstance(self.cru, CRU):
            self.cru.mark_output_kept()

    @property
    def ends_in_cru(self) -> bool:
        """True if the output is the CRU's."""
        return self.arrangement in ('S+C', 'C') and self.bias is None

    def switch_to_deploy(self, norm: nn.Module | None = None, relu: bool = False) -> None:
        """Fold the inner norms, and ``norm`` if given, into the layer: irreversible, for inference only.

        Args:
            norm: The BN behind the layer, which the caller then removes.
            relu: Whether to append the ReLU behind both, which the caller then removes.

        Raises:
            ValueError: A norm other than a BN with running statistics; a ``norm`` or ``relu`` where the output is not
                the CRU's, where something else stands in the CRU's place, or behind a ReLU that the deploy form
                already ends in; a CRU that was changed, such as by hooks.
        """
        if (norm is not None or relu) and not self.ends_in_cru:
            behind = 'ReLU' if norm is None else 'norm'
            raise ValueError(f'SCConv({self.extra_repr()}) does not end in its CRU: no {behind} can be folded into it')
        if isinstance(self.cru, CRU):
            self.cru = DeployedCRU(self.cru, norm, relu)
        elif isinstance(self.cru, DeployedCRU):
            self.cru.append(norm, relu)
        elif norm is not None or relu:
            raise ValueError(
                f'a {type(self.cru).__name__} stands in the place of the CRU: no norm or ReLU can be folded into it'
            )
        self.recompute = False
        self.requires_grad_(False)

    def append_relu(self) -> None:
        """Append the ReLU behind the layer to its deploy form; the caller then removes the ReLU.

        Raises:
            ValueError: The layer is not in its deploy form, or its output is not the CRU's.
        """
        if not isinstance(self.cru, DeployedCRU) or not self.ends_in_cru:
            raise ValueError(f'SCConv({self.extra_repr()}) does not end in a deployed CRU: no ReLU can be appended')
        self.cru.relu = True

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, arrangement={self.arrangement!r}'
