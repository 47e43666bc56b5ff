"""--reenactor: on every command line, in the options, in what is fetched, in summaries, and measured."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_chain import BOX, MakeClip, fake_parts
from fake_puppet import World, make_face, open_reenactor
from fake_warp import WarpWorld, keypoints

from keyface.configs.bench_reenact_report import REENACT_SCHEMA, check_reenact_bench, reenact_verdicts
from keyface.configs.errors import EngineError, UsageError
from keyface.engines.engine import Engine, TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline import assemble, process_options
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame
from keyface.pipeline.frame import Frame
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.people.key import Key
from keyface.pipeline.process_options import AUTO_REENACTOR, ProcessOptions
from keyface.tools import bench_reenact, bench_reenact_command, preview_command
from keyface.tools.main import _build_parser, main

pytestmark = pytest.mark.timeout(240)
WARP = ("keypoints", "warp_source", "warp_motion", "warp_decode")


# The options.


def test_auto_takes_what_measured_better_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(AUTO_REENACTOR) == {"cpu", "card"}
    for device, words in (("cpu", {}), ("card", {"preset": "gpu"}), ("card", {"backend": "tensorrt"})):
        for name in ("latent", "warp"):
            monkeypatch.setattr(process_options, "AUTO_REENACTOR", {**AUTO_REENACTOR, device: name})
            assert ProcessOptions(**words).reenactor_used == name  # type: ignore[arg-type]
    monkeypatch.setattr(process_options, "AUTO_REENACTOR", {"cpu": "warp", "card": "warp"})
    assert ProcessOptions(generator_px=1024).reenactor_used == "latent", "the warp moves pictures of 256 px"


def test_what_is_asked_for_is_used() -> None:
    for name in ("latent", "warp"):
        for preset in ("default", "gpu"):
            assert ProcessOptions(reenactor=name, preset=preset).reenactor_used == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reenactor": "clay"}, "Legal: auto, latent, warp"),
        ({"reenactor": "warp", "generator_px": 1024}, "pictures of 256 px, and --generator asks for 1024"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ProcessOptions(**options)


def test_the_models_needed_follow_the_reenactor() -> None:
    latent = assemble.model_names(ProcessOptions(reenactor="latent"))
    assert not set(WARP) & set(latent) and "synthesis_256" in latent
    assert assemble.model_names(ProcessOptions(reenactor="warp")) == (*latent, *WARP)
    assert not set(WARP) & set(assemble.model_names(ProcessOptions(reenactor="warp", redact_only=True)))


def test_what_was_made_before_there_was_a_choice_stays_valid() -> None:
    """`--resume` compares settings."""
    assert "reenactor" not in ProcessOptions(reenactor="latent").settings()
    for name in ("auto", "warp"):
        assert ProcessOptions(reenactor=name).settings()["reenactor"] == "warp"


# The chain.


@pytest.mark.parametrize("name", ["latent", "warp"])
def test_the_chain_opens_what_its_reenactor_needs(
    models: Any, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    opened: list[str] = []

    def network(wanted: str) -> Engine:
        opened.append(wanted)
        spec = (TensorSpec("w_plus", "float32", (1,)),)
        return FakeEngine(spec, spec, name=wanted)

    monkeypatch.setattr(assemble.KeypointModel, "load", lambda _: keypoints())
    options = ProcessOptions(reenactor=name)
    with Key(bytes(range(32))) as key:
        parts = assemble.make_parts(Store(models), key, options, open_network=network)  # type: ignore[arg-type]
    assert parts.reenactor == name and parts.reenact is not None and not opened
    parts.reenact.open()
    parts.reenact.close()
    assert set(WARP[1:]) <= set(opened) if name == "warp" else not set(WARP) & set(opened)
    assert {"synthesis_256", "face_mesh", "face_blendshapes", "sface_fast"} <= set(opened)
    parts.release()


class Store:
    """The model store, with files of the warp that are not looked at."""

    def __init__(self, models: Any) -> None:
        self._models = models

    def path(self, name: str) -> Path:
        return Path(name) if name in WARP else self._models.path(name)


# The commands.


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key.generate().save(path)
    return path


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[ProcessOptions]:
    """Replaces networks by fakes; the options that chains were made with, and whose models were asked for."""
    made: list[ProcessOptions] = []

    def make_parts(store: object, key: Key | None, options: ProcessOptions, **_: object) -> ChainParts:
        made.append(options)
        return replace(fake_parts(BOX), reenactor=None if options.redact_only else options.reenactor_used)

    monkeypatch.setattr("keyface.pipeline.assemble.make_parts", make_parts)
    monkeypatch.setattr("keyface.engines.store.ModelStore.ensure", lambda *_, **__: {})
    return made


@pytest.mark.parametrize("name", ["latent", "warp"])
def test_process_uses_it_and_says_which(
    make_clip: MakeClip, key: Path, tmp_path: Path, chains: list[ProcessOptions], name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["process", str(make_clip()), "-o", str(tmp_path / "o.mp4"), "--key-file", str(key), "--json"]
    assert main([*words, "--reenactor", name]) == 0
    assert json.loads(capsys.readouterr().out)["reenactor"] == name
    assert [options.reenactor for options in chains] == [name]
    assert main([*words, "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["reenactor"] == "warp" and chains[1].reenactor == "auto"


def test_process_with_mosaics_names_none(
    make_clip: MakeClip, tmp_path: Path, chains: list[ProcessOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["process", str(make_clip()), "-o", str(tmp_path / "o.mp4"), "--redact-only", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["reenactor"] is None and len(chains) == 1


@pytest.mark.parametrize("is_in_file", [False, True])
def test_stream_takes_it_from_the_command_line_or_a_file(
    make_clip: MakeClip, key: Path, tmp_path: Path, chains: list[ProcessOptions], is_in_file: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = tmp_path / "stream.toml"
    config.write_text('reenactor = "warp"\n' if is_in_file else "", "utf-8")
    words = ["stream", "--source", str(make_clip()), "--key-file", str(key), "--sink", "null", "--json"]
    more = ["--config", str(config)] if is_in_file else ["--reenactor", "warp"]
    assert main([*words, *more]) == 0
    assert json.loads(capsys.readouterr().out)["reenactor"] == "warp"
    assert [options.reenactor for options in chains] == ["warp"]
    config.write_text('reenactor = "clay"\n', "utf-8")
    assert main([*words, "--config", str(config)]) == UsageError.exit_code
    assert "Legal: auto, latent, warp" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["process", "stream", "preview", "bench"])
def test_every_command_that_builds_a_chain_has_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--reenactor {auto,latent,warp}" in text
    for word in ("generator renders every frame", "moves that picture", "measured better", "default: auto"):
        assert word in text


def test_preview_uses_it_and_says_which(key: Path, tmp_path: Path) -> None:
    words = ["preview", str(key), "--photo", "me.png", "--reenactor", "warp"]
    args = _build_parser(words).parse_args(words)
    assert preview_command._options(args).reenactor_used == "warp"
    assert preview_command._to_json(args, [], None)["reenactor"] == "warp"


# The measurement.


def parts_of(world: World, mesh_at: Callable[..., Any]) -> ChainParts:
    """A chain whose analysis finds one face that nods, and whose reenactment has stand-in networks."""

    class Analysis:
        def open(self) -> None:
            pass

        def process(self, frame: Frame) -> AnalysedFrame:
            return AnalysedFrame(frame, (make_face(mesh_at, pitch=float(frame.index % 5)),))

        def close(self) -> None:
            pass

    return ChainParts(analyse=Analysis(), observer=None, reenact=open_reenactor(world), paste=Paster())


@pytest.fixture
def rows(mesh_at: Callable[..., Any]) -> dict[str, Any]:
    """What was measured of 30 frames on stand-in networks, the first ten not counted."""
    frames = [Frame(np.zeros((200, 300, 3), np.uint8), index, index / 25) for index in range(30)]
    worlds = {"latent": World(mesh_at((14, 16, 50, 54))), "warp": WarpWorld(mesh_at((14, 16, 50, 54)))}
    chains = {}
    for name, world in worlds.items():
        runner = bench_reenact.Runner()
        opened = world.open_engines

        def timed(opened: Any = opened, runner: Any = runner) -> Any:
            engines = opened()
            network = runner.timed(lambda _: engines.generator)
            return replace(engines, generator=network("synthesis_256"))

        world.open_engines = timed  # type: ignore[method-assign]
        chains[name] = parts_of(world, mesh_at), runner
    assert bench_reenact.measure(frames, chains, n_skipped=10) == (20, (300, 200))
    return {name: runner.to_json() for name, (_, runner) in chains.items()}


def report(rows: dict[str, Any]) -> dict[str, Any]:
    clip = {"name": "a.mp4", "frames": 20, "size_wh": [300, 200]}
    return bench_reenact_command.report_of(copy.deepcopy(rows), clip, {"warp_decode": "00"})


def test_both_are_measured_in_turn_and_the_parts_make_the_whole(rows: dict[str, Any]) -> None:
    for row in rows.values():
        assert row["replaced"] == 20 and row["redacted"] == {} and row["first_s"] > 0
        assert row["backends"] == {"synthesis_256": "fake"}
        parts = [row[part] for part in bench_reenact.PARTS]
        assert row["total"]["count"] == 20 and row["total"]["p50_ms"] > 0
        assert sum(p["total_s"] for p in parts) == pytest.approx(row["total"]["total_s"], abs=3e-3)
        assert row["total"]["p50_ms"] <= row["total"]["p95_ms"] <= row["total"]["p99_ms"]
    assert rows["latent"]["network"]["count"] == 20, "a generator renders every frame"


def test_frames_that_show_no_virtual_face_are_told_and_not_timed(mesh_at: Callable[..., Any]) -> None:
    world = WarpWorld(mesh_at((14, 16, 50, 54)))
    parts, runner = parts_of(world, mesh_at), bench_reenact.Runner()
    world.similarity = (0.9,) * 12  # nobody suits
    frames = [Frame(np.zeros((200, 300, 3), np.uint8), index, index / 25) for index in range(4)]
    assert bench_reenact.measure(frames, {"warp": (parts, runner)}, n_skipped=1) == (3, (300, 200))
    assert runner.replaced == 0 and runner.redacted == {"too_alike": 3} and not runner.durations


def test_a_report_is_of_the_form_and_others_are_named(rows: dict[str, Any]) -> None:
    whole = json.loads(json.dumps(report(rows)))
    check_reenact_bench(whole)
    assert whole["schema"] == REENACT_SCHEMA
    ratio = rows["warp"]["total"]["p50_ms"] / rows["latent"]["total"]["p50_ms"]
    assert whole["warp_to_latent"]["p50"] == pytest.approx(ratio, abs=1e-3)
    text = "\n".join(bench_reenact_command.lines(whole))
    assert (
        "warp / latent" in text
        and "synthesis_256 on fake" in text
        and "20 faces replaced, 0 mosaicked" in text
    )
    for changes, place in (
        ({"schema": "keyface/bench/1"}, "schema"),
        ({"warp_to_latent": {"p50": 1}}, "warp_to_latent"),
        ({"reenactors": {"warp": {**whole["reenactors"]["warp"], "first_s": None}}}, "first_s"),
    ):
        with pytest.raises(UsageError, match=place):
            check_reenact_bench({**whole, **changes})


def test_verdicts_follow_the_targets() -> None:
    outcomes = [
        row["outcome"]
        for warp, ratio in itertools.product((25.0, 25.1), (0.7, 0.71))
        for row in reenact_verdicts({"warp, p50": warp, "warp to latent, p50": ratio})
    ]
    assert outcomes == ["pass", "pass", "pass", "fail", "fail", "pass", "fail", "fail"]


def test_only_runs_of_known_networks_are_added_up() -> None:
    spec = (TensorSpec("x", "float32", (1,)),)
    runner = bench_reenact.Runner()
    network = runner.timed(lambda name: FakeEngine(spec, spec, name=name))
    feed = {"x": np.zeros(1, np.float32)}
    network("sface_fast").run(feed)
    assert runner.spent_s == dict.fromkeys(bench_reenact.PARTS, 0.0) and not runner.backends
    for name, part in (("warp_decode", "network"), ("face_mesh", "landmarks")):
        network(name).run(feed)
        assert runner.spent_s[part] > 0
    with pytest.raises(EngineError, match="inputs"):
        network("warp_motion").run({})


def test_one_clip_at_most(make_clip: MakeClip) -> None:
    clip = str(make_clip())
    assert main(["bench", "reenact", "--clip", clip, "--clip", clip]) == UsageError.exit_code


@pytest.mark.slow
def test_both_are_measured_on_a_generated_person(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if "warp_decode" not in models.manifest.models:
        pytest.skip("the manifest has no networks of the warping reenactor")
    assert main(["bench", "reenact", "--frames", "10", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    check_reenact_bench(measured)
    assert set(measured["reenactors"]) == {"latent", "warp"} and measured["clip"]["frames"] == 10
    for row in measured["reenactors"].values():
        assert row["replaced"] >= 8 and row["network"]["p50_ms"] > 0 and row["landmarks"]["p50_ms"] > 0
    assert set(WARP[1:]) <= set(measured["models"])
