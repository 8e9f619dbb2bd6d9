"""Examples that hypothesis draws, and what came of them."""

import os
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis.internal.conjecture import providers

VARIABLE = 'MMSCCONV_EXAMPLES'


def outcomes(strategy, ask, count):
    """Count the answers of ``ask`` to ``count`` examples, the same in each run of the same tests.

    If MMSCCONV_EXAMPLES is set, it says how many examples there are, and they are others in each run.
    """
    found = Counter()

    @settings(
        max_examples=int(os.environ.get(VARIABLE, count)), derandomize=VARIABLE not in os.environ, database=None,
        deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def check(example):
        found[ask(example)] += 1

    with no_constants_of_modules():
        check()
    print(f'{found.total()} examples: {dict(found)}')
    return found


@contextmanager
def no_constants_of_modules():
    """Let Hypothesis draw no constants of this package's modules.

    It would take them from those that earlier tests happen to have imported, also as places in a list, so that the
    examples were others in each worker. Hypothesis has no setting for that.
    """
    with (
        patch.object(providers, '_get_local_constants', providers.Constants),
        patch.object(providers, 'CONSTANTS_CACHE', type(providers.CONSTANTS_CACHE)(1024)),
    ):
        yield
