"""`keyface doctor`: findings, advice and exit codes."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from keyface.engines.open import BACKENDS, Backend
from keyface.tools import doctor_checks
from keyface.tools.doctor_checks import Finding, can_run, examine
from keyface.tools.main import main


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def _find(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def test_without_models_it_says_what_to_do(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "keyface process cannot run here yet" in output
    assert "Run: keyface models pull" in output
    assert not empty_cache.exists()


def test_json_has_every_area(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["can_run"] is False
    areas = {finding["area"] for finding in report["findings"]}
    assert areas == {"python", "machine", "packages", "engines", "models", "video", "devices"}
    for finding in report["findings"]:
        assert finding["state"] in ("ok", "missing", "warning", "absent")
        if finding["state"] in ("missing", "warning"):
            assert finding["way_out"], finding


def test_with_models_it_is_ready(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "keyface process can run here." in capsys.readouterr().out


def test_a_damaged_model_is_missing(models: Any, empty_cache: Path) -> None:
    empty_cache.mkdir()
    (empty_cache / "face_detection_yunet_2023mar.onnx").write_bytes(b"x")
    finding = _find(examine(), "yunet")
    assert (finding.state, finding.detail) == ("missing", "damaged")


def test_a_package_that_is_missing_or_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "numpy" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    findings = list(doctor_checks._packages())
    gone, old = _find(findings, "onnxruntime"), _find(findings, "numpy")
    assert gone.state == "missing" and gone.way_out == "Run: pip install 'onnxruntime>=1.20'"
    assert old.state == "missing" and old.detail == "1.0, want 1.26 or newer"
    assert not can_run(findings)


def test_an_optional_package_is_absent_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    finding = doctor_checks._package("openvino", "2024.6", "openvino")
    assert finding.state == "absent" and "pip install 'keyface[openvino]'" in finding.way_out


def _failing_import(broken: str) -> Callable[[str], ModuleType]:
    real = importlib.import_module

    def load(name: str, package: str | None = None) -> ModuleType:
        if name == broken:
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name, package)

    return load


def test_a_package_that_does_not_load_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", _failing_import("av"))
    finding = doctor_checks._package("av", "14", "")
    assert finding.state == "missing" and "does not load" in finding.detail


def test_an_opencv_without_its_libraries_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", _failing_import("cv2"))
    finding = doctor_checks._opencv()
    assert finding.state == "missing" and "apt install libgl1" in finding.way_out


def test_two_opencv_wheels_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "5.0")
    finding = doctor_checks._opencv()
    assert finding.state == "warning" and "several own cv2" in finding.detail


def test_a_back_end_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        real = BACKENDS[name]
        gone = Backend(real.name, real.suffixes, "no.module", real.install, real.precisions, real.open)
        monkeypatch.setitem(BACKENDS, name, gone)
    findings = list(doctor_checks._engines())
    assert _find(findings, "onnxruntime").state == "missing"
    assert _find(findings, "openvino").state == "absent"


def test_back_ends_for_cards_are_never_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"no.module": "not installed", "json": "no library for cards"}
    for module, reason in states.items():
        real = BACKENDS["tensorrt"]
        here = Backend(
            real.name, real.suffixes, module, real.install, real.precisions, real.open,
            why_not=lambda: "no library for cards", is_gpu=True,
        )  # fmt: skip
        monkeypatch.setitem(BACKENDS, "tensorrt", here)
        finding = _find(list(doctor_checks._engines()), "tensorrt")
        assert finding.state == "absent" and reason in finding.detail


def test_little_memory_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_checks, "MEMORY_WANTED_BYTES", 10**18)
    monkeypatch.setattr(doctor_checks, "DISK_WANTED_BYTES", 10**18)
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(tmp_path))
    findings = list(doctor_checks._machine())
    assert _find(findings, "memory").state == "warning"
    assert "KEYFACE_MODEL_DIR" in _find(findings, "disk").way_out
    assert can_run(findings)


def test_a_gpu_that_answers_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")

    def answer(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(args, 0, "Some GPU, 16 GB, 550\n", "")

    def fail(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(subprocess, "run", answer)
    assert doctor_checks._gpu() == Finding(
        "devices", "GPU", "ok", "Some GPU, 16 GB, 550 (used with --preset gpu)"
    )
    monkeypatch.setattr(subprocess, "run", fail)
    assert doctor_checks._gpu().state == "warning"
