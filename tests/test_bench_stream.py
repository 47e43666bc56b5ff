"""`keyface bench stream`: the form of its report, its figures, and that a fault count can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rtsp_server import SERVER, SYSTEM_PYTHON, below_numbers, free_port, need_server, pictures_of, write_clip

from keyface.configs.bench_stream_report import STREAM_SCHEMA, TARGETS, check_stream_bench, verdicts
from keyface.configs.errors import UsageError
from keyface.pipeline.stage_times import DurationLog
from keyface.tools import bench_chain, bench_stream, bench_stream_command, bench_stream_faults
from keyface.tools.main import main

TIMES = {"count": 3, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 2, "total_s": 0.1}
RUN = {
    "faces": 1, "frames_in": 10, "frames_out": 9, "fps_in": 30.0, "fps_out": 27.0, "dropped": 1, "age": TIMES,
    "stages": {"paste": TIMES}, "first_safe_frame_s": 1.2, "stop_s": 0.3, "quality": 1, "quality_changes": 2,
    "replaced": 7, "redacted": {"choosing": 2},
}  # fmt: skip
COUNT = {
    "frames": 10, "slates": 0, "faces": 12, "raw_frames": 0, "unchanged": 0, "recognised": 0, "looked": 3,
    "matched": {"edgeface_s": 0}, "injected": {"cut": 1}, "faults": {"paste": 2}, "redacted": {}, "replaced": 8,
    "dropped": 0, "wall_s": 1.5,
}  # fmt: skip


def report(**changes: Any) -> dict[str, Any]:
    return {
        "schema": STREAM_SCHEMA,
        "measured_at": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "x", "cores": 2, "memory_bytes": None, "system": "Linux", "python": "3.12"},
        "versions": {"numpy": "2"},
        "clips": ["a.mp4"],
        "reenactor": "latent",
        "runs": {"one": RUN},
        "rotation": None,
        "faults": {"real": None, "canned": COUNT, "seed": 1, "examples": []},
        "soak": None,
        "drops": None,
        "verdicts": verdicts({"one face, fps": 27.0, "stop": None}),
        **changes,
    }


def test_a_report_of_the_form_is_taken_and_others_are_named() -> None:
    check_stream_bench(report())
    check_stream_bench(json.loads(json.dumps(report())))
    for changes, place in (
        ({"schema": "keyface/bench/1"}, "schema"),
        ({"runs": {"one": {**RUN, "fps_out": "27"}}}, "runs.one.fps_out"),
        ({"soak": {"seconds": 3}}, "soak"),
        ({"faults": {"real": None, "canned": {**COUNT, "raw_frames": 0.5}, "seed": 1, "examples": []}},
         "raw_frames"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=place):
            check_stream_bench(report(**changes))


def test_verdicts_follow_the_targets() -> None:
    values = {
        "one face, fps": 15.0, "one face, age p95": 150.1, "three faces, fps": 7.9, "mosaic only, fps": 29.6,
        "raw faces under faults": 1.0, "stop": None,
    }  # fmt: skip
    outcomes = {row["figure"]: row["outcome"] for row in verdicts(values)}
    assert outcomes == {
        "one face, fps": "pass", "one face, age p95": "fail", "three faces, fps": "fail",
        "mosaic only, fps": "pass", "raw faces under faults": "fail", "stop": "not measured",
    }  # fmt: skip
    assert set(values) <= set(TARGETS)


def test_the_lines_for_people_name_every_figure() -> None:
    text = "\n".join(bench_stream_command.lines(report()))
    assert "27.0 of 30.0 fps" in text and "0 of 10 frames with a raw face" in text and "pass" in text


@pytest.mark.parametrize(
    "words", [["--parts", "two"], ["--faults", "-1"], ["--soak", "-3"], ["--seconds", "0"]]
)
def test_bad_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "stream", *words]) == UsageError.exit_code
    assert "keyface: " in capsys.readouterr().err


def test_several_clips_are_for_the_stream_only(make_clip: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(make_clip())
    assert main(["bench", "--clip", clip, "--clip", clip]) == UsageError.exit_code
    assert "one clip" in capsys.readouterr().err


def test_a_fault_count_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    class Bench:
        def __init__(self, *_: Any) -> None:
            pass

        def run_piece(self, number: int, seed: int, n_frames: int) -> dict[str, Any]:
            ran.append(number)
            example = {"frame": 3, "clip": "a", "number": 1, "faults": [], "why": ["unchanged"]}
            count = {**COUNT, "raw_frames": 1, "examples": [example], "frames": n_frames}
            return {"piece": number, "seed": seed, "kind": "canned" if number else "real", "count": count}

    monkeypatch.setattr(bench_stream_faults, "_FaultBench", Bench)
    state = tmp_path / "state.jsonl"

    def count(n_frames: int, seed: int = 1) -> dict[str, Any]:
        return bench_stream_faults.count_leaks(
            [], n_frames, seed=seed, state=state, backend="auto", is_generated=True
        )

    first = count(2000)
    assert ran == [0, 1] and first["real"]["frames"] == first["canned"]["frames"] == 1000
    more = count(3500)
    assert ran == [0, 1, 2, 3]
    assert more["canned"]["frames"] == 2500 and more["canned"]["raw_frames"] == 3
    assert [example["piece"] for example in more["examples"]] == [
        "real 0",
        "canned 1",
        "canned 2",
        "canned 3",
    ]
    check_stream_bench(report(faults=more))
    with pytest.raises(UsageError, match="another seed"):
        count(2000, seed=2)


def test_the_soaks_ages_are_the_reports_whatever_the_clocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, ages = bench_stream._AgeSink(), DurationLog()
    now_s, offset_s = [0.0], 0.7  # what the frames' clock is behind
    monkeypatch.setattr(bench_stream.time, "monotonic", lambda: now_s[0])
    for first_ms in (40, 240):
        for i in range(100):
            age_s = (first_ms + i) / 1e3
            now_s[0] += 0.04
            sink.write(SimpleNamespace(pts_s=now_s[0] - age_s - offset_s))
            ages.add(age_s)
        assert sink.take_p95_ms(ages.times()) == pytest.approx(first_ms + 95, abs=1.5)
    assert sink.take_p95_ms(ages.times()) == 0.0  # nothing was shown since


def test_rotation_figures_look_at_the_moment_of_the_change() -> None:
    watch = bench_stream._Watch()
    watch.times_s = [t / 25 for t in range(100)] + [4.2 + t / 25 for t in range(50)]
    watch.has_mosaic = [t < 10 for t in range(150)]
    figures = bench_stream._rotation_figures(watch, {"asked": 3.0, "changed": 4.0})
    assert figures == {
        "in_use_s": 1.0, "longest_gap_ms": 240.0, "usual_gap_ms": 40.0, "mosaics_between": 0, "frames": 150,
    }  # fmt: skip
    nothing = bench_stream._rotation_figures(watch, {"asked": 3.0})
    assert nothing["in_use_s"] is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_measurement_end_to_end(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    del models  # are there
    words = ["bench", "stream", "--parts", "one,rotation", "--seconds", "3", "--soak", "6", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    check_stream_bench(told)
    run = told["runs"]["one"]
    assert run["frames_out"] > 3 and run["first_safe_frame_s"] > 0 and run["stop_s"] < 20
    assert told["rotation"]["in_use_s"] is not None and told["rotation"]["frames"] > 10
    assert len(told["soak"]["rss_bytes"]) >= 6 and min(told["soak"]["threads"]) >= 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_drops_of_a_real_server_end_to_end(
    models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server of a generated person's clip is killed, frozen and replaced by noise; the stream comes back."""
    del models  # are there
    need_server()
    port, video = free_port(), bench_chain.make_sample_clip(tmp_path)
    pictures = below_numbers(pictures_of(video), (320, 240))
    clip = write_clip(tmp_path / "clip", (320, 240), pictures=pictures)
    server = f"{SYSTEM_PYTHON} {SERVER} --port {port} --clip {clip}"
    words = ["--drops", "3", "--server", server, "--url", f"rtsp://127.0.0.1:{port}/hidden-path"]
    assert main(["bench", "stream", "--parts", "none", *words, "--numbered", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["drops"]
    assert told["drops"] == 3 and told["lost_for_good"] == 0
    assert 0 < told["back_s"]["max"] < 60
    assert 0 < told["age_ms"]["p50"] < 9000 and told["age_growth_ms"]["max"] < 5000
