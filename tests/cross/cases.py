"""The cases whose calls are recorded: all entry points of ``kernels.h``, small maps of odd sizes.

Whether the results are right is not asked here: ``tests/ops`` compares the same calls with float64.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscconv import SCConv, ops
from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.fused import op_arguments
from mmscconv.ops import native

if TYPE_CHECKING:
    from mmscconv.layers.deploy import DeployedCRU
    from mmscconv.layers.sru import SRU

CL = torch.channels_last
SRUArguments = tuple[Tensor, Tensor, int, float, float, bool]
# N, C, groups, height and width: less than a vector, some vectors and a rest, more than a chunk of positions.
SIZES = ((2, 6, 3, 1, 3), (3, 36, 6, 9, 11), (1, 70, 7, 23, 24))
# Groups, kernel size, stride, padding, dilation.
WINDOWS = (
    (2, (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, (3, 3), (2, 2), (1, 1), (1, 1)),
    (4, (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, (1, 5), (3, 1), (0, 2), (1, 1)),
    (2, (1, 1), (1, 1), (0, 0), (1, 1)),
)


def run_all() -> None:
    """Run every case, forward and backward."""
    torch.manual_seed(0)
    for case in (sru, fuse, batch_norm, norm_fuse, sru_squeeze, transform_fuse, scconv, fingerprint, not_finite):
        case()


def random(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return a leaf that requires a gradient."""
    return torch.randn(shape).contiguous(memory_format=layout).requires_grad_()


def backward(out: Tensor) -> None:
    out.backward(torch.randn_like(out))


def arguments_of_sru(x: Tensor, num_groups: int, hard: bool) -> SRUArguments:
    """Return ``scale, shift, num_groups, eps, threshold, hard``."""
    scale, shift = random(x.shape[1]), random(x.shape[1])
    return scale, shift, num_groups, 1e-5, threshold_in_a_gap(x, scale, shift, num_groups, 1e-5), hard


def threshold_in_a_gap(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float) -> float:
    """Return a threshold that no logit is near: the gate jumps there, and compilers round differently."""
    logits = F.group_norm(x.detach().double(), num_groups, scale.double(), shift.double(), eps)
    ends = logits.new_tensor((-0.5, 0.5))
    near = torch.cat((logits[logits.abs() < 0.5], ends)).sort().values
    widest = int(near.diff().argmax())
    return near[widest : widest + 2].mean().item()


def sru() -> None:
    for (n, c, groups, *size), layout, hard in product(SIZES, (torch.contiguous_format, CL), (False, True)):
        x = random(n, c, *size, layout=layout)
        backward(ops.sru(x, *arguments_of_sru(x, groups, hard), backend='native'))


def fuse() -> None:
    for (n, c, _, *size), layout, kept in product(SIZES, (torch.contiguous_format, CL), (False, True)):
        first, second, wide = (random(n, channels, *size, layout=layout) for channels in (c, c, c))
        made, low = random(n, c - 2, *size, layout=layout), wide[:, 1:3]  # a slice
        backward(ops.fuse(first, low, None, made, output_is_kept=kept, backend='native'))
        backward(ops.fuse(first, wide, second, output_is_kept=kept, backend='native'))
        with torch.no_grad():
            ops.fuse(first, low, second, made, torch.rand(c), torch.rand(c), overwrite=kept, backend='native')


def batch_norm() -> None:
    for n, channels, *size in ((2, 4, 5, 7), (3, 12, 83, 61), (1, 3, 9, 9), (2, 24, 6, 5)):
        x = random(n, channels, *size, layout=CL)
        backward(ops.batch_norm(x, random(channels), random(channels), 1e-5)[0])


def norm_fuse() -> None:
    for n, c, _, *size in SIZES:
        low = 2 if c == 6 else c // 4
        y1, made, x_low = (random(n, channels, *size, layout=CL) for channels in (c, c - low, low))
        norms = [(random(c), random(c), 1e-5) for _ in range(2)]
        backward(ops.norm_fuse(y1, made, x_low, *norms)[0])


def sru_squeeze() -> None:
    for (n, c, groups, *size), hard in product(SIZES, (False, True)):
        cut = c // 3
        x = random(n, c, *size, layout=CL)
        arguments = arguments_of_sru(x, groups, hard)
        up, low = random(c // 2 + 1, cut, 1, 1), random(5, c - cut, 1, 1)
        biases = (random(len(up)), random(len(low))) if hard else (None, None)
        out_up, out_low = ops.sru_squeeze(x, arguments, up, low, biases)
        torch.autograd.backward((out_up, out_low), (torch.randn_like(out_up), torch.randn_like(out_low)))
        with torch.no_grad():
            ops.sru_squeeze(x, arguments, up, low, biases, (2, 3))


def transform_fuse() -> None:
    for window, (n, channels, *size) in product(WINDOWS, ((3, 8, 7, 5), (1, 24, 19, 33), (2, 144, 6, 9))):
        groups, kernel_size, *others = window
        u, low = 8 * groups if channels % 16 else channels // 4, channels // 4
        made = channels if groups == 4 else channels - low
        pool = AlignedAvgPool2d(kernel_size, *others)
        x_up = random(n, u, *size, layout=CL)
        out = pool(x_up).shape[2:]
        up, x_low = random(n, u, *out, layout=CL), random(n, low, *out, layout=CL)
        weights = random(channels, u // groups, *kernel_size), random(channels, u, 1, 1), random(made, low, 1, 1)
        biases = (random(channels), random(made)) if n > 1 else (None, None)
        window_ = ops.Window(groups, kernel_size, *others)
        centre = pool.is_identity and window_.centre is not None
        backward(ops.transform_fuse(x_up, None if centre else up, x_low, weights, window_, biases))


# Input and output channels, then arguments of SCConv.
DEPLOYED: tuple[tuple[int, int, dict[str, Any]], ...] = (
    (16, 16, dict(kernel_size=3, padding=1)),
    (48, 40, dict(kernel_size=3, padding=1, stride=2, alpha=0.25, gwc_groups=1, squeeze_ratio=1)),
    (32, 72, dict(kernel_size=3, padding=2, dilation=2, gwc_groups=4, inner_norm=True)),
    (16, 24, dict(kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), gate='hard')),
)


def scconv() -> None:
    """Layers in deploy form: packing, and the op with samples for each thread and with fewer."""
    for (inputs, outputs, settings), n, norm_and_relu in product(DEPLOYED, (1, 5), (False, True)):
        layer, norm = SCConv(inputs, outputs, num_groups=4, **settings), nn.BatchNorm2d(outputs)
        for module in (*layer.modules(), norm):
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(cast('Tensor', module.running_mean))
                nn.init.uniform_(cast('Tensor', module.running_var), 0.5, 2)
        layer.eval()
        layer.switch_to_deploy(norm.eval() if norm_and_relu else None, relu=norm_and_relu)
        run_deployed(layer, torch.randn(n, inputs, 9, 13))
        for tiles in (False, True):  # on a machine without them: in the plain C that stands for them
            with patch.object(native, 'multiplies_in_tiles', lambda on=tiles: on):
                run_deployed(layer.bfloat16(), torch.randn(n, inputs, 9, 13).bfloat16())


def run_deployed(layer: SCConv, x: Tensor) -> None:
    cru = cast('DeployedCRU', layer.cru)
    (scale, shift, groups, eps, _, hard), *others = op_arguments(cru, cast('SRU', layer.sru), x.dtype)
    threshold = threshold_in_a_gap(x, scale, shift, groups, eps)
    with torch.no_grad():
        ops.scconv(x.contiguous(memory_format=CL), (scale, shift, groups, eps, threshold, hard), *others)


def fingerprint() -> None:
    """Fewer values than a stripe, a rest, and enough blocks for several threads."""
    for count in (1, 17, 4099, 150_000):
        ops.fingerprint([torch.randn(count), torch.randn(3, 5).bfloat16()])


def not_finite() -> None:
    """NaN and infinity stay what and where they are."""
    for value, layout in product((float('nan'), float('inf')), (torch.contiguous_format, CL)):
        x, low = random(2, 16, 5, 7, layout=layout), random(2, 16, 5, 7, layout=layout)
        arguments = arguments_of_sru(x, 4, hard=False)
        with torch.no_grad():
            x[1, 5, 2, 3] = value
        backward(ops.sru(x, *arguments, backend='native'))
        backward(ops.fuse(x, low, backend='native'))
        backward(ops.batch_norm(x, random(16), random(16), 1e-5)[0])
        layer = SCConv(16, 16, 3, padding=1, num_groups=4).eval()
        layer.switch_to_deploy(relu=True)
        run_deployed(layer, x.detach())
