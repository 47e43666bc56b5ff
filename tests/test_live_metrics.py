"""Metrics as Prometheus reads them, with its own parser."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from page_cases import ask, report_of, served

from keyface.pipeline.live.metrics import sink_kind
from keyface.pipeline.people.key import Key

parser: Any = pytest.importorskip("prometheus_client.parser")
pytestmark = pytest.mark.timeout(150)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    """(name, labels) -> value of all samples; a family must not come twice."""
    families = list(parser.text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)) and all(name.startswith("keyface_") for name in names)
    assert all(family.documentation and family.type != "unknown" for family in families)
    found = [(s.name, tuple(sorted(s.labels.items())), s.value) for f in families for s in f.samples]
    samples = {(name, labels): value for name, labels, value in found}
    assert len(samples) == len(found), "a sample comes twice"
    return samples


def scrape(page: Any) -> tuple[Samples, str]:
    answer = ask(page, "metrics")
    assert answer.code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples_of(answer.body.decode()), answer.body.decode()


def test_a_scrape_holds_the_figures() -> None:
    with served() as page:
        page.board(report_of())
        samples, _ = scrape(page)
    expected = {
        ("keyface_frames_captured_total", ()): 500,
        ("keyface_frames_shown_total", ()): 480,
        ("keyface_frames_dropped_total", ()): 17,
        ("keyface_faces", ()): 2,
        ("keyface_quality_step", ()): 3,
        ("keyface_frames_mosaicked_total", ()): 11,
        ("keyface_mosaics_total", (("reason", "too_small"),)): 4,
        ("keyface_reconnects_total", ()): 1,
        ("keyface_source_state", (("state", "live"),)): 1,
        ("keyface_source_state", (("state", "lost"),)): 0,
        ("keyface_mode", (("mode", "live"),)): 1,
        ("keyface_frame_age_seconds", (("quantile", "0.95"),)): 0.09,
        ("keyface_frame_age_seconds_count", ()): 480,
        ("keyface_frame_age_seconds_sum", ()): 30,
        ("keyface_stage_seconds", (("quantile", "0.5"), ("stage", "reenact"))): 0.03,
        ("keyface_stage_faults_total", (("stage", "reenact"),)): 2,
        ("keyface_sink_frames_written_total", (("kind", "page"), ("sink", "0"))): 485,
        ("keyface_sink_frames_dropped_total", (("kind", "rtsp"), ("sink", "1"))): 9,
        ("keyface_sink_failed", (("kind", "rtsp"), ("sink", "1"))): 1,
        ("keyface_sink_failed", (("kind", "file"), ("sink", "2"))): 0,
    }
    assert {name: samples.get(name) for name in expected} == expected


def test_it_can_be_scraped_before_the_first_frame_and_after_the_end() -> None:
    with served() as page:
        samples, _ = scrape(page)
        assert samples["keyface_source_state", (("state", "starting"),)] == 1
        page.board(report_of())
        page.board.has_ended = True
        samples, _ = scrape(page)
        assert samples["keyface_source_state", (("state", "ended"),)] == 1


def test_controls_are_seen() -> None:
    with served() as page:
        page.controls.is_panic = True
        page.controls.request_key(Key.generate())
        page.controls.confirm_key()
        samples, _ = scrape(page)
        page.controls.close()
    assert samples["keyface_mode", (("mode", "mosaic"),)] == 1
    assert samples["keyface_mode", (("mode", "live"),)] == 0
    assert samples["keyface_key_rotations_total", ()] == 1


def test_nothing_personal_is_in_it() -> None:
    with served() as page:
        page.board(report_of())
        _, text = scrape(page)
    for secret in ("hidden", "camera.example", "mp4", "8554", "/"):
        assert secret not in "".join(line for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("page", "page"), ("null", "null"), ("window", "window"), ("virtual camera /dev/video9", "virtual"),
     ("rtmp://host/x", "rtmp"), ("a page of mine.mp4", "file"), ("/x/null", "file")],
)  # fmt: skip
def test_sinks_are_told_apart_by_kind_only(name: str, kind: str) -> None:
    assert sink_kind(name) == kind


def test_the_documentation_names_metrics_that_exist() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "stream.md").read_text("utf-8")
    named = {name for name in re.findall(r"\bkeyface_\w+", text)}
    with served() as page:
        page.board(report_of())
        samples, _ = scrape(page)
    assert len(named) > 15 and named - {name for name, _ in samples} == set()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with served() as page:
        answer = ask(page, "metrics")
        assert answer.code == 501 and b"pip install 'keyface[stream]'" in answer.body
        assert ask(page, "state.json").code == 200
