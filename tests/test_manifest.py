"""The model manifest: strict reading, and the state of the one that the package carries."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import (
    DerivedSource,
    LocalSource,
    MemberSource,
    PackageSource,
    PypiSource,
    UrlSource,
    load_manifest,
    parse_manifest,
)
from keyface.engines.assemble import BUILDERS
from keyface.engines.own_weights import _unlisted

GOOD = """
[[model]]
name = "a"
group = "default"
file = "a.onnx"
source = { kind = "pypi", requirement = "pkg==1.0", member = "pkg/a.onnx" }
sha256 = "%s"
bytes = 12
licence = "MIT"
licence_note = ""
card = "a.md"
colour = "rgb"
mean = [127.5]
std = [127.5]
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3, 8, 8], meaning = "RGB" }]
""" % ("0" * 64)
DERIVED = """
[[model]]
name = "b"
group = "optional"
file = "b.onnx"
source = { kind = "derived", builder = "f", inputs = ["%s"] }
licence = "MIT"
licence_note = "made here"
card = "a.md"
"""


def test_a_good_entry_is_read_in_full() -> None:
    entry = parse_manifest(GOOD)["a"]
    assert entry.source == PypiSource("pkg==1.0", "pkg/a.onnx")
    assert entry.inputs[0].shape == (None, 3, 8, 8) and entry.inputs[0].meaning == "RGB"
    assert (entry.mean, entry.std, entry.colour, entry.requires) == ((127.5,), (127.5,), "rgb", ())


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ('kind = "url", url = "https://example.org/a"', UrlSource("https://example.org/a")),
        ('kind = "local", path = "~/weights"', LocalSource("~/weights")),
        ('kind = "package"', PackageSource("keyface.models", "weights")),
    ],
)
def test_every_kind_of_source_is_read(source: str, want: object) -> None:
    line = next(line for line in GOOD.splitlines() if line.startswith("source"))
    assert parse_manifest(GOOD.replace(line, f"source = {{ {source} }}"))["a"].source == want


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "MIT"', 'license = "MIT"', r"model 'a': unknown key 'license'\. Legal keys: bytes, card"),
        ('card = "a.md"\n', "", r"model 'a': key 'card' is missing"),
        ('"default"', '"basic"', r"group is 'basic'\. Legal values: default, evaluate, optional"),
        ('"rgb"', '"grb"', r"colour is 'grb'\. Legal values: rgb, bgr, none"),
        ("0" * 64, "A" * 64, "want 64 lower-case hex digits"),
        ("bytes = 12", "bytes = 0", "bytes is 0, want the size"),
        ("bytes = 12", "bytes = true", "bytes is True, want a whole number"),
        ('"a.onnx"\nsource', '"../a.onnx"\nsource', "must be a plain file name"),
        ('"a.onnx"\nsource', '".lock"\nsource', "must be a plain file name"),
        ('"pypi"', '"ftp"', r"kind is 'ftp'\. Legal values: pypi, url, local, member, package, derived"),
        ("pkg==1.0", "pkg>=1.0", "want 'name==version'"),
        ("pkg==1.0", "--index-url=x==1", "want 'name==version'"),
        (", member", ", extra = 1, member", r"source: unknown key 'extra'\. Legal keys: archive"),
        ("[-1, 3, 8, 8]", '["n"]', "want integers, -1 for any size"),
        ("mean = [127.5]", 'mean = ["a"]', "want a list of numbers"),
        ("[[model]]", "[model]", "want an array of tables"),
        ("[[model]]", "[[models]]", "unknown key 'models'"),
        ("[[model]]", "[[model", "not valid TOML"),
    ],
)
def test_bad_entries_are_told(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ModelStoreError, match=message):
        parse_manifest(GOOD.replace(old, new, 1))


def test_entries_that_clash_or_dangle_are_told() -> None:
    with pytest.raises(ModelStoreError, match="model 'a' is listed twice"):
        parse_manifest(GOOD + GOOD)
    with pytest.raises(ModelStoreError, match=r"two models use the file name 'a\.onnx'"):
        parse_manifest(GOOD + GOOD.replace('name = "a"', 'name = "c"'))
    with pytest.raises(ModelStoreError, match="no model is called 'z'"):
        parse_manifest(GOOD + DERIVED % "z")
    with pytest.raises(ModelStoreError, match="in a loop: b -> b"):
        parse_manifest(DERIVED % "b")
    with pytest.raises(ModelStoreError, match="a derived model takes no sha256"):
        parse_manifest(GOOD + DERIVED % "a" + f'sha256 = "{"0" * 64}"\n')


def test_mirrors_must_be_fetchable() -> None:
    mirror = '{ kind = "derived", builder = "f", inputs = ["a"] }'
    with pytest.raises(ModelStoreError, match="Legal kinds: pypi, url, local"):
        parse_manifest(f"{GOOD}mirrors = [{mirror}]\n")


def test_the_closure_has_inputs_first() -> None:
    manifest = parse_manifest(DERIVED % "a" + GOOD)
    assert manifest.closure(["b"]) == ("a", "b")


def test_a_missing_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match="cannot be read"):
        load_manifest(tmp_path / "nothing.toml")


# -- the manifest of the package


def test_every_entry_has_its_card_and_its_builder() -> None:
    cards = Path(str(files("keyface.models"))) / "cards"
    for entry in load_manifest().models.values():
        assert (cards / entry.card).is_file(), f"{entry.name}: no card {entry.card}"
        if isinstance(entry.source, DerivedSource):
            assert entry.source.builder in BUILDERS, entry.name


def test_what_process_needs_is_pulled_by_default() -> None:
    manifest = load_manifest()
    default = manifest.group("default")
    assert {"yunet", "face_landmarker", "face_mesh", "face_blendshapes", "sface"} <= set(default)
    assert set(manifest.closure(default)) == set(default)


def test_non_commercial_weights_are_never_default_and_say_so() -> None:
    """The generator's own terms are permissive; what stands above it must be said."""
    for entry in load_manifest().models.values():
        is_restricted = "NC" in entry.licence.split("-") or "NonCommercial" in entry.licence
        if is_restricted:
            assert entry.group != "default", entry.name
            assert "NON-COMMERCIAL" in entry.licence_note, entry.name
        if entry.name.startswith("generator_ir"):
            assert "non-commercial" in entry.licence_note, entry.name


def test_default_archives_run_no_foreign_code_but_one_script_that_is_pinned() -> None:
    """The one sdist's setup.py was read: it declares and does nothing. pip refuses any other archive."""
    pinned = {"mobilefacenet_checkpoint": "019f25a7b85a01b9806c37762dad99b282a56dca1b2f963deddcf3d4a59773d1"}
    for entry in load_manifest().models.values():
        for source in (entry.source, *entry.mirrors):
            if entry.group == "default" and isinstance(source, PypiSource):
                assert source.archive_bytes > 0, entry.name
                assert source.archive == "wheel" or source.archive_sha256 == pinned[entry.name]


def test_members_name_archives_of_their_own_group() -> None:
    manifest = load_manifest()
    for entry in manifest.models.values():
        if isinstance(entry.source, MemberSource):
            assert manifest[entry.source.of].group == entry.group, entry.name


def test_own_weights_are_listed_with_their_true_hash() -> None:
    from keyface.engines.store import ModelStore

    manifest = load_manifest()
    assert not _unlisted(manifest), "add these files to configs/models.toml"
    store = ModelStore(manifest=manifest)
    for entry in manifest.models.values():
        if isinstance(entry.source, PackageSource):
            state = store.status(entry.name)
            assert state == "ok", f"{entry.name} is {state}: run keyface models verify --update-own"


def test_listing_models_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from keyface.engines.store import ModelStore\n"
        "ModelStore().resolve('all')\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'torch', 'cv2', 'openvino'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
