"""Random settings either build and agree with the reference, or raise a ValueError; MMSCCONV_EXAMPLES says how many."""

import copy
import os
from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip('hypothesis', reason='hypothesis is not installed (pip install hypothesis)')

from hypothesis import HealthCheck, Phase, given, reject, settings

from helpers.random_settings import Expected, cases, impossible, randomize
from mmscconv import SCConv

EXAMPLES = int(os.environ.get('MMSCCONV_EXAMPLES', 150))


def outcome(case):
    """Build and run the case; return what came of it."""
    torch.manual_seed(case.seed)
    if case.dtype.is_floating_point:
        x = (torch.randn(case.shape, dtype=torch.float64) * case.spread + 0.3).to(case.dtype)
    else:
        x = torch.ones(case.shape, dtype=case.dtype)
    must_raise = impossible(case)
    try:
        layer = case.kind(**case.settings).eval()
        layer = layer.to(case.dtype if case.dtype.is_floating_point else torch.float32)
        randomize(layer, case.mixed_gammas and case.dtype is torch.float64)
        out = layer(x)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = None
    assert (refusal is not None) == must_raise, refusal or 'built and run, but should not have been'
    if must_raise:
        assert refusal
        return 'bad on purpose, refused' if case.bad else 'impossible, refused'
    expected = Expected(case, layer)
    want = expected(x.double().numpy().reshape(-1, *x.shape[-3:])).reshape(out.shape)
    exact = case.dtype is torch.float64
    if expected.nearest < (1e-10 if exact else 1e-5) * (1 + expected.largest) or expected.largest > 500:
        reject()  # on the threshold: rounding decides
    agree(out, want, exact)
    if isinstance(layer, SCConv) and case.deploy:
        deployed = copy.deepcopy(layer)
        deployed.switch_to_deploy()
        with torch.no_grad():
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            agree(deployed(x), want, exact)
    return 'built, agrees'


def agree(out, want, exact):
    tolerance = 1e-9 if exact else 2e-4
    scale = np.abs(want).max(initial=1e-3)
    np.testing.assert_allclose(out.detach().double().numpy(), want, rtol=tolerance, atol=tolerance * scale)


def test_random_settings_agree_with_the_reference_or_raise_value_error():
    outcomes = Counter()

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def check(case):
        outcomes[outcome(case)] += 1

    check()
    print(f'{sum(outcomes.values())} examples: {dict(outcomes)}')
    assert len(outcomes) == 3
    assert outcomes['built, agrees'] > 0.4 * sum(outcomes.values())
