"""Large blocks go back to the system, whichever threads make and drop them."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from keyface.pipeline.live.memory import keep_memory_steady

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_the_setting_may_be_made_again() -> None:
    if not keep_memory_steady():
        pytest.skip("this C library has no such setting")
    assert keep_memory_steady()


def test_pictures_that_pass_between_threads_leave_nothing_behind() -> None:
    """In a process of its own: what other tests have left in the heap does not count."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_live_memory as t; t.play()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def play() -> None:
    keep_memory_steady()
    passing: queue.Queue[np.ndarray | None] = queue.Queue(4)

    def make() -> None:
        sizes = np.random.default_rng(1).integers(300_000, 1_500_000, 600)
        for size in sizes:
            passing.put(np.ones(int(size), np.uint8))
        passing.put(None)

    thread = threading.Thread(target=make)
    thread.start()
    before = resident_bytes()
    kept: list[np.ndarray] = []
    while (picture := passing.get()) is not None:
        kept = [*kept, picture, np.ones(4000, np.uint8)][-10:]
    thread.join()
    kept.clear()
    assert resident_bytes() - before < 20e6
