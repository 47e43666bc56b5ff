"""What this machine has for keyface, as findings; each missing thing with what to do about it."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from keyface.configs.errors import KeyfaceError

State = Literal["ok", "missing", "warning", "absent"]

MEMORY_WANTED_BYTES = 2_000_000_000
DISK_WANTED_BYTES = 600_000_000
# Modules that need system libraries, so that being installed does not yet mean that they load.
_LOADED = {
    "av": "av",
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "pillow": "PIL.Image",
}
_OPENCV_WHEELS = (
    "opencv-contrib-python",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-python-headless",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        area: python, machine, packages, engines, models, video, devices.
        name: what it is.
        state: "ok"; "missing", and the default chain cannot run; "warning", it runs but badly; "absent",
            an optional thing that is not there.
        detail: what was found.
        way_out: what to do, empty when there is nothing to do.
    """

    area: str
    name: str
    state: State
    detail: str
    way_out: str = ""


def examine() -> list[Finding]:
    """Looks at everything; opens no device and writes nothing."""
    return [
        *_python(),
        *_machine(),
        *_packages(),
        *_engines(),
        *_models(),
        *_encoders(),
        *_devices(),
    ]


def can_run(findings: list[Finding]) -> bool:
    """True when nothing that the default chain needs is missing."""
    return all(finding.state != "missing" for finding in findings)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        yield Finding("python", "Python", "ok", f"{version} at {sys.executable}")
    else:
        yield Finding("python", "Python", "missing", version, "Use Python 3.11, 3.12 or 3.13.")


def _machine() -> Iterator[Finding]:
    from keyface.engines.machine import describe_machine
    from keyface.engines.store import default_root

    machine = describe_machine()
    yield Finding("machine", "system", "ok", machine.system)
    flags = ", ".join(_cpu_flags()) or "none of AVX2, AVX-512, BF16, VNNI, AMX seen"
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    if machine.cores >= 2:
        yield Finding("machine", "processor", "ok", f"{machine.cpu}, {cores}; {flags}")
    else:
        yield Finding(
            "machine", "processor", "warning", f"{machine.cpu}, {cores}; {flags}", "Expect half speed."
        )
    memory = machine.memory_bytes
    if memory is not None:
        is_enough = memory >= MEMORY_WANTED_BYTES
        advice = "" if is_enough else "Process one clip at a time, at 720p or less."
        yield Finding("machine", "memory", "ok" if is_enough else "warning", f"{memory / 1e9:.1f} GB", advice)
    yield _disk(default_root())


def _disk(root: Path) -> Finding:
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:.1f} GB free for the models in {root}"
    if free >= DISK_WANTED_BYTES:
        return Finding("machine", "disk", "ok", detail)
    return Finding(
        "machine", "disk", "warning", detail, "Free some space, or set KEYFACE_MODEL_DIR to another folder."
    )


def _cpu_flags() -> list[str]:
    wanted = {
        "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "avx512_vnni": "VNNI",
        "amx_bf16": "AMX BF16", "asimd": "NEON",
    }  # fmt: skip
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    line = next((one for one in lines if one.lower().startswith(("flags", "features"))), "")
    found = set(line.partition(":")[2].split())
    return [label for flag, label in wanted.items() if flag in found]


def _packages() -> Iterator[Finding]:
    for requirement in metadata.requires("keyface") or ():
        head, _, marker = requirement.partition(";")
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\(?>=\s*([0-9.]+))?", head.strip())
        if match is None:
            continue
        extra = re.search(r"extra\s*==\s*[\"']([^\"']+)", marker)
        if extra and extra.group(1) == "test":
            continue
        yield _package(match.group(1), match.group(2) or "", extra.group(1) if extra else "")
    yield _opencv()


def _package(name: str, wanted: str, extra: str) -> Finding:
    install = f"pip install 'keyface[{extra}]'" if extra else f"pip install '{name}>={wanted or 0}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra:
            return Finding("packages", name, "absent", f"optional ({extra})", f"If wanted: {install}")
        return Finding("packages", name, "missing", "not installed", f"Run: {install}")
    if wanted and _numbers(version) < _numbers(wanted):
        state: State = "warning" if extra else "missing"
        return Finding("packages", name, state, f"{version}, want {wanted} or newer", f"Run: {install}")
    module = _LOADED.get(name)
    if module is not None:
        try:
            importlib.import_module(module)
        except ImportError as error:
            detail = f"{version} does not load: {error}"
            return Finding(
                "packages", name, "missing", detail, f"Run: pip install --force-reinstall '{name}'"
            )
    return Finding("packages", name, "ok", version)


def _opencv() -> Finding:
    """Comes with mediapipe; needs system libraries, and only one of its wheels may own `cv2`."""
    wheels = []
    for name in _OPENCV_WHEELS:
        try:
            wheels.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        advice = "Run: pip install opencv-contrib-python; on Debian also: apt install libgl1 libglib2.0-0."
        return Finding("packages", "opencv", "missing", f"does not load: {error}", advice)
    if len(wheels) > 1:
        advice = "Uninstall them all, then: pip install --force-reinstall opencv-contrib-python"
        return Finding("packages", "opencv", "warning", f"several own cv2: {', '.join(wheels)}", advice)
    return Finding("packages", "opencv", "ok", wheels[0] if wheels else f"cv2 {cv2.__version__}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])


def _engines() -> Iterator[Finding]:
    from keyface.engines.open import BACKENDS

    optional = {"openvino"}
    for backend in BACKENDS.values():
        kinds = ", ".join(backend.suffixes)
        if backend.is_usable:
            yield Finding("engines", backend.name, "ok", f"reads {kinds} in {', '.join(backend.precisions)}")
        elif backend.is_gpu:
            reason = backend.why_not() if backend.is_installed else "not installed"
            detail = f"for graphics cards only: {reason}"
            yield Finding("engines", backend.name, "absent", detail, f"If wanted: {backend.install}")
        elif backend.name in optional:
            yield Finding("engines", backend.name, "absent", "optional", f"If wanted: {backend.install}")
        else:
            yield Finding("engines", backend.name, "missing", f"reads {kinds}", f"Run: {backend.install}")


def _models() -> Iterator[Finding]:
    from keyface.engines.store import ModelStore

    try:
        store = ModelStore()
        states = store.verify("all")
    except (KeyfaceError, OSError) as error:
        yield Finding("models", "store", "missing", str(error))
        return
    for name, state in states.items():
        group = store.manifest[name].group
        if state == "ok":
            yield Finding("models", name, "ok", f"verified ({group})")
        elif group == "default":
            yield Finding("models", name, "missing", state, "Run: keyface models pull")
        else:
            what: State = "absent" if state == "missing" else "warning"
            yield Finding(
                "models", name, what, f"{state} ({group})", f"If wanted: keyface models pull {group}"
            )


def _encoders() -> Iterator[Finding]:
    try:
        from av import codec
    except ImportError as error:
        yield Finding("video", "libav", "missing", str(error), "Run: pip install 'av>=14'")
        return
    available: set[str] = set(codec.codecs_available)
    wanted = {"libx264": True, "aac": True, "h264": True, "hevc": False, "vp9": False, "libdav1d": False}
    for name, is_needed in wanted.items():
        if name in available:
            yield Finding("video", name, "ok", "in PyAV")
        elif is_needed:
            yield Finding(
                "video", name, "missing", "not in this PyAV", "Run: pip install --force-reinstall av"
            )
        else:
            yield Finding("video", name, "absent", "not in this PyAV: such files cannot be read")


def _devices() -> Iterator[Finding]:
    cameras = sorted(Path("/dev").glob("video*"))
    names = [f"{camera} ({_camera_name(camera)})" for camera in cameras]
    if names:
        yield Finding("devices", "cameras", "ok", ", ".join(names))
    else:
        yield Finding("devices", "cameras", "absent", "none", "Only live use needs one.")
    if platform.system() == "Linux":
        if Path("/sys/module/v4l2loopback").exists():
            yield Finding("devices", "v4l2loopback", "ok", "loaded")
        else:
            yield Finding(
                "devices",
                "v4l2loopback",
                "absent",
                "not loaded",
                "Only a virtual camera needs it: apt install v4l2loopback-dkms, then modprobe v4l2loopback.",
            )
    yield _gpu()


def _camera_name(device: Path) -> str:
    path = Path("/sys/class/video4linux") / device.name / "name"
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "no name"


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding(
            "devices", "GPU", "absent", "no NVIDIA driver", "None is needed: keyface runs on the CPU."
        )
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query, capture_output=True, text=True, timeout=10, check=True, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("devices", "GPU", "warning", f"nvidia-smi fails: {error}", "Check the NVIDIA driver.")
    cards = "; ".join(line.strip() for line in answer.stdout.splitlines() if line.strip())
    return Finding("devices", "GPU", "ok", f"{cards} (used with --preset gpu)")
