"""A frame on a graphics card, uploaded once, out of which the inputs of networks are made there.

The kernels (`frame_kernels.cu`) do what the pipeline does in host memory: a detector's resized picture, and
crops of faces, sampled and normalised. They write straight into the inputs of an engine on the same card, on
that engine's stream; the engine waits for its outputs, so that the frame may be replaced when it has run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import DeviceError, EngineError
from keyface.engines.device_memory import Bytes, Device, by_value, open_device
from keyface.engines.kernel_compile import frame_kernels

log = logging.getLogger(__name__)

MAX_CROPS = 8  # as in frame_kernels.cu: of one launch, and of one batch of the engines
_BLOCK = 16
_ROWS_OF_A_THREAD = 8  # as in frame_kernels.cu

U8 = npt.NDArray[np.uint8]
Border = Literal["repeat", "mirror", "black"]
OnCard = Callable[[Device, Mapping[str, int], int], None]

_BORDERS: dict[Border, int] = {"repeat": 0, "mirror": 1, "black": 2}
_CROP = np.dtype([
    ("small_from_crop", "<f4", 6), ("part_xyxy", "<i4", 4), ("small_wh", "<i4", 2), ("border", "<i4"),
    ("first", "<i4"), ("pixel_step", "<i4"), ("channel_step", "<i4"), ("scale", "<f4", 3), ("shift", "<f4", 3),
])  # fmt: skip
_CROPS = np.dtype([("frame_w", "<i4"), ("size", "<i4"), ("faces", _CROP, MAX_CROPS)])
_LOOK = np.dtype([
    ("frame_w", "<i4"), ("part_xyxy", "<i4", 4), ("size_wh", "<i4", 2), ("canvas_wh", "<i4", 2),
    ("by_area", "<i4"), ("dark", "<f4"), ("lifted", "<f4"), ("most_gain", "<f4"),
])  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceCrop:
    """A square crop for a network.

    Attributes:
        part_xyxy: px of the frame, the part that is shrunk by averaging areas,
        small_wh: to this size; equal to the part's: not at all.
        small_from_crop: (2, 3), from crop pixels to those of the shrunk part.
        border: what lies beyond the shrunk part.
        scale, shift: of R, G and B: what the network gets is level * scale + shift.
        planes: True for (3, size, size), False for (size, size, 3).
    """

    part_xyxy: tuple[int, int, int, int]
    small_wh: tuple[int, int]
    small_from_crop: npt.NDArray[np.floating]
    border: Border
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    planes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasLook:
    """A detector's input: a part of the frame, resized, at the top left of a black canvas; BGR planes of levels.

    Attributes:
        part_xyxy: px of the frame.
        size_wh: that the part is resized to.
        canvas_wh: of the input.
        by_area: shrinks by averaging areas, else bilinearly.
        dark, lifted, most_gain: a canvas whose mean level is below `dark` is multiplied so that it is `lifted`,
            by no more than `most_gain`.
    """

    part_xyxy: tuple[int, int, int, int]
    size_wh: tuple[int, int]
    canvas_wh: tuple[int, int]
    by_area: bool
    dark: float
    lifted: float
    most_gain: float


class CardFrame:
    """See the head of this file. Opened, used and closed on one thread.

    What `canvas` and `crops` return goes into `MadeInputs.on_card`. It raises DeviceError and its kinds, of
    which `SoftLanding` makes the CPU's work.

    Args:
        opener: opens the card whose memory holds the frame: the one that the engines use.
        compiler: gives the kernels' machine code for an architecture.

    Attributes:
        n_uploads: frames copied to the card.
    """

    def __init__(
        self,
        *,
        opener: Callable[[], Device] = open_device,
        compiler: Callable[[str], bytes] = frame_kernels,
    ) -> None:
        self._opener, self._compiler = opener, compiler
        self._device: Device | None = None
        self._code = b""
        self._kernels: dict[int, tuple[Device, dict[str, int]]] = {}
        self._memory: dict[str, tuple[int, int]] = {}  # what for: address, bytes
        self._staging: Bytes | None = None
        self._shown: U8 | None = None
        self.n_uploads = 0

    def open(self) -> None:
        """Opens the card and compiles the kernels for it. Raises DeviceError."""
        if self._device is None:
            self._device = self._opener()
            self._code = self._compiler(self._device.info.architecture)

    def canvas(self, image_rgb: U8, look: CanvasLook) -> OnCard:
        """Fills the only input, float32 (1, 3, H, W), with a look at uint8 (h, w, 3)."""
        record = np.zeros((), _LOOK)
        record["frame_w"] = image_rgb.shape[1]
        for name in ("part_xyxy", "size_wh", "canvas_wh", "by_area", "dark", "lifted", "most_gain"):
            record[name] = getattr(look, name)
        width, height = look.canvas_wh

        def fill(device: Device, addresses: Mapping[str, int], stream: int) -> None:
            (out,) = (np.uint64(address) for address in addresses.values())
            frame = self._show(image_rgb, device, stream)
            canvas, total = (
                np.uint64(self._room("canvas", 3 * width * height)),
                np.uint64(self._room("sum", 4)),
            )
            kernels, block = self._kernels_of(device), (_BLOCK, _BLOCK, 1)
            across, rows = _blocks(width), _blocks(height)
            strips = _blocks(-(-height // _ROWS_OF_A_THREAD))
            device.run_kernel(kernels["clear_sum"], (1, 1, 1), (1, 1, 1), (total,), stream)
            device.run_kernel(
                kernels["fill_canvas"],
                (across, strips, 1),
                block,
                (frame, canvas, total, by_value(record)),
                stream,
            )
            device.run_kernel(
                kernels["read_canvas"],
                (across, rows, 1),
                block,
                (canvas, out, total, by_value(record)),
                stream,
            )

        return fill

    def crops(self, image_rgb: U8, crops: Sequence[FaceCrop], size: int) -> OnCard:
        """Fills the only input, float32 (N, 3, size, size) or (N, size, size, 3), with N crops of uint8 (h, w, 3),
        in one launch. Raises EngineError for more than `MAX_CROPS`."""
        if not 1 <= len(crops) <= MAX_CROPS:
            raise EngineError(f"card frame: got {len(crops)} crops, want 1 to {MAX_CROPS} at once.")
        record = np.zeros((), _CROPS)
        record["frame_w"], record["size"] = image_rgb.shape[1], size
        for number, crop in enumerate(crops):
            face = record["faces"][number]
            for name in ("part_xyxy", "small_wh", "scale", "shift"):
                face[name] = getattr(crop, name)
            face["small_from_crop"] = np.asarray(crop.small_from_crop, np.float32).ravel()
            face["border"] = _BORDERS[crop.border]
            face["first"] = number * 3 * size * size
            face["pixel_step"], face["channel_step"] = (1, size * size) if crop.planes else (3, 1)

        def fill(device: Device, addresses: Mapping[str, int], stream: int) -> None:
            (out,) = (np.uint64(address) for address in addresses.values())
            frame = self._show(image_rgb, device, stream)
            grid = (_blocks(size), _blocks(size), len(crops))
            kernel = self._kernels_of(device)["crop_faces"]
            device.run_kernel(kernel, grid, (_BLOCK, _BLOCK, 1), (frame, out, by_value(record)), stream)

        return fill

    def close(self) -> None:
        """Frees what is held on the card, as far as it is still there."""
        device, self._device = self._device, None
        self._kernels.clear()
        self._shown = None
        if device is None:
            return
        try:
            with device.active():
                while self._memory:
                    device.free(self._memory.popitem()[1][0])
                staging, self._staging = self._staging, None
                if staging is not None:
                    device.free_pinned(staging)
        except DeviceError as error:  # a card that is lost takes its memory with it
            log.warning("the frame's memory could not be freed: %s", error)
        finally:
            device.close()

    def _show(self, image_rgb: U8, device: Device, stream: int) -> np.uint64:
        """Address of the frame's pixels. Uploads them unless they are what was uploaded last.

        The upload is waited for: other engines' streams read the frame too, and what they see must never be the
        frame before, whatever becomes of this run.
        """
        n_bytes = image_rgb.size
        address = self._room("frame", n_bytes)
        if image_rgb is self._shown and not image_rgb.flags.writeable:
            return np.uint64(address)
        self._shown = None
        staging = self._pinned(n_bytes)
        np.copyto(staging.reshape(image_rgb.shape), image_rgb)
        device.copy_in(address, staging, stream)
        device.synchronise(stream)
        self._shown = image_rgb
        self.n_uploads += 1
        return np.uint64(address)

    def _own(self) -> Device:
        if self._device is None:
            raise EngineError("the frame on the card is not open.", "Call open() first.")
        return self._device

    def _room(self, what: str, n_bytes: int) -> int:
        """Address of card memory that holds at least so much; what was in it is kept as long as it is enough."""
        address, size = self._memory.get(what, (0, 0))
        if size >= n_bytes:
            return address
        own = self._own()
        with own.active():
            if size:
                del self._memory[what]
                if what == "frame":
                    self._shown = None
                own.free(address)
            address = own.allocate(n_bytes)
        self._memory[what] = address, n_bytes
        return address

    def _pinned(self, n_bytes: int) -> Bytes:
        if self._staging is None or self._staging.size < n_bytes:
            own, old = self._own(), self._staging
            with own.active():
                self._staging = None
                if old is not None:
                    own.free_pinned(old)
                self._staging = own.pinned(n_bytes)
        return self._staging[:n_bytes]

    def _kernels_of(self, device: Device) -> dict[str, int]:
        """The kernels, loaded through this device, which frees them when it is closed."""
        known = self._kernels.get(id(device))
        if known is not None and known[0] is device:
            return known[1]
        module = device.load_module(self._code)
        names = ("clear_sum", "fill_canvas", "read_canvas", "crop_faces")
        kernels = {name: device.kernel(module, name) for name in names}
        self._kernels[id(device)] = device, kernels
        return kernels


def _blocks(n: int) -> int:
    return -(-n // _BLOCK)
