"""What is installed: the wheel's exact contents, the editable install, the entry point, no torch."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "engines", "models", "configs", "tools")
SKIPPED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "runs", "docs", "examples", "tests"
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def run(*command: str | Path, timeout_s: float = 240, **options: object) -> subprocess.CompletedProcess[str]:
    """The finished command; fails the test with its output unless it exits with 0."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "keyface"
    shutil.copytree(ROOT, copy, ignore=SKIPPED)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source)
    (built,) = out.glob("keyface-*.whl")
    return built


def make_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that sees this one's packages, but not its keyface:
    a path file is not processed for the path files of the folder that it names."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(site_packages) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return python


def install(python: Path, *what: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--no-build-isolation", "--ignore-installed", *what)  # fmt: skip


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel."""
    python = make_environment(tmp_path_factory.mktemp("installed"))
    install(python, wheel)
    return python


def expected_members() -> set[str]:
    """What the wheel must hold of each room: all sources, our manifest, weights and model cards."""
    patterns = [
        "*/*.py",
        "pipeline/*/*.py",
        "engines/*.cu",
        "configs/*.toml",
        "configs/*.schema.json",
        "configs/presets/*.toml",
        "configs/projectors/*.toml",
        "configs/warp/*.toml",
    ]
    patterns += [f"pipeline/live/*.{suffix}" for suffix in ("html", "css", "js", "svg")]
    patterns += ["models/weights/*", "models/cards/*.md", "models/labels/*.toml"]
    files = {file for pattern in patterns for file in ROOT.glob(pattern) if file.is_file()}
    rooms = {name for name in (file.relative_to(ROOT) for file in files) if name.parts[0] in ROOMS}
    return {f"keyface/{name.as_posix()}" for name in rooms}


def test_wheel_holds_the_rooms_and_nothing_else(wheel: Path) -> None:
    members = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert members - expected_members() == set(), "in the wheel, and should not be"
    assert expected_members() - members == set(), "missing from the wheel"
    assert "keyface/__init__.py" not in members, "keyface is a namespace: the rooms are the packages"


def test_every_file_of_a_room_is_packaged() -> None:
    """A file that no pattern above names would be missing from both sides of the comparison."""
    loose = {
        f"keyface/{file.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }
    assert loose - expected_members() == set()


def test_wheel_carries_the_licence_and_the_entry_point(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"keyface-{PROJECT['version']}.dist-info"
    assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
    entry_points = archive.read(f"{info}/entry_points.txt").decode()
    for name, target in PROJECT["scripts"].items():
        assert f"{name} = {target}" in entry_points
    assert zipfile.ZipFile(wheel).testzip() is None


def test_wheel_fits_a_package_index(wheel: Path) -> None:
    assert wheel.stat().st_size < 60 * 1024 * 1024


def test_core_dependencies_hold_no_torch() -> None:
    assert not [
        need for need in PROJECT["dependencies"] if need.lower().startswith(("torch", "face-alignment"))
    ]


def test_site_packages_get_no_bare_rooms(installed: Path, tmp_path: Path) -> None:
    probe = (
        "import importlib.util as u, keyface.tools.main, keyface.configs, sysconfig\n"
        f"assert not [room for room in {ROOMS!r} if u.find_spec(room)], 'a bare room is importable'\n"
        "print(keyface.tools.main.__file__)\n"
    )
    where = run(installed, "-c", probe, cwd=tmp_path).stdout.strip()
    assert Path(where).is_relative_to(installed.parent.parent)


def test_installed_command_answers_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    command = installed.parent / "keyface"
    assert PROJECT["version"] in run(command, "--version", cwd=tmp_path).stdout
    help_text = run(command, "--help", cwd=tmp_path).stdout
    for name in ("keygen", "process", "models", "doctor", "bench", "evaluate", "demo"):
        assert name in help_text
        assert "usage:" in run(command, name, "--help", cwd=tmp_path).stdout


def test_editable_install_follows_the_sources(source: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment")
    install(python, "--editable", source)
    where = run(python, "-c", "import keyface.configs as c; print(c.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(where).resolve() == (source / "configs" / "__init__.py").resolve()
    assert PROJECT["version"] in run(python.parent / "keyface", "--version", cwd=tmp_path).stdout


def live_modules() -> list[str]:
    """Every module that someone who never trains can import."""
    files = [
        file for room in ("pipeline", "engines", "configs", "tools") for file in (ROOT / room).rglob("*.py")
    ]
    names = [
        ".".join(("keyface", *file.relative_to(ROOT).with_suffix("").parts))
        for file in files
        if not file.name.startswith("train_")
    ]
    return sorted(name.removesuffix(".__init__") for name in names)


def test_live_path_imports_no_torch(tmp_path: Path) -> None:
    probe = (
        "import importlib, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        f"for name in {live_modules()!r}: importlib.import_module(name)\n"
        "print(*[name for name in ('torch', 'keyface.models', 'scipy') if name in sys.modules])\n"
    )
    assert run(sys.executable, "-c", probe, cwd=tmp_path).stdout.strip() == ""


def test_help_is_quick(tmp_path: Path) -> None:
    times = []  # of the processor: the machine may be busy with something else
    for _ in range(3):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(sys.executable, "-m", "keyface.tools.main", "--help", cwd=tmp_path)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
    assert min(times) < 1.5, f"keyface --help takes {min(times):.1f} s: something heavy is imported early"


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    probe = (
        "import sys\nfrom keyface.tools.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'cv2', 'av', 'onnxruntime', 'openvino', 'mediapipe', 'onnx', 'PIL', 'torch'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    assert run(sys.executable, "-c", probe, cwd=tmp_path).stderr.strip().splitlines()[-1].strip() == "heavy:"
