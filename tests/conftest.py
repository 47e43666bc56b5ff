"""Fixtures shared by all tests: data folders, models, and small clips that show nobody."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from property_cases import load_profile

# A shell that starts the tests in the background has Ctrl-C ignored, and every program they start would inherit
# that: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

load_profile()

MakeClip = Callable[..., Path]

_REPO = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test that asks for `models` is slow, every one that asks for `shared_dir` is shared; slow ones
    run last."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "models" in names:
            item.add_marker(pytest.mark.slow)
        if "shared_dir" in names:
            item.add_marker(pytest.mark.shared)
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before() -> None:
    """Random numbers that a test does not seed are the same in every order of tests."""
    random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with evaluation data (`data/`), from KEYFACE_SHARED or beside the repository."""
    folder = Path(os.environ.get("KEYFACE_SHARED") or _REPO.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no evaluation data in {folder}: set KEYFACE_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def models() -> Iterator[object]:
    """A `ModelStore` whose default group is present and verified; pulled once, then from the cache."""
    from keyface.engines.store import ModelStore

    store = ModelStore()
    store.ensure("default")
    yield store


@pytest.fixture
def texture() -> Callable[..., npt.NDArray[np.uint8]]:
    """Makes a random texture that stands for a face: `texture(size_wh=(64, 64), seed=7)`, uint8 (H, W, 3)."""

    def make(size_wh: tuple[int, int] = (64, 64), seed: int = 7) -> npt.NDArray[np.uint8]:
        width, height = size_wh
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    return make


@pytest.fixture
def moving_image() -> Callable[..., npt.NDArray[np.uint8]]:
    """Makes a smooth picture that differs from frame to frame: `moving_image(index, size_wh=(96, 64))`."""
    return _moving_image


def _moving_image(index: int, size_wh: tuple[int, int] = (96, 64)) -> npt.NDArray[np.uint8]:
    width, height = size_wh
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    waves = [127 + 100 * np.sin((x + k * y) / (9.0 + k) + 0.2 * index + k) for k in range(3)]
    image: npt.NDArray[np.uint8] = np.stack(np.broadcast_arrays(*waves), axis=-1).astype(np.uint8)
    return image


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """Writes a small clip without faces: `make_clip("a.mp4", n_frames=12, size_wh=(96, 64), fps=25)`.

    `codec` and `pix_fmt` choose the coding, `with_audio` adds a sine tone. Returns the path.
    """

    def make(
        name: str = "clip.mp4",
        *,
        n_frames: int = 12,
        size_wh: tuple[int, int] = (96, 64),
        fps: int = 25,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        with_audio: bool = False,
        folder: Path | None = None,
    ) -> Path:
        path = (folder or tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_clip(path, n_frames, size_wh, fps, codec, pix_fmt, with_audio)
        return path

    return make


def _write_clip(
    path: Path, n_frames: int, size_wh: tuple[int, int], fps: int, codec: str, pix_fmt: str, with_audio: bool
) -> None:
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps)
        video.width, video.height = size_wh
        video.pix_fmt = pix_fmt
        video.time_base = Fraction(1, fps)
        audio = container.add_stream("aac", rate=44100, layout="mono") if with_audio else None
        for index in range(n_frames):
            frame = av.VideoFrame.from_ndarray(_moving_image(index, size_wh), format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            _write_tone(container, audio, n_frames / fps)


def _write_tone(container: object, stream: object, duration_s: float) -> None:
    import av

    t = np.arange(int(44100 * duration_s), dtype=np.float32) / 44100
    tone = (0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    for start in range(0, len(tone), 1024):
        chunk = np.ascontiguousarray(tone[start : start + 1024][None, :])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate = 44100
        frame.pts = start
        frame.time_base = Fraction(1, 44100)
        container.mux(stream.encode(frame))  # type: ignore[attr-defined]
    container.mux(stream.encode())  # type: ignore[attr-defined]


@pytest.fixture
def mesh_at() -> Callable[..., object]:
    """Makes an upright `FaceMesh` that fills a detector's box: `mesh_at((x0, y0, x1, y1), score=0.99)`."""
    from keyface.pipeline.face import FaceMesh
    from keyface.pipeline.faces.canonical import CANONICAL_XYZ
    from keyface.pipeline.faces.geometry import box_from_mesh, pose_from_mesh

    def make(box_xyxy: npt.ArrayLike, *, score: float = 0.99) -> FaceMesh:
        box = np.asarray(box_xyxy, np.float32)
        points = np.vstack([CANONICAL_XYZ, np.repeat(CANONICAL_XYZ[[33, 263]], 5, 0)]) * [1, -1, -1]
        points = points.astype(np.float32)
        for _ in range(2):  # size, then place
            own = box_from_mesh(points)
            points *= (box[3] - box[1]) / (own[3] - own[1])
            own = box_from_mesh(points)
            points[:, :2] += (box[:2] + box[2:]) / 2 - (own[:2] + own[2:]) / 2
        return FaceMesh(points, np.zeros(52, np.float32), pose_from_mesh(points), score)

    return make
