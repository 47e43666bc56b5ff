"""What waits for a sink: never more than it may, always the newest, and every frame is accounted for."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_sink_cases import safe
from property_cases import examples

from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.mailbox import SinkMailbox

pytestmark = pytest.mark.timeout(150)


def numbered(number: int, side_px: int = 8) -> SafeFrame:
    return safe(float(number), size_wh=(side_px, side_px))


@given(
    capacity=st.integers(1, 6),
    capacity_bytes=st.integers(1, 2000),
    steps=st.lists(st.one_of(st.integers(4, 20), st.just("get"), st.just("close"), st.just("discard"))),
)
@settings(max_examples=examples(200))
def test_it_stays_bounded_in_order_and_accounts_for_every_frame(
    capacity: int, capacity_bytes: int, steps: list[int | str]
) -> None:
    mailbox = SinkMailbox(capacity, capacity_bytes=capacity_bytes)
    held: list[tuple[int, int]] = []  # number and bytes: what a plain model says
    n_put = n_got = n_dropped = 0
    is_closed = False
    for step in steps:
        if isinstance(step, int):
            mailbox.put(numbered(n_put, step))
            if is_closed:
                n_dropped += 1
            else:
                held.append((n_put, 3 * step * step))
                while len(held) > 1 and (
                    len(held) > capacity or sum(size for _, size in held) > capacity_bytes
                ):
                    held.pop(0)
                    n_dropped += 1
            n_put += 1
        elif step == "get" and (held or is_closed):
            frame = mailbox.get()
            assert (None if frame is None else int(frame.pts_s)) == (held[0][0] if held else None)
            n_got += bool(held)
            held = held[1:]
        elif step in ("close", "discard"):
            mailbox.close(discard=step == "discard")
            is_closed = True
            if step == "discard":
                n_dropped, held = n_dropped + len(held), []
        assert len(mailbox) == len(held) <= capacity
        assert mailbox.held_bytes == sum(size for _, size in held)
        assert mailbox.held_bytes <= capacity_bytes or len(mailbox) == 1
        assert mailbox.dropped == n_dropped
        assert n_put == n_got + n_dropped + len(held)


@given(n_frames=st.integers(0, 60), capacity=st.integers(1, 5))
@settings(max_examples=examples(25))
def test_between_threads_nothing_is_lost_unseen_and_order_holds(n_frames: int, capacity: int) -> None:
    mailbox = SinkMailbox(capacity)
    got: list[int] = []

    def take() -> None:
        while (frame := mailbox.get()) is not None:
            got.append(int(frame.pts_s))

    thread = threading.Thread(target=take)
    thread.start()
    for number in range(n_frames):
        mailbox.put(numbered(number))
    mailbox.close()
    thread.join(30)
    assert not thread.is_alive()
    assert got == sorted(set(got)) and len(got) + mailbox.dropped == n_frames
    assert not n_frames or got[-1] == n_frames - 1  # the newest is never the one that goes


def test_only_safe_frames_enter() -> None:
    mailbox = SinkMailbox(2)
    raw = Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0)
    for bad in (raw, raw.image_rgb, None, numbered(0).image_rgb):
        with pytest.raises(TypeError, match="want SafeFrame"):
            mailbox.put(bad)  # type: ignore[arg-type]
    assert len(mailbox) == 0 and mailbox.dropped == 0


@pytest.mark.parametrize("discard", [False, True])
def test_closing_wakes_who_waits(discard: bool) -> None:
    mailbox = SinkMailbox(1)
    got: list[object] = ["nothing yet"]
    thread = threading.Thread(target=lambda: got.append(mailbox.get()))
    thread.start()
    time.sleep(0.05)
    mailbox.close(discard=discard)
    thread.join(30)
    assert not thread.is_alive() and got[-1] is None


def test_an_empty_mailbox_waits_only_so_long() -> None:
    with pytest.raises(TimeoutError):
        SinkMailbox(1).get(timeout_s=0.02)


@pytest.mark.parametrize(("capacity", "n_bytes"), [(0, 1), (1, 0), (-1, 5)])
def test_bad_limits_are_refused(capacity: int, n_bytes: int) -> None:
    with pytest.raises(ValueError, match="want >= 1"):
        SinkMailbox(capacity, capacity_bytes=n_bytes)
