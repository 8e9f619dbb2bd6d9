"""Examples that hypothesis draws, and what came of them."""

import os
from collections import Counter

from hypothesis import HealthCheck, given, settings

VARIABLE = 'MMSCCONV_EXAMPLES'


def outcomes(strategy, ask, count):
    """Count the answers of ``ask`` to ``count`` examples, the same in each run of the same tests.

    Hypothesis also draws constants of the modules that other tests have loaded. If MMSCCONV_EXAMPLES is set, it says
    how many examples there are, and they are others in each run.
    """
    found = Counter()

    @settings(
        max_examples=int(os.environ.get(VARIABLE, count)), derandomize=VARIABLE not in os.environ, database=None,
        deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def check(example):
        found[ask(example)] += 1

    check()
    print(f'{found.total()} examples: {dict(found)}')
    return found
