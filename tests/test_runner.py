"""The runner: order, figures, failures, time-outs, and that no thread is ever left waiting."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from keyface.configs.errors import EngineError, SinkError, StageError
from keyface.pipeline.runner import Runner, RunReport
from keyface.pipeline.stage import StagePlan

pytestmark = pytest.mark.timeout(240)


@dataclass
class Step:
    """A stage made of a function; records its calls and threads."""

    function: Callable[[Any], Any] = lambda item: item
    on_open: Callable[[], None] = lambda: None
    on_close: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    seen: list[Any] = field(default_factory=list)

    def open(self) -> None:
        self._note("open")
        self.on_open()

    def process(self, item: Any) -> Any:
        self._note("process")
        self.seen.append(item)
        return self.function(item)

    def close(self) -> None:
        self._note("close")
        self.on_close()

    def _note(self, call: str) -> None:
        if not self.calls or self.calls[-1] != call:
            self.calls.append(call)
        self.threads.add(threading.get_ident())


@dataclass
class Hold(Step):
    """A buffered stage that holds the last `n` items."""

    n: int = 3
    held: list[Any] = field(default_factory=list)

    def process(self, item: Any) -> Sequence[Any]:
        super().process(item)
        self.held.append(item)
        return [self.held.pop(0)] if len(self.held) > self.n else []

    def flush(self) -> Sequence[Any]:
        self._note("flush")
        rest, self.held = self.held, []
        return rest


def _plan(name: str, stage: Step, **options: Any) -> StagePlan:
    return StagePlan(name=name, stage=stage, is_buffered=isinstance(stage, Hold), **options)


def _no_threads_left() -> bool:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        if not any(thread.name.startswith("keyface-") for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def _after_some(sink: Step, act: Callable[[], object]) -> list[float]:
    """Acts, on another thread, when the sink has got something; `time.monotonic()` of when comes in the list."""
    acted_s: list[float] = []

    def wait() -> None:
        while not sink.seen:
            time.sleep(0.01)
        time.sleep(0.1)
        acted_s.append(time.monotonic())
        act()

    threading.Thread(target=wait, daemon=True).start()
    return acted_s


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def function(_: Any) -> Any:
        raise error

    return function


def _endless() -> Iterator[int]:
    i = 0
    while True:
        yield i
        i += 1


def test_all_items_pass_in_order_and_each_stage_stays_on_its_thread() -> None:
    steps = [Step(), Hold(), Step(lambda i: i * 2), Step()]
    plans = [_plan(f"s{i}", step) for i, step in enumerate(steps)]
    report = Runner(range(50), plans).run()
    assert steps[-1].seen == [2 * i for i in range(50)]
    assert (report.taken, report.delivered, report.dropped) == (50, 50, 0)
    assert report.first_output_s is not None and report.latency.count == 50
    assert set(report.stages) == {"source", "s0", "s1", "s2", "s3"}
    assert all(times.count == 50 for times in report.stages.values())
    assert all(len(step.threads) == 1 for step in steps)
    assert len(set.union(*(step.threads for step in steps))) == 4
    assert steps[0].calls == ["open", "process", "close"]
    assert steps[1].calls == ["open", "process", "flush", "close"]
    assert _no_threads_left()


def test_an_empty_source_is_no_error() -> None:
    step = Step()
    report = Runner([], [_plan("a", step), _plan("sink", Step())]).run()
    assert report.delivered == 0 and report.first_output_s is None
    assert step.calls == ["open", "close"]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("moment", ["open", "process", "close"])
def test_a_failing_stage_ends_the_run_and_is_named(at: int, moment: str) -> None:
    def fail() -> None:
        raise RuntimeError("it broke")

    steps = [Step(), Step(), Step()]
    if moment == "open":
        steps[at].on_open = fail
    elif moment == "close":
        steps[at].on_close = fail
    else:
        steps[at].function = _raise(RuntimeError("it broke"))
    plans = [_plan(f"s{i}", step, capacity=1) for i, step in enumerate(steps)]
    source = range(100) if moment == "close" else _endless()
    with pytest.raises(StageError, match=f"'s{at}' failed.*it broke") as caught:
        Runner(source, plans).run()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert all(step.calls[-1] == "close" for step in steps)
    assert _no_threads_left()


def test_errors_of_the_family_come_back_as_they_are() -> None:
    error = SinkError("The disk is full.", "Make room.")
    with pytest.raises(SinkError) as caught:
        Runner(_endless(), [_plan("a", Step()), _plan("sink", Step(_raise(error)))]).run()
    assert caught.value is error
    assert _no_threads_left()


def test_a_failing_source_ends_the_run() -> None:
    def source() -> Iterator[int]:
        yield 0
        raise OSError("unplugged")

    with pytest.raises(StageError, match="'source' failed: OSError: unplugged"):
        Runner(source(), [_plan("a", Step())]).run()
    assert _no_threads_left()


def test_a_held_item_is_not_flushed_after_a_failure() -> None:
    hold, sink = Hold(n=5), Step()
    bad = Step(lambda i: _raise(ValueError("no"))(i) if i == 3 else i)
    with pytest.raises(StageError):
        Runner(range(10), [_plan("bad", bad), _plan("hold", hold), _plan("sink", sink)]).run()
    assert sink.seen == []


def test_rescue_makes_a_safe_output_and_is_counted() -> None:
    def sometimes(item: int) -> int:
        if item % 4 == 1:
            raise EngineError("The output is not finite.")
        return item

    sink = Step()
    plan = _plan("shaky", Step(sometimes), rescue=lambda item, error: ("redacted", item))
    report = Runner(range(12), [plan, _plan("sink", sink)]).run()
    assert sink.seen == [("redacted", i) if i % 4 == 1 else i for i in range(12)]
    assert report.faults == {"shaky": 3}
    assert report.first_fault == {"shaky": "The output is not finite"}


def test_a_check_that_fails_is_a_failure_of_the_stage() -> None:
    def check(item: int, output: Any) -> None:
        if not isinstance(output, int):
            raise TypeError(f"got {type(output).__name__}, want int")

    sink = Step()
    plan = _plan("liar", Step(lambda i: None), check=check, rescue=lambda item, error: str(error))
    Runner(range(2), [plan, _plan("sink", sink)]).run()
    assert sink.seen == ["got NoneType, want int"] * 2


def test_too_many_failures_in_a_row_end_the_run() -> None:
    sink = Step()
    plan = _plan("dead", Step(_raise(ValueError("always"))), rescue=lambda item, error: item)
    with pytest.raises(StageError, match=r"'dead' failed on 6 frames in a row.*always") as caught:
        Runner(range(100), [plan, _plan("sink", sink)], max_faults_in_a_row=5).run()
    assert caught.value.way_out
    assert len(sink.seen) <= 5


def test_on_fault_stop_uses_no_rescue() -> None:
    plan = _plan("a", Step(_raise(ValueError("once"))), rescue=lambda item, error: item)
    with pytest.raises(StageError, match=r"'a' failed on frame 0: ValueError: once"):
        Runner(range(3), [plan, _plan("sink", Step())], on_fault="stop").run()


def test_a_failing_rescue_ends_the_run() -> None:
    def rescue(item: int, error: Exception) -> int:
        raise RuntimeError("no rescue either")

    plan = _plan("a", Step(_raise(ValueError("x"))), rescue=rescue)
    with pytest.raises(StageError, match="no rescue either"):
        Runner(range(3), [plan, _plan("sink", Step())]).run()


@pytest.mark.parametrize("at", ["source", "open", "process", "sink"])
def test_a_stuck_stage_is_given_up(at: str) -> None:
    free = threading.Event()

    def wait(_: Any = None) -> Any:
        free.wait(60)

    def source() -> Iterator[int]:
        yield 0
        if at == "source":
            wait()
        yield from _endless()

    middle, sink = Step(), Step()
    if at == "open":
        middle.on_open = wait
    elif at == "process":
        middle.function = wait
    elif at == "sink":
        sink.function = wait
    name = {"source": "source", "sink": "sink"}.get(at, "middle")
    plans = [_plan("first", Step()), _plan("middle", middle), _plan("sink", sink)]
    runner = Runner(source(), plans, timeout_s=1.0, open_timeout_s=1.0, stop_timeout_s=0.5)
    began_s = time.monotonic()
    try:
        with pytest.raises(StageError, match=rf"'{name}' did not come back from .* within 1 s") as caught:
            runner.run()
        assert time.monotonic() - began_s < 20  # it would wait for a minute
        assert caught.value.way_out
        assert runner.stuck == (name,)
    finally:
        free.set()
    assert _no_threads_left()


def test_waiting_for_a_slow_neighbour_is_not_being_stuck() -> None:
    plans = [_plan("fast", Step()), _plan("slow", Step(lambda i: time.sleep(1.2)), timeout_s=60.0)]
    assert Runner(range(4), plans, timeout_s=0.9).run().delivered == 4


def test_drops_happen_only_where_the_plan_says() -> None:
    plans = [
        _plan("first", Step(), when_full="drop_oldest", capacity=2),
        _plan("slow", Step(lambda i: time.sleep(0.01) or i)),
        _plan("sink", sink := Step()),
    ]
    report = Runner(range(300), plans).run()
    assert report.taken == 300
    assert report.dropped > 0
    assert report.delivered + report.dropped == 300
    assert sink.seen == sorted(sink.seen) and sink.seen[-1] == 299


def test_no_more_are_in_flight_than_allowed_and_what_waits_is_the_newest() -> None:
    lock, flying, most = threading.Lock(), 0, 0

    def enter(item: int) -> int:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        return item

    def leave(item: int) -> None:
        nonlocal flying
        time.sleep(0.01)
        with lock:
            flying -= 1

    plans = [
        _plan("first", Step(enter), when_full="drop_oldest", capacity=1),
        _plan("middle", Step()),
        _plan("sink", Step(leave)),
    ]

    def source() -> Iterator[int]:
        for item in range(200):
            time.sleep(0.002)
            yield item

    report = Runner(source(), plans, max_in_flight=2).run()
    assert report.dropped > 0
    assert most == 2 and report.delivered + report.dropped == 200


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_a_limit_in_flight_does_not_hold_up_a_stop_or_a_failure(discard: bool, max_in_flight: int) -> None:
    plans = [_plan("a", Step()), _plan("b", Step()), _plan("sink", sink := Step())]
    runner = Runner(_endless(), plans, max_in_flight=max_in_flight)
    _after_some(sink, lambda: runner.stop(discard=discard))
    assert runner.run().delivered > 0
    assert _no_threads_left()
    fails = Step(lambda item: 1 // (item < 5))
    with pytest.raises(StageError, match="'b' failed"):
        Runner(range(99), [_plan("a", Step()), _plan("b", fails)], max_in_flight=max_in_flight).run()
    assert _no_threads_left()


def test_bad_limits_in_flight_are_refused() -> None:
    with pytest.raises(ValueError, match="max_in_flight 0"):
        Runner(range(3), [_plan("a", Step())], max_in_flight=0)
    with pytest.raises(ValueError, match="buffered"):
        Runner(range(3), [_plan("a", Hold())], max_in_flight=2)


@pytest.mark.parametrize("discard", [False, True])
def test_stop_from_another_thread(discard: bool) -> None:
    sink = Step()
    runner = Runner(_endless(), [_plan("a", Hold()), _plan("b", Step()), _plan("sink", sink)])
    stopped_s = _after_some(sink, lambda: runner.stop(discard=discard))
    report = runner.run()
    assert time.monotonic() - stopped_s[0] < 8
    assert report.delivered == len(sink.seen) > 0
    if not discard:
        assert sink.seen == list(range(report.delivered))
    assert _no_threads_left()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_ctrl_c_ends_the_run_within_a_second() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    steps = [Step(), Step(lambda i: time.sleep(0.02) or i), Step()]
    old = signal.signal(signal.SIGALRM, interrupt)
    began_s = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            Runner(_endless(), [_plan(f"s{i}", step) for i, step in enumerate(steps)]).run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - began_s < 1.3
    assert all(step.calls[-1] == "close" for step in steps)
    assert _no_threads_left()


def test_ticks_come_on_the_caller_s_thread_and_their_failure_ends_the_run() -> None:
    reports: list[RunReport] = []
    threads: set[int] = set()

    def on_tick(report: RunReport) -> None:
        reports.append(report)
        threads.add(threading.get_ident())

    Runner(range(5), [_plan("a", Step(lambda i: time.sleep(0.1)))]).run(on_tick)
    assert threads == {threading.get_ident()} and reports[-1].delivered == 5 and len(reports) >= 2

    def fail(_: RunReport) -> None:
        raise RuntimeError("the bar broke")

    with pytest.raises(RuntimeError, match="the bar broke"):
        Runner(_endless(), [_plan("a", Step())]).run(fail)
    assert _no_threads_left()


def test_a_chain_needs_a_stage() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Runner([], [])


def test_many_runs_leave_no_thread() -> None:
    for i in range(40):
        bad = Step(lambda item, i=i: _raise(ValueError())(item) if item == i % 7 else item)
        with pytest.raises(StageError):
            Runner(_endless(), [_plan("a", Step()), _plan("b", bad, capacity=1), _plan("c", Step())]).run()
    assert _no_threads_left()
