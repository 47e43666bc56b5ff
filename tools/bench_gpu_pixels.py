"""Rows of `bench_gpu` for work on pixels: the kernels on the card, and the same with OpenCV on the host.

"detector", "crops" and "paste" are single steps on a 1080p frame that lies where it is worked on; "frame" is all of
them with a new frame each time, from host memory to host memory. A card's row is measured only after its
kernels gave the right pixels in cases that can be told without OpenCV, which a bare machine need not have.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import EngineError
from keyface.engines import device_memory, kernel_compile
from keyface.engines.card_frame import CanvasLook, CardFrame, FaceCrop, OnCard
from keyface.engines.card_paste import CardPaste, CardPasting

if TYPE_CHECKING:
    from keyface.pipeline.paste.blend import Pasting

STEPS = ("detector", "crops", "paste", "frame")
_FRAME_HW = (1080, 1920)
CANVAS = CanvasLook(
    part_xyxy=(0, 0, 1920, 1080), size_wh=(1248, 702), canvas_wh=(1248, 704), by_area=False,
    dark=40.0, lifted=80.0, most_gain=10.0,
)  # fmt: skip
MESH, _ARCFACE = 256, 112  # px of crops
_SHARES = {MESH: 1.5, _ARCFACE: 1.2}  # of a face's side
_CELLS = 14  # of the grid over a region
_TILE, _TILE_UNIT = 512, 32.0  # of the noise
_INPUT_BYTES = 4 * 3 * 1280 * 1280  # more than any input
_WARM_UPS = 5

U8 = npt.NDArray[np.uint8]
Row = dict[str, Any]


def pixel_rows(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row as its key and what measures it."""
    runners = ("opencv", "kernels") if args.device == "cuda" else ("opencv",)
    for step in STEPS:
        for n_faces in (1,) if step == "detector" else map(int, args.batches.split(",")):
            for runner in runners:
                key = f"pixels_{step}/{runner}/u8/batch{n_faces}"
                measure = on_card if runner == "kernels" else on_host
                yield key, lambda m=measure, k=key, s=step, n=n_faces: m(k, s, n, args.runs)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Scene:
    """Faces side by side in a frame of noise: one of 400 px, or more of 200 px."""

    n_faces: int

    @property
    def side(self) -> int:
        return 400 if self.n_faces == 1 else 200

    def frames(self) -> list[U8]:
        """Two, so that each shown is another than the one before; read-only, as those of the chain."""
        rng = np.random.default_rng(0)
        frames = [rng.integers(0, 256, (*_FRAME_HW, 3), np.uint8) for _ in range(2)]
        for frame in frames:
            frame.flags.writeable = False
        return frames

    def corners(self) -> list[tuple[int, int]]:
        step = _FRAME_HW[1] // (self.n_faces + 1)
        return [(step * (i + 1) - self.side // 2, 340) for i in range(self.n_faces)]

    def matrices(self, size: int) -> list[npt.NDArray[np.float32]]:
        """frame_from_crop of each face, turned a little, for a crop of `size` px."""
        step = self.side * _SHARES[size] / size
        turn = np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]) * step
        middles = [np.array(corner) + self.side / 2 for corner in self.corners()]
        moves = [middle - turn @ np.full(2, size / 2) for middle in middles]
        return [np.column_stack([turn, move]).astype(np.float32) for move in moves]

    def crops(self, image_rgb: U8, size: int) -> list[FaceCrop]:
        """For a card, as landmarks and recognisers ask for them."""
        from keyface.pipeline.faces.sampling import card_crop

        how: Any = {"border": "black"}
        if size == MESH:
            how = {"border": "repeat", "max_step": 2.0, "std": (255.0,) * 3, "planes": False}
        return [card_crop(image_rgb, matrix, size, **how) for matrix in self.matrices(size)]

    def crop_and_mask(self) -> tuple[U8, npt.NDArray[np.float32]]:
        """A virtual face of noise, and a round mask."""
        x = np.linspace(-1, 1, 160)
        mask = np.clip(4 * (1 - np.hypot(x[:, None], x[None])), 0, 1).astype(np.float32)
        return np.random.default_rng(1).integers(0, 256, (MESH, MESH, 3), np.uint8), mask

    def grid(self, rim: int) -> npt.NDArray[np.float32]:
        """Crop pixels for the cells of a face's region, and `rim` cells around them."""
        along = (np.arange(-rim, _CELLS + rim) + 0.5) * MESH / _CELLS - 0.5
        return np.stack(np.meshgrid(along, along), -1).astype(np.float32)

    def pasting_on_card(self) -> CardPasting:
        crop, mask = self.crop_and_mask()
        step = self.side / MESH / 1.3
        bent = (
            self.side if step < 1.2 else round(self.side / step)
        )  # as `blend.bent_size`, which wants OpenCV
        return CardPasting(
            crop_rgb=crop, grid=self.grid(1), mask=mask, bent_wh=(bent, bent), grain=2.0, tile_xy=(71, 193)
        )

    def pastings(self) -> list[Pasting]:
        """The same for the host."""
        from keyface.pipeline.paste.blend import Pasting
        from keyface.pipeline.paste.mask import Region

        (crop, mask), side, frame_wh = self.crop_and_mask(), self.side, (_FRAME_HW[1], _FRAME_HW[0])
        return [
            Pasting(
                Region(x, y, x + side, y + side, 160 / side, (160, 160), frame_wh), crop, self.grid(0),
                side / MESH, mask, 2.0, 1,
            )
            for x, y in self.corners()
        ]  # fmt: skip


# -- on the card


def on_card(key: str, step: str, n_faces: int, runs: int) -> Row:
    """One row by the kernels. Raises EngineError when they give wrong pixels."""
    with ExitStack() as stack:
        work = _CardWork(Scene(n_faces), stack)
        work.check()
        return row(key, *work.times(step, runs))


class _CardWork:
    """The steps on the first card; everything is given back when `stack` is left."""

    def __init__(self, scene: Scene, stack: ExitStack) -> None:
        tile = (np.random.default_rng(2).standard_normal((_TILE, _TILE)) * _TILE_UNIT).astype(np.int16)
        how: Any = {"opener": device_memory.open_device, "compiler": kernel_compile.frame_kernels}
        self._scene, self._shown, self._paste = scene, CardFrame(**how), CardPaste(tile, _TILE_UNIT, **how)
        self._device = device = device_memory.open_device()
        stack.callback(device.close)
        for part in (self._shown, self._paste):
            stack.callback(part.close)
            part.open()
        with device.active():
            self._stream, self._input = device.stream(), device.allocate(_INPUT_BYTES)
            self._first, self._second = device.event(), device.event()
        stack.callback(self._free)
        self._frames = scene.frames()
        self._target = self._frames[0].copy()
        self._pasting = scene.pasting_on_card()

    def _free(self) -> None:
        with self._device.active():
            self._device.free(self._input)
            self._device.free_stream(self._stream)
            self._device.free_event(self._first)
            self._device.free_event(self._second)

    def detector(self, image_rgb: U8) -> None:
        self._queue(self._shown.canvas(image_rgb, CANVAS))

    def crops(self, image_rgb: U8) -> None:
        for size in (MESH, _ARCFACE):
            self._queue(self._shown.crops(image_rgb, self._scene.crops(image_rgb, size), size))

    def paste(self, image_rgb: U8) -> None:
        for x, y in self._scene.corners():
            side = self._scene.side
            self._paste.paste(self._target[y : y + side, x : x + side], self._pasting)

    def frame(self, image_rgb: U8) -> None:
        for step in (self.detector, self.crops, self.paste):
            step(image_rgb)

    def _queue(self, fill: OnCard) -> None:
        fill(self._device, {"input": self._input}, self._stream)

    def times(self, step: str, runs: int) -> tuple[list[float], list[float] | None]:
        """Milliseconds in all, and on the card's own clock where all is on one stream."""
        run = getattr(self, step)
        stream = self._paste.stream if step == "paste" else self._stream
        totals, own = [], []
        for number in range(runs + _WARM_UPS):
            image_rgb = self._frames[number % 2 if step == "frame" else 0]
            with self._device.active():
                began = time.perf_counter()
                self._device.record(self._first, stream)
                run(image_rgb)
                self._device.record(self._second, stream)
                self._device.synchronise(stream)
                totals.append((time.perf_counter() - began) * 1e3)
                own.append(self._device.elapsed_ms(self._first, self._second))
        return totals[_WARM_UPS:], None if step == "frame" else own[_WARM_UPS:]

    def check(self) -> None:
        """Cases whose pixels numpy tells exactly; what pastes has tried itself out."""
        image_rgb = self._frames[0]
        part = image_rgb[40:296, 100:356]
        move = np.array([[1, 0, 100], [0, 1, 40]], np.float32)
        whole = FaceCrop(
            part_xyxy=(0, 0, 1920, 1080),
            small_wh=(1920, 1080),
            small_from_crop=move,
            border="black",
            planes=False,
        )
        self._must_be(self._shown.crops(image_rgb, [whole], MESH), part)
        halved = replace(CANVAS, size_wh=(960, 540), canvas_wh=(960, 544), by_area=True, dark=0.0)
        means = np.rint(image_rgb.reshape(540, 2, 960, 2, 3).mean((1, 3)))
        canvas = np.zeros((544, 960, 3), np.float32)
        canvas[:540] = means
        self._must_be(self._shown.canvas(image_rgb, halved), canvas[..., ::-1].transpose(2, 0, 1))

    def _must_be(self, fill: OnCard, want: npt.NDArray[Any]) -> None:
        got = np.empty(want.shape, np.float32)
        with self._device.active():
            self._queue(fill)
            self._device.copy_out(got, self._input, self._stream)
            self._device.synchronise(self._stream)
        off = float(np.abs(got - want).max())
        if not off <= 1:
            raise EngineError(f"the card's kernels are wrong by {off:g} levels.", "Nothing was measured.")


# -- on the host


def on_host(key: str, step: str, n_faces: int, runs: int) -> Row:
    """One row by OpenCV, as the pipeline does it without a card."""
    from keyface.pipeline.faces.align import cut_out
    from keyface.pipeline.faces.detect import input_nchw
    from keyface.pipeline.paste.blend import put_on_host

    scene = Scene(n_faces)
    frames, pastings = scene.frames(), scene.pastings()
    target = frames[0].copy()

    def detector(image_rgb: U8) -> None:
        input_nchw(image_rgb, CANVAS)

    def crops(image_rgb: U8) -> None:
        mesh_crops(scene, image_rgb)
        for matrix in scene.matrices(_ARCFACE):
            cut_out(image_rgb, matrix, _ARCFACE, border="black").astype(np.float32)

    def paste(image_rgb: U8) -> None:
        for pasting in pastings:
            put_on_host(target, pasting)

    def frame(image_rgb: U8) -> None:
        for run in (detector, crops, paste):
            run(image_rgb)

    steps = {"detector": detector, "crops": crops, "paste": paste, "frame": frame}
    return row(key, times_of(steps[step], frames, runs), None)


def mesh_crops(scene: Scene, image_rgb: U8) -> npt.NDArray[np.float32]:
    """float32 (N, 256, 256, 3), [0, 1], made in host memory."""
    from keyface.pipeline.faces.align import cut_out

    cut = [cut_out(image_rgb, m, MESH, border="repeat", max_step=2.0) for m in scene.matrices(MESH)]
    return np.stack(cut).astype(np.float32) / np.float32(255)


def times_of(run: Callable[[U8], None], frames: list[U8], runs: int) -> list[float]:
    """Milliseconds of each run, on one frame after the other."""
    times = []
    for number in range(runs + _WARM_UPS):
        began = time.perf_counter()
        run(frames[number % len(frames)])
        times.append((time.perf_counter() - began) * 1e3)
    return times[_WARM_UPS:]


def row(key: str, totals: list[float], own: list[float] | None) -> Row:
    """A row of the report, from milliseconds in all, and of the card's own."""
    network, runner, precision, batch = key.split("/")
    p50, p95, p99 = (round(float(v), 4) for v in np.percentile(totals, (50, 95, 99)))
    device_ms = None if own is None else round(float(np.median(own)), 4)
    return {
        "key": key, "network": network, "runner": runner, "precision": precision,
        "batch": int(batch.removeprefix("batch")), "runs": len(totals), "p50_ms": p50, "p95_ms": p95,
        "p99_ms": p99, "device_ms": device_ms, "memory_mb": None,
        "host_share": None if device_ms is None else round(max(0.0, 1 - device_ms / p50), 3),
    }  # fmt: skip
