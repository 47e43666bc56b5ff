"""The last steps of pasting a face, on a graphics card: the crop bent over its region, grain, and the blend.

Only the face's region of the frame goes to the card and comes back, with the crop, the grid and the mask, in one
copy each way. The kernels (`frame_kernels.cu`) do what `pipeline.paste` does in host memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import DeviceError, EngineError
from keyface.engines.device_memory import Bytes, Device, by_value, open_device
from keyface.engines.kernel_compile import frame_kernels

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_BLOCK = 16
_ALIGNED = 256
_BEND = np.dtype([("crop_size", "<i4"), ("cells", "<i4"), ("size_wh", "<i4", 2), ("cubic", "<i4")])
_PASTE = np.dtype([
    ("size_wh", "<i4", 2), ("bent_wh", "<i4", 2), ("mask_wh", "<i4", 2), ("tile_size", "<i4"),
    ("tile_xy", "<i4", 2), ("grain", "<f4"),
])  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPasting:
    """What is pasted over one region.

    Attributes:
        crop_rgb: uint8 (S, S, 3).
        grid: float32 (n + 2, n + 2, 2), crop pixels for the centres of n by n cells of the region and a rim of
            one cell around them.
        mask: float32 (h, w), [0, 1], enlarged to the region.
        bent_wh: px at which the crop is bent; smaller than the region: bicubically, and enlarged so.
        grain: standard deviation in levels; 0: none.
        tile_xy: where in the noise the region begins.
    """

    crop_rgb: U8
    grid: F32
    mask: F32
    bent_wh: tuple[int, int]
    grain: float
    tile_xy: tuple[int, int]


class CardPaste:
    """See the head of this file. Opened, used and closed on one thread.

    Args:
        tile: int16 (n, n), noise of standard deviation `tile_unit`.
        tile_unit: see `tile`.
        opener: opens the card.
        compiler: gives the kernels' machine code for an architecture.

    Attributes:
        stream: on which all is queued; 0 before `open`.
    """

    def __init__(
        self,
        tile: npt.NDArray[np.int16],
        tile_unit: float,
        *,
        opener: Callable[[], Device] = open_device,
        compiler: Callable[[str], bytes] = frame_kernels,
    ) -> None:
        self._tile, self._tile_unit = np.ascontiguousarray(tile), tile_unit
        self._opener, self._compiler = opener, compiler
        self._device: Device | None = None
        self._kernels: dict[str, int] = {}
        self.stream = self._tile_at = 0
        self._memory: dict[str, tuple[int, int]] = {}  # what for: address, bytes
        self._staging: Bytes | None = None

    def open(self) -> None:
        """Opens the card, compiles the kernels, uploads the noise and tries all that on a small picture.

        Raises:
            DeviceError: one of these fails, or the picture is not what it must be.
        """
        if self._device is not None:
            return
        self._device = device = self._opener()
        try:
            with device.active():
                module = device.load_module(self._compiler(device.info.architecture))
                self._kernels = {name: device.kernel(module, name) for name in ("bend_crop", "paste_face")}
                self.stream = device.stream()
                self._tile_at = self._room("tile", self._tile.nbytes)
                device.copy_in(self._tile_at, self._tile, self.stream)
                device.synchronise(self.stream)
            self._try_out()
        except BaseException:
            self.close()
            raise

    def paste(self, region_rgb: U8, pasting: CardPasting) -> None:
        """Writes over uint8 (h, w, 3), a part of the frame, in place, once all of it came back.

        Raises:
            DeviceError: the card failed; nothing was written.
        """
        device = self._device
        if device is None:
            raise EngineError("pasting on the card is not open.", "Call open() first.")
        height, width = region_rgb.shape[:2]
        parts: tuple[npt.NDArray[Any], ...] = (region_rgb, pasting.crop_rgb, pasting.grid, pasting.mask)
        with device.active():
            places, n_bytes = _laid_out(parts)
            block, host = self._room("block", n_bytes), self._pinned(n_bytes)
            for part, place in zip(parts, places, strict=True):
                np.copyto(host[place : place + part.nbytes].view(part.dtype).reshape(part.shape), part)
            bent = np.uint64(self._room("bent", 3 * pasting.bent_wh[0] * pasting.bent_wh[1]))
            region, crop, grid, mask = (np.uint64(block + place) for place in places)
            device.copy_in(block, host[:n_bytes], self.stream)
            self._run("bend_crop", pasting.bent_wh, (crop, grid, bent, _bend(pasting, (width, height))))
            paste = self._paste_record(pasting, (width, height))
            arguments = (bent, mask, np.uint64(self._tile_at), region, paste)
            self._run("paste_face", (width, height), arguments)
            device.copy_out(host[: region_rgb.size], block, self.stream)
            device.synchronise(self.stream)
        region_rgb[:] = host[: region_rgb.size].reshape(region_rgb.shape)

    def close(self) -> None:
        """Frees what is held on the card, as far as it is still there; twice is allowed."""
        device, self._device = self._device, None
        if device is None:
            return
        try:
            with device.active():
                while self._memory:
                    device.free(self._memory.popitem()[1][0])
                staging, self._staging = self._staging, None
                if staging is not None:
                    device.free_pinned(staging)
                stream, self.stream = self.stream, 0
                if stream:
                    device.free_stream(stream)
        except DeviceError as error:  # a card that is lost takes its memory with it
            log.warning("the memory for pasting could not be freed: %s", error)
        finally:
            self._memory.clear()
            self._kernels.clear()
            device.close()

    def _try_out(self) -> None:
        """A grey face over the left half of a black picture: kernels that write something else leave faces bare."""
        picture, mask = np.zeros((40, 48, 3), np.uint8), np.zeros((40, 48), np.float32)
        mask[:, :24] = 1
        grid = np.full((6, 6, 2), 4, np.float32)
        for bent_wh in ((48, 40), (12, 10)):
            region = picture.copy()
            crop = np.full((9, 9, 3), 200, np.uint8)
            self.paste(
                region,
                CardPasting(crop_rgb=crop, grid=grid, mask=mask, bent_wh=bent_wh, grain=0.0, tile_xy=(0, 0)),
            )
            if not ((region[:, :24] == 200).all() and (region[:, 24:] == 0).all()):
                raise DeviceError(
                    "the card pastes something else than it was given.", "Leave out --frames-on-card."
                )

    def _run(self, kernel: str, size_wh: tuple[int, int], arguments: tuple[np.generic, ...]) -> None:
        assert self._device is not None
        grid = (-(-size_wh[0] // _BLOCK), -(-size_wh[1] // _BLOCK), 1)
        self._device.run_kernel(self._kernels[kernel], grid, (_BLOCK, _BLOCK, 1), arguments, self.stream)

    def _paste_record(self, pasting: CardPasting, size_wh: tuple[int, int]) -> np.generic:
        record = np.zeros((), _PASTE)
        record["size_wh"], record["bent_wh"] = size_wh, pasting.bent_wh
        record["mask_wh"] = pasting.mask.shape[::-1]
        record["tile_size"], record["tile_xy"] = len(self._tile), pasting.tile_xy
        record["grain"] = pasting.grain / self._tile_unit
        return by_value(record)

    def _room(self, what: str, n_bytes: int) -> int:
        """Address of card memory that holds at least so much, with nothing sure in it."""
        address, size = self._memory.get(what, (0, 0))
        if size >= n_bytes:
            return address
        assert self._device is not None
        if size:
            del self._memory[what]
            self._device.free(address)
        address = self._device.allocate(n_bytes)
        self._memory[what] = address, n_bytes
        return address

    def _pinned(self, n_bytes: int) -> Bytes:
        assert self._device is not None
        if self._staging is None or self._staging.size < n_bytes:
            old, self._staging = self._staging, None
            if old is not None:
                self._device.free_pinned(old)
            self._staging = self._device.pinned(n_bytes)
        return self._staging


def _laid_out(parts: tuple[npt.NDArray[Any], ...]) -> tuple[list[int], int]:
    """Where each part begins in one block, aligned, and the block's size."""
    places, end = [], 0
    for part in parts:
        places.append(end)
        end += -(-part.nbytes // _ALIGNED) * _ALIGNED
    return places, end


def _bend(pasting: CardPasting, size_wh: tuple[int, int]) -> np.generic:
    record = np.zeros((), _BEND)
    record["crop_size"], record["cells"] = len(pasting.crop_rgb), len(pasting.grid) - 2
    record["size_wh"], record["cubic"] = pasting.bent_wh, pasting.bent_wh != size_wh
    return by_value(record)
