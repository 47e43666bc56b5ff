"""The figures of a stream in the text format of Prometheus. Counts and times only: no names, no addresses."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from keyface.configs.errors import UsageError
from keyface.pipeline.live.board import LiveBoard
from keyface.pipeline.live.control import Mode

if TYPE_CHECKING:
    from keyface.pipeline.live.run import LiveReport
    from keyface.pipeline.stage_times import StageTimes

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATES = ("starting", "live", "lost", "ended")
# name, help, attribute of the report
_COUNTERS = (
    ("frames_captured", "Frames that the source gave.", "frames_in"),
    ("frames_shown", "Safe frames that went to the sinks.", "frames_out"),
    ("frames_dropped", "Frames left out because the chain was behind.", "dropped"),
    ("faces_replaced", "Faces that got a virtual face, summed over frames.", "replaced"),
    ("frames_mosaicked", "Frames with at least one mosaic.", "redacted_frames"),
    ("people", "Tracks of faces that were seen.", "people"),
    ("slates", "Pictures that said why there was none.", "slates"),
    ("quality_changes", "Times that the quality changed by itself.", "quality_changes"),
    ("reconnects", "Times that the source came back.", "reconnects"),
)


def metrics_text(board: LiveBoard, *, watchers: int = 0) -> bytes:
    """The exposition of one scrape, UTF-8.

    Args:
        watchers: who looks at the page's picture now.

    Raises:
        UsageError: the package prometheus-client is not installed.
    """
    try:
        client: Any = importlib.import_module("prometheus_client")
        core: Any = importlib.import_module("prometheus_client.core")
    except ImportError as error:
        raise UsageError(
            "Metrics need the package prometheus-client, which is not installed.",
            "Run: pip install 'keyface[stream]'.",
        ) from error
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(core, board, watchers))
    text: bytes = client.generate_latest(registry)
    return text


class _Collector:
    """What prometheus_client asks for the figures."""

    def __init__(self, core: Any, board: LiveBoard, watchers: int) -> None:
        self._core, self._board, self._watchers = core, board, watchers

    def collect(self) -> Iterator[Any]:
        """One family after the other."""
        yield from self._stream()
        yield from self._controls()
        report = self._board.report
        if report is not None:
            yield from self._counts(report)
            yield from self._times(report)
            yield from self._sinks(report)

    def _stream(self) -> Iterator[Any]:
        report, rates = self._board.report, self._board.rates()
        state = "starting" if report is None else report.state
        if self._board.has_ended:
            state = "ended"
        yield self._one_of("source_state", "1 for the state of the source.", "state", _STATES, state)
        yield self._gauge("capture_fps", "Frames captured a second, over two seconds.", rates.fps_in)
        yield self._gauge("output_fps", "Frames shown a second, over two seconds.", rates.fps_out)
        yield self._gauge("page_watchers", "Who looks at the page's picture.", self._watchers)
        info = self._core.GaugeMetricFamily("keyface_build_info", "1.", labels=["version"])
        info.add_metric([version("keyface")], 1)
        yield info

    def _controls(self) -> Iterator[Any]:
        state = self._board.controls.state()
        yield self._one_of("mode", "1 for what is shown.", "mode", get_args(Mode), state.mode)
        yield self._counter("key_rotations", "Keys that came into use since the start.", state.rotations)

    def _counts(self, report: LiveReport) -> Iterator[Any]:
        yield self._gauge("uptime_seconds", "Since the start.", report.wall_s)
        yield self._gauge("faces", "In the last frame shown.", report.faces)
        yield self._gauge("quality_step", "0 is the best.", report.quality)
        for name, text, attribute in _COUNTERS:
            yield self._counter(name, text, getattr(report, attribute))
        mosaics = self._core.CounterMetricFamily(
            "keyface_mosaics", "Mosaics by reason, in frames.", labels=["reason"]
        )
        for reason, count in sorted(report.redacted.items()):
            mosaics.add_metric([reason], count)
        yield mosaics
        faults = self._core.CounterMetricFamily(
            "keyface_stage_faults", "Frames on which a stage failed, and which were mosaicked.",
            labels=["stage"],
        )  # fmt: skip
        for stage in report.stages:
            faults.add_metric([stage], report.faults.get(stage, 0))
        yield faults

    def _times(self, report: LiveReport) -> Iterator[Any]:
        age = self._core.SummaryMetricFamily(
            "keyface_frame_age_seconds", "From capture to the end of the last sink."
        )
        _add_times(age, {}, report.age)
        yield age
        stages = self._core.SummaryMetricFamily("keyface_stage_seconds", "Time for one frame in a stage.")
        for name, times in report.stages.items():
            _add_times(stages, {"stage": name}, times)
        yield stages

    def _sinks(self, report: LiveReport) -> Iterator[Any]:
        written = self._core.CounterMetricFamily(
            "keyface_sink_frames_written", "Frames and slates that a sink took.", labels=["sink", "kind"]
        )
        dropped = self._core.CounterMetricFamily(
            "keyface_sink_frames_dropped", "Frames that a sink never got or did not take.",
            labels=["sink", "kind"],
        )  # fmt: skip
        failed = self._core.GaugeMetricFamily(
            "keyface_sink_failed", "1 for a sink that has failed.", labels=["sink", "kind"]
        )
        for number, sink in enumerate(report.outputs):
            labels = [str(number), sink_kind(sink.name)]
            written.add_metric(labels, sink.written)
            dropped.add_metric(labels, sink.dropped)
            failed.add_metric(labels, float(sink.state == "failed"))
        yield from (written, dropped, failed)

    def _gauge(self, name: str, text: str, value: float) -> Any:
        return self._core.GaugeMetricFamily(f"keyface_{name}", text, value=value)

    def _counter(self, name: str, text: str, value: float) -> Any:
        return self._core.CounterMetricFamily(f"keyface_{name}", text, value=value)

    def _one_of(self, name: str, text: str, label: str, choices: tuple[str, ...], now: str) -> Any:
        family = self._core.GaugeMetricFamily(f"keyface_{name}", text, labels=[label])
        for choice in choices:
            family.add_metric([choice], float(choice == now))
        return family


def sink_kind(name: str) -> str:
    """What a sink's name says about its kind, without hosts and files: these may be personal."""
    if "://" in name:
        return name.split("://", 1)[0]
    first = name.split(" ", 1)[0]
    return first if first in ("page", "null", "window", "virtual") else "file"


def _add_times(family: Any, labels: dict[str, str], times: StageTimes) -> None:
    """Quantiles over the last 16,384; count and sum over all."""
    for quantile, value_ms in (("0.5", times.p50_ms), ("0.95", times.p95_ms), ("0.99", times.p99_ms)):
        family.add_sample(family.name, {**labels, "quantile": quantile}, value_ms / 1e3)
    family.add_sample(f"{family.name}_count", labels, times.count)
    family.add_sample(f"{family.name}_sum", labels, times.total_s)
