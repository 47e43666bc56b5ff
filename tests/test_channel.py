"""The bounded channel: order, limits, drops, and that closing wakes everybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyface.pipeline.channel import Channel, ChannelClosed

pytestmark = pytest.mark.timeout(240)


def _start(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_first_in_first_out() -> None:
    channel: Channel[int] = Channel(3)
    for i in range(3):
        channel.put(i)
    assert [channel.get() for _ in range(3)] == [0, 1, 2]


def test_bad_arguments_name_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="want >= 1"):
        Channel(0)
    with pytest.raises(ValueError, match="drop_oldest"):
        Channel(1, when_full="burst")  # type: ignore[arg-type]


@given(items=st.lists(st.integers(), max_size=30), capacity=st.integers(1, 8))
def test_drop_oldest_keeps_the_newest(items: list[int], capacity: int) -> None:
    channel: Channel[int] = Channel(capacity, when_full="drop_oldest")
    for item in items:
        channel.put(item)
        assert len(channel) <= capacity
    channel.close()
    kept = []
    while True:
        try:
            kept.append(channel.get())
        except ChannelClosed:
            break
    assert kept == items[-capacity:]
    assert channel.dropped == max(0, len(items) - capacity)


@given(n_items=st.integers(0, 200), capacity=st.integers(1, 5))
def test_waiting_channel_loses_nothing_between_threads(n_items: int, capacity: int) -> None:
    channel: Channel[int] = Channel(capacity)

    def produce() -> None:
        for i in range(n_items):
            channel.put(i)
        channel.close()

    producer = _start(produce)
    got = []
    while True:
        try:
            got.append(channel.get(timeout_s=30))
        except ChannelClosed:
            break
    producer.join(30)
    assert got == list(range(n_items)) and channel.dropped == 0


@pytest.mark.parametrize("discard", [False, True])
def test_close_wakes_a_blocked_producer(discard: bool) -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    caught: list[BaseException] = []

    def produce() -> None:
        try:
            channel.put(1)
        except ChannelClosed as error:
            caught.append(error)

    producer = _start(produce)
    time.sleep(0.05)
    channel.close(discard=discard)
    producer.join(30)
    assert not producer.is_alive() and caught


def test_close_wakes_a_blocked_consumer() -> None:
    channel: Channel[int] = Channel(1)
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            channel.get()
        except ChannelClosed as error:
            caught.append(error)

    consumer = _start(consume)
    time.sleep(0.05)
    channel.close()
    consumer.join(30)
    assert not consumer.is_alive() and caught


def test_what_is_queued_outlives_close_unless_discarded() -> None:
    kept: Channel[int] = Channel(2)
    kept.put(1)
    kept.close()
    assert kept.get() == 1 and kept.is_closed
    with pytest.raises(ChannelClosed):
        kept.get()
    with pytest.raises(ChannelClosed):
        kept.put(2)
    gone: Channel[int] = Channel(2)
    gone.put(1)
    gone.close(discard=True)
    with pytest.raises(ChannelClosed):
        gone.get()
    assert gone.dropped == 0


def test_time_outs() -> None:
    channel: Channel[int] = Channel(1)
    with pytest.raises(TimeoutError):
        channel.get(timeout_s=0.02)
    channel.put(1)
    with pytest.raises(TimeoutError):
        channel.put(2, timeout_s=0.02)
    assert channel.get() == 1
