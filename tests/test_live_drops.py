"""A server that fails again and again while a whole chain runs: back each time, a slate meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from live_chain import Screen, texture_parts
from live_reading import url_source
from rtsp_server import RtspServer, age_s, need_server, number_of, write_clip

from keyface.pipeline.faults.drops import DropRun
from keyface.pipeline.live.run import run_live
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions

pytestmark = pytest.mark.timeout(560)


class FakeServer:
    def __init__(self) -> None:
        self.said: list[str] = []

    def fail(self, how: str) -> None:
        self.said.append(how)

    def restore(self) -> None:
        self.said.append("restore")


def test_drops_are_drawn_evenly_and_by_seed() -> None:
    def plan(seed: int) -> list[tuple[str, float, float]]:
        source = url_source("rtsp://127.0.0.1:1/")
        return DropRun(source, FakeServer(), n_drops=8, longest_down_s=2.0, seed=seed)._plan

    assert plan(1) == plan(1) != plan(2)
    assert sorted(kind for kind, *_ in plan(1)) == sorted(["kill", "freeze", "garbage", "noise"] * 2)
    assert all(0.2 <= down_s <= 2.0 for _, down_s, _ in plan(1))


def test_bad_drops_are_refused() -> None:
    source = url_source("rtsp://127.0.0.1:1/")
    for bad in ({"n_drops": 0}, {"kinds": ()}, {"longest_down_s": 0.1}):
        with pytest.raises(ValueError, match="drops: got"):
            DropRun(source, FakeServer(), **bad)  # type: ignore[arg-type]


def test_a_source_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyface.pipeline.faults.drops._LONGEST_WAIT_S", 0.0)
    source = url_source("rtsp://127.0.0.1:1/")
    drops = DropRun(source, FakeServer(), n_drops=1)
    with pytest.raises(TimeoutError, match="does not get steady"):
        drops()


@pytest.mark.slow
def test_five_drops(tmp_path: Path) -> None:
    """The same with fifty: `keyface bench stream --drops 50`."""
    need_server()
    options = LiveSourceOptions(silence_s=2.0, open_timeout_s=4.0)
    with RtspServer([write_clip(tmp_path / "clip", (320, 240))]) as server:
        source: LiveSource = url_source(server.url, options)
        screen = Screen()
        kinds = ("kill", "freeze", "garbage", "noise", "kill")
        drops = DropRun(
            source, server, n_drops=5, kinds=kinds, longest_down_s=2.5,
            age_of_s=lambda frame, now_s: age_s(frame.image_rgb, now_s),
        )  # fmt: skip
        report, ending = run_live(source, [screen], texture_parts(), on_tick=drops)
    assert ending == "interrupted"
    figures = drops.to_json()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["drops"] == 5 and figures["lost_for_good"] == 0
    assert figures["back_s"]["max"] < 45  # 3 s on a machine that has nothing else to do
    assert (
        figures["age_growth_ms"]["max"] < 1500
    )  # in a queue it would grow by the time that the server was away
    for drop in drops.drops:
        if drop.kind in ("kill", "garbage"):
            assert drop.slates > 0, drop
    assert report.reconnects >= 3
    # Nothing between the slates that cannot be read: noise is mosaicked, not shown.
    for frame in screen.frames:
        assert number_of(frame.image_rgb) is not None or frame.redactions or (frame.image_rgb[:4] == 24).all()


def test_options_of_the_source_are_kept(tmp_path: Path) -> None:
    source = url_source("rtsp://127.0.0.1:1/", replace(LiveSourceOptions(), rtsp_transport="udp"))
    drops = DropRun(source, FakeServer())
    assert source.on_frame == drops._see and source.options.rtsp_transport == "udp"
