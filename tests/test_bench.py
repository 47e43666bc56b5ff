"""`keyface bench`: its report has one form, its figures are those of the program it ran."""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from keyface.configs.bench_report import SCHEMA, check_bench, compare_bench, read_bench
from keyface.configs.errors import SourceError, StageError, UsageError
from keyface.configs.manifest import load_manifest
from keyface.engines.benchmark import (
    EngineTiming,
    networks_of_the_chain,
    random_inputs,
    time_engine,
    time_models,
)
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.machine import describe_machine, package_versions, usable_cores
from keyface.pipeline.measure.bench_clip import write_bench_clip
from keyface.pipeline.media.capture import FileSource
from keyface.tools import bench_chain, bench_command

STAGE = {"count": 10, "p50_ms": 5.0, "p95_ms": 8, "p99_ms": 9.5, "total_s": 0.05}
RUN = {
    "frames": 10, "faces": 1, "redacted_frames": 0, "wall_s": 0.5, "fps": 20.0, "first_frame_s": 0.2,
    "cpu_s": 0.9, "peak_rss_bytes": 500_000_000, "stages": {"analyse": STAGE},
}  # fmt: skip
REPORT: dict[str, Any] = {
    "schema": SCHEMA,
    "measured_at": "2030-01-01T00:00:00+00:00",
    "machine": {"cpu": "any", "cores": 2, "memory_bytes": None, "system": "Linux", "python": "3.11.0"},
    "versions": {"numpy": "2.0"},
    "models": {"yunet": "00"},
    "clip": {"name": "a.mp4", "frames": 10, "size_wh": [512, 512], "fps": 25.0, "faces_asked": 1,
             "options": ""},
    "whole_process": RUN,
    "in_process": None,
    "engines": [
        {"model": "yunet", "backend": "onnxruntime", "precision": "f32", "threads": 1, "runs": 9,
         "open_ms": 20.0, "p50_ms": 1.0, "p95_ms": 1.2, "p99_ms": 1.3}
    ],
    "verdicts": [{"figure": "fps", "value": 20.0, "target": ">= 15 fps", "outcome": "pass"}],
    "skipped": {},
}  # fmt: skip


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *words])


@pytest.fixture
def tiny_network(tmp_path: Path) -> Path:
    """y = x + x for pictures of any size."""
    shape = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path)
    )
    return path


# ---------------------------------------------------------------- the report
def test_a_whole_report_is_of_the_form() -> None:
    check_bench(json.loads(json.dumps(REPORT)))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("schema",), "keyface/bench/0"),
        (("machine", "cores"), "two"),
        (("machine", "cores"), True),
        (("clip", "size_wh"), [512, "512"]),
        (("whole_process", "fps"), float("nan")),
        (("whole_process", "stages", "analyse", "p50_ms"), None),
        (("whole_process", "more"), 1),
        (("engines",), {}),
        (("engines", 0, "threads"), 1.5),
        (("skipped",), {"x": 3}),
    ],
)
def test_anything_else_is_refused_by_place(where: tuple[Any, ...], value: Any) -> None:
    report = copy.deepcopy(REPORT)
    place: Any = report
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    with pytest.raises(UsageError, match=str(where[0])):
        check_bench(report)


def test_reports_are_compared_as_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(REPORT)
    other["whole_process"]["fps"] = 30.0
    other["engines"][0]["p50_ms"] = 0.5
    ratios = {name: ratio for name, _, _, ratio in compare_bench(REPORT, other)}
    assert ratios["whole_process fps"] == pytest.approx(1.5)
    assert ratios["yunet onnxruntime f32 threads 1 p50_ms"] == pytest.approx(0.5)
    assert ratios["whole_process analyse p95_ms"] == 1.0
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, report in zip(paths, (REPORT, other), strict=True):
        path.write_text(json.dumps(report))
    assert bench_command.run(parse("--compare", *map(str, paths))) == 0
    assert "1.50" in capsys.readouterr().out


def test_foreign_files_are_not_compared(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"schema": "else"}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UsageError, match=r"x\.json"):
            read_bench(tmp_path / "x.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_bench(tmp_path / "none.json")


# ---------------------------------------------------------------- networks
def test_every_back_end_is_timed(tiny_network: Path) -> None:
    rows = list(time_models({"tiny": tiny_network}, threads=(1,), budget_s=0.01))
    timings = [row for row in rows if isinstance(row, EngineTiming)]
    assert "onnxruntime" in {t.backend for t in timings}
    for t in timings:
        assert t.runs >= 5 and 0 < t.p50_ms <= t.p95_ms <= t.p99_ms and t.model == "tiny"


def test_a_broken_network_is_told_and_the_rest_goes_on(tiny_network: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    rows = list(time_models({"broken": broken, "tiny": tiny_network}, threads=(1,), budget_s=0.01))
    told = [row for row in rows if isinstance(row, tuple)]
    assert told and all(what.startswith("broken on") and why for what, why in told)
    assert any(isinstance(row, EngineTiming) and row.model == "tiny" for row in rows)


def test_warm_up_does_not_count_and_inputs_fit() -> None:
    specs = (TensorSpec("x", "float32", (None, 3, None, None)), TensorSpec("z", "float32", (1, 5)))
    engine = FakeEngine(specs, (TensorSpec("y", "float32", (1,)),))
    assert {n: a.shape for n, a in random_inputs(engine).items()} == {"x": (1, 3, 320, 320), "z": (1, 5)}
    assert len(time_engine(engine, budget_s=0.0, min_runs=7)) == 7
    assert engine.n_runs == 9


def test_the_networks_of_the_chain_are_those_it_runs() -> None:
    manifest = load_manifest()
    names = networks_of_the_chain(manifest)
    assert {"yunet_dynamic", "face_mesh", "face_blendshapes"} <= set(names)
    assert not {"yunet", "sface", "w600k_mbf", "face_landmarker"} & set(names)


# ---------------------------------------------------------------- input clips
@pytest.mark.parametrize(
    ("options", "size_wh"),
    [({}, (96, 64)), ({"faces": 2}, (192, 64)), ({"faces": 3}, (192, 128)), ({"width": 49}, (48, 32)),
     ({"size_wh": (320, 180)}, (320, 180)), ({"faces": 2, "size_wh": (101, 101)}, (100, 100))],
)  # fmt: skip
def test_clips_are_multiplied_and_scaled(
    make_clip: Any, tmp_path: Path, options: dict[str, Any], size_wh: tuple[int, int]
) -> None:
    target = tmp_path / "out.mp4"
    assert write_bench_clip(make_clip(n_frames=3), target, **options) == 3
    with FileSource(target) as clip:
        assert clip.info.size_wh == size_wh


def test_short_clips_are_repeated_and_copies_mirrored(make_clip: Any, tmp_path: Path) -> None:
    source, target = make_clip(n_frames=4), tmp_path / "out.mp4"
    assert write_bench_clip(source, target, faces=2, n_frames=10) == 10
    with FileSource(target) as clip:
        images = [frame.image_rgb.astype(int) for frame in clip]
    assert len(images) == 10
    assert np.abs(images[0] - images[4]).mean() < 3 < np.abs(images[0] - images[2]).mean()
    assert np.abs(images[0][:, :96] - images[0][:, :95:-1]).mean() < 4


def test_bad_clips_are_refused(make_clip: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="faces"):
        write_bench_clip(make_clip(), tmp_path / "o.mp4", faces=0)
    with pytest.raises(SourceError):
        write_bench_clip(tmp_path / "none.mp4", tmp_path / "o.mp4")


def test_nothing_of_the_chain_can_write_raw_bench_clips() -> None:
    rooms = Path(bench_command.__file__).parent.parent
    users = [p.name for room in ("pipeline", "engines", "tools") for p in (rooms / room).rglob("*.py")
             if "bench_clip" in p.read_text("utf-8") and p.name != "bench_clip.py"]  # fmt: skip
    assert sorted(users) == ["bench_command.py", "bench_stream.py"]


# ---------------------------------------------------------------- programs
PROGRAM = """
import json, sys, time
block = bytearray(60_000_000)
time.sleep(0.3)
words = sys.argv[1:]
assert words[0] == "process" and "--json" in words and "--extra" in words
print(json.dumps({"frames": 30, "faces": 2, "redacted_frames": 1, "wall_s": 0.2, "first_frame_s": 0.1,
                  "stages": {"analyse": %s}}))
"""


def test_a_program_is_measured_from_its_start(tmp_path: Path) -> None:
    run = bench_chain.run_whole_process(
        Path("clip.mp4"), tmp_path, Path("key"), ["--extra"], program=("-c", PROGRAM % json.dumps(STAGE))
    )
    check_bench(copy.deepcopy(REPORT) | {"whole_process": run})
    assert run["wall_s"] >= 0.3 and run["fps"] == pytest.approx(30 / run["wall_s"], rel=0.01)
    assert run["first_frame_s"] == pytest.approx(0.1 + run["wall_s"] - 0.2, abs=0.01)
    assert (run["faces"], run["redacted_frames"]) == (2, 1)
    if sys.platform == "linux":  # its own size, not that of the program that started it
        assert 60e6 < run["peak_rss_bytes"] < 100e6


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    fails = ("-c", "import sys; print('first', file=sys.stderr); sys.exit('keyface: no key')")
    with pytest.raises(StageError, match=r"code 1: keyface: no key"):
        bench_chain.run_whole_process(Path("c"), tmp_path, Path("k"), program=fails)
    with pytest.raises(StageError, match="no JSON"):
        bench_chain.run_whole_process(Path("c"), tmp_path, Path("k"), program=("-c", "print('done')"))


def test_an_interrupted_bench_leaves_no_program_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def interrupt(child: int) -> int:
        seen.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_chain, "_peak_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench_chain.run_whole_process(
            Path("c"), tmp_path, Path("k"), program=("-c", "import time; time.sleep(60)")
        )
    with pytest.raises(ChildProcessError):
        os.waitpid(seen[0], 0)


@pytest.mark.parametrize("text", ["", "3", "[]", '{"files": []}', '{"files": [{}, {}]}'])
def test_answers_without_one_summary_are_refused(text: str) -> None:
    with pytest.raises(StageError, match="summary"):
        bench_chain.read_summary(text)


def test_one_summary_is_found() -> None:
    assert bench_chain.read_summary('{"files": [{"frames": 3}]}') == {"frames": 3}


# ---------------------------------------------------------------- the command
@pytest.mark.parametrize(
    "words",
    [("--frames", "0"), ("--faces", "0"), ("--width", "-1"), ("--cores", "0"), ("--clip", "/none.mp4")],
)
def test_bad_options(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=words[0]):
        bench_command.run(parse(*words))


def test_bad_sizes(make_clip: Any) -> None:
    with pytest.raises(UsageError, match="--size"):
        bench_command.run(parse("--clip", str(make_clip()), "--size", "large", "--only", "chain"))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Both runs of the chain and all timings, without models."""
    monkeypatch.setattr(bench_chain, "run_whole_process", lambda *_: copy.deepcopy(RUN))
    monkeypatch.setattr(bench_chain, "run_in_process", lambda *_: copy.deepcopy(RUN))
    monkeypatch.setattr(bench_command, "_measure_engines", lambda *_: REPORT["engines"])
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(tmp_path / "no-models"))
    yield


def test_the_command_writes_a_report_of_the_form(
    make_clip: Any, stand_ins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_command.run(parse("--clip", str(make_clip()), "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    check_bench(report)
    assert report["clip"]["name"] == "clip.mp4" and report["clip"]["size_wh"] == [96, 64]
    outcomes = {v["figure"]: v["outcome"] for v in report["verdicts"]}
    assert outcomes == {"fps": "pass", "first_frame_s": "pass", "peak_memory_gb": "pass"}
    assert report["machine"]["cores"] == usable_cores() and "numpy" in report["versions"]


def test_large_pictures_have_their_own_target(
    make_clip: Any, stand_ins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(make_clip(n_frames=2))
    assert bench_command.run(parse("--clip", clip, "--size", "1920x1080")) == 0
    shown = capsys.readouterr().out
    assert "1920x1080" in shown and "fps_1080p" in shown and "yunet" in shown


def test_this_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.cpu and machine.cores >= 1 and machine.system and machine.python.startswith("3.")
    assert "numpy" in package_versions() and "torch" not in package_versions()


def test_a_chain_with_mosaics_is_really_run(
    models: object, make_clip: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--clip", str(make_clip(n_frames=8)), "--only", "chain", "--redact-only", "--json")
    assert bench_command.run(parse(*words)) == 0
    report = json.loads(capsys.readouterr().out)
    check_bench(report)
    assert report["skipped"] == {}
    for run in (report["whole_process"], report["in_process"]):
        assert run["frames"] == 8 and run["stages"]["analyse"]["count"] == 8
    assert report["whole_process"]["peak_rss_bytes"] > 50e6
    assert report["whole_process"]["first_frame_s"] > report["in_process"]["first_frame_s"]
