"""Infinity and NaN in a map are seen wherever the equations let them be seen."""

import pytest
import torch

from mmscconv import SRU, ops

# A NaN's other bits may hold anything: memory filled with -1 is one.
NANS = {'usual': 0x7FC00000, 'of -1': -1, 'with a payload': 0x7FC00001}


def compared(layer, x):
    with torch.no_grad():
        got = layer(x)
        with ops.plain_only():
            want = layer(x)
    assert torch.equal(got.isnan(), want.isnan())
    finite = want.isfinite()
    torch.testing.assert_close(got[finite], want[finite])


@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=['channels last', 'NCHW'])
@pytest.mark.parametrize('gate', ['soft', 'hard'])
@pytest.mark.parametrize('value', [*NANS, 'infinity'])
@pytest.mark.parametrize('channels', [16, 32, 36])
def test_sru(channels, value, gate, layout):
    x = torch.randn(2, channels, 4, 5)
    bits = NANS.get(value)
    x[0, 0, 0, 0] = float('inf') if bits is None else torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    compared(SRU(channels, num_groups=4, gate=gate, backend='native'), x.to(memory_format=layout))
