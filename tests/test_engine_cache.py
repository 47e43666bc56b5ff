"""The cache of built engines: keys, refusals with their reasons, whole files only, one builder at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from keyface.configs.errors import EngineError
from keyface.engines.engine_cache import EngineCache, EngineKey, engine_root

KEY = EngineKey(
    model="synthesis_256",
    onnx_sha256="ab" * 32,
    converter=1,
    flavour="tensorrt",
    flavour_version="11.4.0",
    architectures=("sm89",),
    precision="f16",
    shapes="w_plus 1x23x512..1x23x512..8x23x512",
)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_what_was_built_is_found_and_not_built_again(cache: EngineCache) -> None:
    path, is_new = cache.ensure(KEY, lambda: b"plan")
    assert is_new and path.read_bytes() == b"plan" and path.name.startswith("synthesis_256.f16.sm89.")
    assert cache.ensure(KEY, lambda: b"another") == (path, False)
    assert cache.find(KEY) == path
    (entry,) = cache.entries()
    assert entry.key == KEY and entry.n_bytes == 4 and entry.as_dict()["architectures"] == ["sm89"]
    assert cache.ensure(KEY, lambda: b"another", force=True) == (path, True)
    assert path.read_bytes() == b"another"


def test_an_engine_for_several_cards_serves_each(cache: EngineCache) -> None:
    path, _ = cache.ensure(replace(KEY, architectures=("sm75", "sm89")), lambda: b"plan")
    assert cache.find(KEY) == path
    with pytest.raises(EngineError, match="is foreign: it is for sm75, sm89, this is sm90"):
        cache.find(replace(KEY, architectures=("sm90",)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"onnx_sha256": "cd" * 32}, r"stale: the network was abababababab\.\.\., is cdcdcdcdcdcd\.\.\."),
        ({"flavour_version": "11.5.0"}, r"stale: the library's version was 11\.4\.0, is 11\.5\.0"),
        ({"flavour": "tensorrt_rtx"}, "stale: the library was tensorrt, is tensorrt_rtx"),
        ({"converter": 2}, "stale: what writes the network for cards was 1, is 2"),
        ({"shapes": "other"}, "stale: the sizes was w_plus"),
        ({"architectures": ("sm86",)}, "foreign: it is for sm89, this is sm86"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    cache: EngineCache, change: dict[str, object], reason: str
) -> None:
    cache.ensure(KEY, lambda: b"plan")
    wanted = replace(KEY, **change)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=reason) as caught:
        cache.find(wanted)
    assert "keyface engines build" in str(caught.value)
    assert cache.ensure(wanted, lambda: b"new")[1]  # rebuilt on request
    assert cache.find(wanted).read_bytes() == b"new"


def test_nothing_built_yet_is_told(cache: EngineCache) -> None:
    cache.ensure(KEY, lambda: b"plan")
    with pytest.raises(EngineError, match="no engine of synthesis_256 in f32 for sm89 yet"):
        cache.find(replace(KEY, precision="f32"))


def test_a_damaged_engine_is_refused_and_built_again(cache: EngineCache) -> None:
    path, _ = cache.ensure(KEY, lambda: b"plan")
    path.write_bytes(b"plam")
    with pytest.raises(EngineError, match="is damaged: its SHA-256"):
        cache.find(KEY)
    assert cache.ensure(KEY, lambda: b"plan") == (path, True)


@pytest.mark.parametrize("note", ["", "{}", '{"key": {}}', "[]", '{"key": {"architectures": 3}}'])
def test_an_engine_without_a_readable_note_does_not_count(cache: EngineCache, note: str) -> None:
    path, _ = cache.ensure(KEY, lambda: b"plan")
    path.with_name(f"{path.name}.json").write_text(note)
    assert list(cache.entries()) == []
    assert cache.remove_left_overs() == 1 and not path.exists()


def test_a_build_that_fails_or_is_killed_leaves_nothing_that_counts(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bytes:
        raise EngineError("no tactic.")

    with pytest.raises(EngineError, match="no tactic"):
        cache.ensure(KEY, fail)
    assert [p.name for p in cache.root.iterdir()] == [".lock"]

    def cut(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", cut)
    with pytest.raises(KeyboardInterrupt):
        cache.ensure(KEY, lambda: b"plan")
    assert list(cache.entries()) == [] and cache.remove_left_overs() == 0


def test_two_builders_build_once(cache: EngineCache) -> None:
    started, built = threading.Event(), []

    def slowly() -> bytes:
        started.set()
        built.append(1)
        threading.Event().wait(0.3)
        return b"plan"

    first = threading.Thread(target=cache.ensure, args=(KEY, slowly))
    first.start()
    assert started.wait(20)
    path, is_new = cache.ensure(KEY, slowly)  # waits for the lock, then finds what the other has built
    first.join(20)
    assert not is_new and len(built) == 1 and path.read_bytes() == b"plan"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EngineError, match=r"cannot be written: .*KEYFACE_ENGINE_DIR"):
        EngineCache(blocked / "engines").ensure(KEY, lambda: b"plan")


def test_engines_lie_beside_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYFACE_ENGINE_DIR", raising=False)
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(tmp_path / "models"))
    assert engine_root() == tmp_path / "engines"
    monkeypatch.setenv("KEYFACE_ENGINE_DIR", str(tmp_path / "other"))
    assert engine_root() == tmp_path / "other"
