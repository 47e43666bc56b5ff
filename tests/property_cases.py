"""How many inputs the property tests try, and whether they are the same ones in every run.

`repeatable`, which holds unless another profile is named, draws the same inputs in each run and sets no limit to
the time of one: what passed here passes on a slow machine. `explore` draws other inputs in each run, and five times
as many:

    HYPOTHESIS_PROFILE=explore python -m pytest -k motion --hypothesis-seed=7
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_N_REPEATABLE, _N_EXPLORE = 100, 500


def load_profile() -> None:
    """Registers both profiles and loads the one that the environment names."""
    # No database: what an earlier run has left in a folder must not decide a test. Health checks of speed measure
    # the machine, not the test.
    same = {
        "deadline": None,
        "database": None,
        "print_blob": True,
        "suppress_health_check": [HealthCheck.too_slow],
    }
    settings.register_profile("repeatable", derandomize=True, max_examples=_N_REPEATABLE, **same)
    settings.register_profile("explore", derandomize=False, max_examples=_N_EXPLORE, **same)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def examples(n: int) -> int:
    """`max_examples` of a test that wants `n` inputs where others have 100."""
    return max(1, n * settings().max_examples // _N_REPEATABLE)
