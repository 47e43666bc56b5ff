"""What a measurement ran on: processor, cores, memory, system, and the versions of what matters."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "keyface", "numpy", "onnxruntime", "openvino", "ai-edge-litert", "mediapipe", "av",
    "opencv-contrib-python",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer. `cores` counts the logical cores that this process may use."""

    cpu: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe_machine() -> Machine:
    """Looks at this computer; starts nothing."""
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def package_versions() -> dict[str, str]:
    """Installed versions of keyface and of what it runs on; packages that are missing are left out."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Logical cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
