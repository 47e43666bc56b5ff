"""The controls of a stream: what they take, two switches, keys that are wiped, and many threads."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.people.key import Key

pytestmark = pytest.mark.timeout(150)


def test_at_the_start_it_is_live_and_automatic() -> None:
    state = LiveControls().state()
    assert (state.mode, state.quality, state.shows_boxes) == ("live", None, False)
    assert not state.wants_end and not state.is_rotating and state.rotations == state.changes == 0
    assert LiveControls(mode="mosaic").is_panic and LiveControls(mode="slate").is_paused


def test_the_end_of_a_pause_is_not_the_end_of_a_panic() -> None:
    controls = LiveControls()
    controls.is_panic = True
    controls.is_paused = True
    assert controls.mode == "slate"
    controls.is_paused = False
    assert controls.mode == "mosaic"


def test_a_mode_may_be_set_as_such() -> None:
    controls = LiveControls(mode="mosaic")
    controls.mode = "slate"
    assert controls.mode == "slate" and controls.is_panic
    controls.mode = "mosaic"
    assert controls.mode == "mosaic" and not controls.is_paused
    controls.mode = "slate"
    controls.mode = "live"
    assert controls.mode == "live" and not controls.is_paused and not controls.is_panic


@pytest.mark.parametrize("value", ["", "raw", "Live", None, 1])
def test_no_other_mode_is_taken(value: Any) -> None:
    controls = LiveControls(mode="mosaic")
    with pytest.raises(ValueError, match="want one of"):
        controls.mode = value
    assert controls.mode == "mosaic"
    with pytest.raises(ValueError, match="want one of"):
        LiveControls(mode=value)


@pytest.mark.parametrize("value", [-1, 4, 1.0, True, "1"])
def test_no_other_quality_is_taken(value: Any) -> None:
    controls = LiveControls(quality=2, quality_steps=4)
    with pytest.raises(ValueError, match="want None or 0 to 3"):
        controls.quality = value
    assert controls.quality == 2


def test_a_key_is_taken_once() -> None:
    controls, key = LiveControls(), Key.generate()
    controls.request_key(key)
    assert controls.state().is_rotating and controls.state().rotations == 0
    assert controls.take_key() is key and controls.take_key() is None
    assert controls.state().is_rotating, "until the chain uses it"
    controls.confirm_key()
    assert not controls.state().is_rotating and controls.state().rotations == 1


def test_a_key_that_nobody_took_is_wiped() -> None:
    controls, first, second = LiveControls(), Key.generate(), Key.generate()
    controls.request_key(first)
    controls.request_key(second)
    assert repr(first) == "Key(<closed>)" and repr(second) == "Key(<secret>)"
    controls.close()
    controls.close()
    assert repr(second) == "Key(<closed>)" and controls.take_key() is None
    late = Key.generate()
    controls.request_key(late)
    assert repr(late) == "Key(<closed>)" and controls.take_key() is None


def test_a_key_asked_for_during_a_change_waits_for_its_turn() -> None:
    controls, first, second = LiveControls(), Key.generate(), Key.generate()
    controls.request_key(first)
    assert controls.take_key() is first
    controls.request_key(second)
    controls.confirm_key()
    assert controls.state().is_rotating and controls.take_key() is second
    controls.confirm_key()
    assert not controls.state().is_rotating and controls.state().rotations == 2


ACTIONS = st.sampled_from(["pause", "panic", "boxes", "live", "mosaic", "slate", "quality", "end"])


@given(st.lists(st.tuples(ACTIONS, st.booleans(), st.integers(0, 3)), max_size=30))
def test_the_state_is_what_was_set_last(actions: list[tuple[str, bool, int]]) -> None:
    controls = LiveControls(quality_steps=4)
    is_paused = is_panic = shows_boxes = wants_end = False
    quality: int | None = None
    for name, switch, number in actions:
        if name == "pause":
            controls.is_paused = is_paused = switch
        elif name == "panic":
            controls.is_panic = is_panic = switch
        elif name == "boxes":
            controls.shows_boxes = shows_boxes = switch
        elif name == "quality":
            controls.quality = quality = number if switch else None
        elif name == "end":
            controls.request_end()
            wants_end = True
        else:
            controls.mode = name  # type: ignore[assignment]
            is_paused, is_panic = name == "slate", name == "mosaic" or (name == "slate" and is_panic)
    state = controls.state()
    assert state.mode == ("slate" if is_paused else "mosaic" if is_panic else "live") == controls.mode
    assert (state.shows_boxes, state.quality, state.wants_end) == (shows_boxes, quality, wants_end)
    assert state.changes == len(actions)


def test_many_threads_lose_no_change_and_no_key() -> None:
    controls, n_threads, n_each = LiveControls(), 6, 200
    made: list[Key] = []
    taken: list[Key] = []
    inconsistent: list[object] = []
    is_over = threading.Event()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def turn(number: int) -> None:
        for _ in range(n_each):
            controls.is_panic = not number % 2
            controls.is_paused = not number % 3
            key = Key(bytes([number] * 32))
            made.append(key)
            controls.request_key(key)

    def take() -> None:
        while not is_over.is_set():
            key = controls.take_key()
            if key is not None:
                taken.append(key)
                assert key.fingerprint  # not wiped under the hands of who took it
            state = controls.state()
            wanted = "slate" if state.is_paused else "mosaic" if state.is_panic else "live"
            if state.mode != wanted:
                inconsistent.append(state)

    try:
        taker = threading.Thread(target=take)
        threads = [threading.Thread(target=turn, args=(number,)) for number in range(n_threads)]
        for thread in (taker, *threads):
            thread.start()
        for thread in threads:
            thread.join(30)
        is_over.set()
        taker.join(30)
    finally:
        sys.setswitchinterval(before)
    controls.close()
    assert not inconsistent and len(taken) == len(set(map(id, taken)))
    open_keys = {id(key) for key in made if repr(key) == "Key(<secret>)"}
    assert open_keys == {id(key) for key in taken}, "each key is with its taker or wiped"
    assert controls.state().changes == 3 * n_threads * n_each
