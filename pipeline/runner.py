"""Runs a chain of stages, each on its own thread, joined by bounded channels.

All threads of keyface are made here. Rules that hold whatever the stages do:

- The first failure closes every channel, so that nobody stays blocked on a full or empty one; all
  threads are joined; then the failure is raised on the caller's thread.
- A stage that neither returns nor raises within its time-out ends the run too. Python cannot end a
  thread that is stuck in native code: it is abandoned (a daemon), named in `Runner.stuck`, and nothing
  that it still may use should be closed.
- A failure on one item is handed to the stage's `rescue`, which makes a safe output, up to a limit of
  failures in a row.
- Ctrl-C reaches the caller's thread, which only waits: it stops the run in the same way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from keyface.configs.errors import KeyfaceError, StageError
from keyface.pipeline.channel import Channel, ChannelClosed
from keyface.pipeline.stage import StagePlan
from keyface.pipeline.stage_times import DurationLog, StageTimes

OnFault = Literal["redact", "stop"]

_WATCH_EVERY_S = 0.05


def _nothing() -> None:
    """For sources that never wait long."""


class _Envelope(NamedTuple):
    born_s: float
    item: Any


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did, so far or in all.

    Attributes:
        taken: items that the source gave.
        delivered: items that the last stage has handled.
        dropped: items discarded by channels that drop the oldest.
        wall_s: seconds since the start.
        first_output_s: seconds from the start to the first delivered item, None before it.
        latency: from an item's arrival to the end of the last stage.
        stages: name -> time in `process`; "source" is the time to get an item.
        faults: name -> items on which the stage failed and which were rescued.
        first_fault: name -> the message of the first of them.
    """

    taken: int
    delivered: int
    dropped: int
    wall_s: float
    first_output_s: float | None
    latency: StageTimes
    stages: dict[str, StageTimes]
    faults: dict[str, int]
    first_fault: dict[str, str]


@dataclass(slots=True)
class _Worker:
    """One thread and what the watchdog and the report know about it."""

    name: str
    timeout_s: float
    run: Callable[[_Worker], None]
    shut: Callable[[_Worker], None]  # called after run, also when that failed
    durations: DurationLog = field(default_factory=DurationLog)
    thread: threading.Thread | None = None
    busy: tuple[float, float, str] | None = None  # since, at most, with what
    n_done: int = 0
    n_faults: int = 0
    n_faults_in_a_row: int = 0
    first_fault: str = ""
    has_timed_out: bool = False

    def begin(self, what: str, at_most_s: float | None = None) -> float:
        now_s = time.monotonic()
        self.busy = (now_s, self.timeout_s if at_most_s is None else at_most_s, what)
        return now_s

    def end(self) -> None:
        self.busy = None


class Runner:
    """Runs `source` through `plans`; the last plan is the sink and its outputs are discarded.

    Args:
        source: gives items; `next` is called on the source's own thread. The caller opens and closes it.
        plans: at least one stage.
        timeout_s: longest time for one item in a stage or in the source.
        open_timeout_s: longest time for the `open`, `flush` or `close` of a stage.
        stop_timeout_s: how long to wait for threads when the run has failed.
        on_fault: "redact" uses the plans' `rescue`; "stop" ends the run at the first failure.
        max_faults_in_a_row: more than this many failures in a row of one stage end the run.
        source_timeout_s: longest time for one item of the source; None: `timeout_s`. Live sources watch
            themselves: math.inf.
        max_in_flight: items at most that are in a stage or between two; the first stage takes the next one, the
            newest where its channel drops, when one has left. So an item ages before it is taken and not after.
            None: as many as there are places. Not for buffered stages, which hold items back.
        interrupt_source: called, on any thread and perhaps more than once, when the run is to end, so that
            a source that waits for its next item comes back at once. Must not block.
    """

    def __init__(
        self,
        source: Iterable[Any],
        plans: Sequence[StagePlan],
        *,
        timeout_s: float = 30.0,
        open_timeout_s: float = 120.0,
        stop_timeout_s: float = 5.0,
        on_fault: OnFault = "redact",
        max_faults_in_a_row: int = 30,
        source_timeout_s: float | None = None,
        max_in_flight: int | None = None,
        interrupt_source: Callable[[], None] = _nothing,
    ) -> None:
        if not plans:
            raise ValueError("runner: got no stage, want at least one")
        if max_in_flight is not None and (max_in_flight < 1 or any(plan.is_buffered for plan in plans)):
            raise ValueError(
                f"runner: got max_in_flight {max_in_flight}, want 1 or more and no buffered stage"
            )
        self._source = source
        self._plans = tuple(plans)
        self._open_timeout_s = open_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._on_fault = on_fault
        self._max_faults_in_a_row = max_faults_in_a_row
        self._channels: list[Channel[_Envelope]] = [
            Channel(plan.capacity, when_full=plan.when_full) for plan in self._plans
        ]
        self._interrupt_source = interrupt_source
        self._tickets = None if max_in_flight is None else threading.Semaphore(max_in_flight)
        wait_s = timeout_s if source_timeout_s is None else source_timeout_s
        self._workers = [_Worker("source", wait_s, self._run_source, self._end_source)]
        for index, plan in enumerate(self._plans):
            limit_s = timeout_s if plan.timeout_s is None else plan.timeout_s
            self._workers.append(_Worker(plan.name, limit_s, self._stage_loop(index), self._stage_end(index)))
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._is_stopping = threading.Event()
        self._has_news = threading.Event()
        self._latency = DurationLog()
        self._start_s = time.monotonic()
        self._first_output_s: float | None = None
        self.stuck: tuple[str, ...] = ()

    def run(self, on_tick: Callable[[RunReport], None] | None = None) -> RunReport:
        """Runs to the end of the source. Call once, on the thread that should get Ctrl-C.

        Args:
            on_tick: called on this thread about four times a second and at the end.

        Raises:
            KeyfaceError: the first failure, as it is when it is of this family, else as StageError.
            KeyboardInterrupt: after all threads are joined.
        """
        self._start_s = time.monotonic()
        try:
            for worker in self._workers:
                worker.thread = threading.Thread(
                    target=self._guard, args=(worker,), name=f"keyface-{worker.name}", daemon=True
                )
                worker.thread.start()
            self._watch(on_tick)
        except BaseException as error:
            self._fail(error)
        finally:
            self._join()
        if self._error is not None:
            raise self._error
        report = self.report()
        if on_tick is not None:
            on_tick(report)
        return report

    def stop(self, *, discard: bool = False) -> None:
        """Ends the run early, from any thread, as if the source had ended.

        Args:
            discard: forget the items under way instead of finishing them.
        """
        self._is_stopping.set()
        for channel in self._channels if discard else self._channels[:1]:
            channel.close(discard=discard)
        self._interrupt_source()

    def report(self) -> RunReport:
        """The figures so far; may be called from any thread while the run goes on."""
        stages = self._workers[1:]
        return RunReport(
            taken=self._workers[0].n_done,
            delivered=self._workers[-1].n_done,
            dropped=sum(channel.dropped for channel in self._channels),
            wall_s=time.monotonic() - self._start_s,
            first_output_s=self._first_output_s,
            latency=self._latency.times(),
            stages={worker.name: worker.durations.times() for worker in self._workers},
            faults={worker.name: worker.n_faults for worker in stages if worker.n_faults},
            first_fault={worker.name: worker.first_fault for worker in stages if worker.n_faults},
        )

    # On the caller's thread.

    def _watch(self, on_tick: Callable[[RunReport], None] | None) -> None:
        next_tick_s = time.monotonic()
        while any(worker.thread is not None and worker.thread.is_alive() for worker in self._workers):
            self._has_news.wait(_WATCH_EVERY_S)
            self._has_news.clear()
            if self._error is not None:
                return
            now_s = time.monotonic()
            for worker in self._workers:
                busy = worker.busy
                if busy is not None and now_s - busy[0] > busy[1]:
                    worker.has_timed_out = True
                    raise StageError(
                        f"stage '{worker.name}' did not come back from {busy[2]} within {busy[1]:g} s.",
                        "The machine may be overloaded: close other programs, or allow more time per stage.",
                    )
            if on_tick is not None and now_s >= next_tick_s:
                next_tick_s = now_s + 0.25
                on_tick(self.report())

    def _join(self) -> None:
        """Waits for the threads. Those alive now are so after a failure only: they get little time."""
        self.stuck = tuple(worker.name for worker in self._workers)
        deadline_s = time.monotonic() + self._stop_timeout_s
        self._is_stopping.set()
        for channel in self._channels:
            channel.close(discard=True)
        self._interrupt_source()
        # Who has timed out already gets what time the others leave, but at most a moment.
        workers = sorted(self._workers, key=lambda worker: worker.has_timed_out)
        threads = [(w, w.thread) for w in workers if w.thread is not None and w.thread.ident is not None]
        for worker, thread in threads:
            left_s = max(0.0, deadline_s - time.monotonic())
            thread.join(min(left_s, 0.1) if worker.has_timed_out else left_s)
        self.stuck = tuple(worker.name for worker, thread in threads if thread.is_alive())

    # On any thread.

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
        self._is_stopping.set()
        for channel in self._channels:
            channel.close(discard=True)
        self._has_news.set()

    # On the workers' threads.

    def _guard(self, worker: _Worker) -> None:
        """Runs a worker so that no exception is lost and the neighbours never wait for it in vain."""
        for part in (worker.run, worker.shut):
            try:
                part(worker)
            except ChannelClosed:
                pass  # a neighbour has ended first: the run is being stopped
            except KeyfaceError as error:
                self._fail(error)
            except BaseException as error:
                failure = StageError(f"stage '{worker.name}' failed: {describe(error)}.")
                failure.__cause__ = error
                self._fail(failure)
            worker.end()
        self._has_news.set()

    def _run_source(self, worker: _Worker) -> None:
        items = iter(self._source)
        while not self._is_stopping.is_set():
            began_s = worker.begin(f"frame {worker.n_done}")
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                worker.end()
            now_s = time.monotonic()
            worker.durations.add(now_s - began_s)
            worker.n_done += 1
            self._channels[0].put(_Envelope(now_s, item))

    def _end_source(self, worker: _Worker) -> None:
        self._channels[0].close()

    def _stage_loop(self, index: int) -> Callable[[_Worker], None]:
        plan = self._plans[index]
        is_last = index + 1 == len(self._plans)

        def loop(worker: _Worker) -> None:
            worker.begin("its start", self._open_timeout_s)
            plan.stage.open()
            worker.end()
            feed = self._feed_buffered if plan.is_buffered else self._feed_one_to_one
            feed(
                worker,
                plan,
                self._channels[index],
                self._deliver if is_last else self._channels[index + 1].put,
            )

        return loop

    def _stage_end(self, index: int) -> Callable[[_Worker], None]:
        plan = self._plans[index]

        def end(worker: _Worker) -> None:
            # The stage before must not block on one that has ended; the one after must see the end.
            self._channels[index].close(discard=True)
            for channel in self._channels[index + 1 : index + 2]:
                channel.close()
            worker.begin("its end", self._open_timeout_s)
            plan.stage.close()

        return end

    def _feed_one_to_one(
        self, worker: _Worker, plan: StagePlan, source: Channel[_Envelope], give: Callable[[_Envelope], None]
    ) -> None:
        while (envelope := self._take(worker, plan, source)) is not None:
            output = self._process(worker, plan, envelope.item)
            give(_Envelope(envelope.born_s, output))

    def _feed_buffered(
        self, worker: _Worker, plan: StagePlan, source: Channel[_Envelope], give: Callable[[_Envelope], None]
    ) -> None:
        births_s: deque[float] = deque()
        while (envelope := self._take(worker, plan, source)) is not None:
            births_s.append(envelope.born_s)
            for output in self._process(worker, plan, envelope.item):
                give(_Envelope(births_s.popleft(), output))
        if self._error is None:
            worker.begin("its last items", self._open_timeout_s)
            outputs = plan.stage.flush()  # type: ignore[union-attr]  # the plan says that it is buffered
            worker.end()
            for output in outputs:
                give(_Envelope(births_s.popleft(), output))

    def _take(self, worker: _Worker, plan: StagePlan, source: Channel[_Envelope]) -> _Envelope | None:
        tickets = self._tickets if plan is self._plans[0] else None
        while True:
            if tickets is not None and not tickets.acquire(timeout=_WATCH_EVERY_S):
                if source.is_closed and not len(source):
                    return None
                continue
            try:
                return source.get(timeout_s=plan.idle_every_s)
            except ChannelClosed:
                return None
            except TimeoutError:
                if tickets is not None:
                    tickets.release()
                worker.begin("its idle work")
                plan.stage.idle()  # type: ignore[union-attr]  # the plan says that it idles
                worker.end()

    def _process(self, worker: _Worker, plan: StagePlan, item: Any) -> Any:
        began_s = worker.begin(f"frame {worker.n_done}")
        try:
            try:
                output = plan.stage.process(item)
                if plan.check is not None and not plan.is_buffered:
                    plan.check(item, output)
                worker.n_faults_in_a_row = 0
            except Exception as error:
                output = self._rescue(worker, plan, item, error)
        finally:
            worker.end()
        worker.durations.add(time.monotonic() - began_s)
        worker.n_done += 1
        return output

    def _rescue(self, worker: _Worker, plan: StagePlan, item: Any, error: Exception) -> Any:
        if plan.rescue is None or self._on_fault == "stop":
            if isinstance(error, KeyfaceError):
                raise error
            raise StageError(
                f"stage '{plan.name}' failed on frame {worker.n_done}: {describe(error)}."
            ) from error
        worker.n_faults += 1
        worker.n_faults_in_a_row += 1
        worker.first_fault = worker.first_fault or describe(error)
        if worker.n_faults_in_a_row > self._max_faults_in_a_row:
            raise StageError(
                f"stage '{plan.name}' failed on {worker.n_faults_in_a_row} frames in a row, "
                f"at last: {describe(error)}.",
                "Nothing was written under the final name; run `keyface doctor`.",
            ) from error
        return plan.rescue(item, error)

    def _deliver(self, envelope: _Envelope) -> None:
        if self._tickets is not None:
            self._tickets.release()
        now_s = time.monotonic()
        self._latency.add(now_s - envelope.born_s)
        if self._first_output_s is None:
            self._first_output_s = now_s - self._start_s


def describe(error: BaseException) -> str:
    """An error in a few words, without the full stop: its own for errors of keyface, else with its kind."""
    text = " ".join(str(error).split()).rstrip(".")[:300]
    return (
        text if isinstance(error, KeyfaceError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    )


def side_thread(name: str, run: Callable[[], None]) -> threading.Thread:
    """A started thread beside the chain, for work that must not hold it up, such as one sink of several.

    `run` must not raise. Whoever asks for the thread joins it; one that is stuck in native code is abandoned
    like a stage's.
    """
    thread = threading.Thread(target=run, name=f"keyface-{name}", daemon=True)
    thread.start()
    return thread
