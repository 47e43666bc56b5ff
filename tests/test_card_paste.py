"""Pasting on the card: its kernels against exact sums and against the CPU's way, its copies, and its failures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from fake_cuda import FakeCuda, FakePycuda
from generated_people import write_people
from host_kernels import compiled, kernel_card
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paper_face import a_face, a_mesh_xy, a_virtual, an_item
from property_cases import examples
from test_frame_kernels import picture

from keyface.configs.errors import DeviceError, DeviceLostError, EngineError
from keyface.engines.card_frame import CardFrame
from keyface.engines.card_paste import CardPaste
from keyface.engines.device_memory import Device
from keyface.engines.device_memory_cuda import CudaDevice
from keyface.engines.device_memory_numpy import NumpyDevice
from keyface.engines.device_memory_pycuda import PycudaDevice
from keyface.pipeline import assemble
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.paste.blend import Pasting, bent_size, put_on_host, with_rim
from keyface.pipeline.paste.mask import Region
from keyface.pipeline.paste.on_card import CardPut
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.paste.sharpness import GRAIN_TILE, GRAIN_UNIT, grain_place
from keyface.pipeline.people.key import Key
from keyface.pipeline.process import process_photo
from keyface.pipeline.process_options import ProcessOptions

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]


def card_paste(device: Device, tile: npt.NDArray[np.int16] = GRAIN_TILE) -> CardPaste:
    return CardPaste(tile, GRAIN_UNIT, opener=lambda: device, compiler=lambda architecture: compiled())


def a_pasting(
    *,
    crop_size: int = 96,
    region_wh: tuple[int, int] = (120, 140),
    scale: float = 1.0,
    grain: float = 0.0,
    is_smooth: bool = True,
    seed: int = 0,
) -> Pasting:
    rng = np.random.default_rng(seed)
    (w, h), crop = region_wh, picture(crop_size, crop_size, seed=seed, is_smooth=is_smooth)
    work = min(1.0, 160 / max(w, h))
    region = Region(
        7, 5, 7 + w, 5 + h, work, (max(4, round(w * work)), max(4, round(h * work))), (w + 20, h + 20)
    )
    nodes = region.frame_grid((14, 14)) - np.array([7 + w / 2, 5 + h / 2])
    grid = nodes / scale + crop_size / 2 + rng.normal(0, 0.5, nodes.shape)
    coarse = rng.random((6, 6)).astype(np.float32)
    mask = np.clip(cv2.resize(coarse, region.size_wh, interpolation=cv2.INTER_CUBIC) * 3 - 1, 0, 1)
    return Pasting(region, crop, grid.astype(np.float32), scale, mask.astype(np.float32), grain, 5)


def a_frame(pasting: Pasting) -> U8:
    width, height = pasting.region.frame_wh
    return picture(height, width, seed=9).copy()


# -- an exact reference


def sampled(image: F64, at_x: F64, at_y: F64, *, is_cubic: bool) -> F64:
    """Levels, rounded, between pixels, the border repeated."""
    left, top = np.floor(at_x).astype(int), np.floor(at_y).astype(int)
    across, down = weights(at_x - left, is_cubic), weights(at_y - top, is_cubic)
    total = np.zeros((*at_x.shape, 3))
    for i, row in enumerate(down):
        for j, column in enumerate(across):
            y = np.clip(top + i - 1, 0, image.shape[0] - 1)
            x = np.clip(left + j - 1, 0, image.shape[1] - 1)
            total += (row * column)[..., None] * image[y, x]
    return np.rint(total).clip(0, 255)


def weights(way: F64, is_cubic: bool) -> list[F64]:
    """Of the neighbours at -1, 0, 1 and 2."""
    if not is_cubic:
        return [0 * way, 1 - way, way, 0 * way]

    def near(d: F64) -> F64:
        return 1.25 * d**3 - 2.25 * d**2 + 1

    def far(d: F64) -> F64:
        return -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3

    return [far(way + 1), near(way), near(1 - way), far(2 - way)]


def centres(n: int, of: int) -> F64:
    """Where the middles of `n` pixels lie among `of`."""
    return (np.arange(n) + 0.5) * of / n - 0.5


def exactly(image: U8, p: Pasting) -> F64:
    """What `put_on_host` is meant to make of the frame, in float64 and without tables of weights."""
    r, out = p.region, image.astype(np.float64)
    w, h = r.x1 - r.x0, r.y1 - r.y0
    bent_wh = bent_size((w, h), p.scale)
    rim, n = with_rim(p.grid).astype(np.float64), len(p.grid)
    x, y = np.meshgrid(centres(bent_wh[0], n) + 1, centres(bent_wh[1], n) + 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    upper = rim[top, left] * (1 - fx) + rim[top, left + 1] * fx
    lower = rim[top + 1, left] * (1 - fx) + rim[top + 1, left + 1] * fx
    at = upper * (1 - fy) + lower * fy
    face = sampled(p.crop_rgb.astype(np.float64), at[..., 0], at[..., 1], is_cubic=bent_wh != (w, h))
    if bent_wh != (w, h):
        face = sampled(face, *np.meshgrid(centres(w, bent_wh[0]), centres(h, bent_wh[1])), is_cubic=True)
    if p.grain > 0.3:
        ox, oy = grain_place(p.grain_index)
        rows, columns = (np.arange(h) + oy) % len(GRAIN_TILE), (np.arange(w) + ox) % len(GRAIN_TILE)
        noise = GRAIN_TILE[rows][:, columns] * (p.grain / GRAIN_UNIT)
        face = np.rint(face + noise[..., None]).clip(0, 255)
    share = (p.mask if p.mask.shape == (h, w) else cv2.resize(p.mask, (w, h))).astype(np.float64)[..., None]
    target = out[r.y0 : r.y1, r.x0 : r.x1]
    target[:] = np.rint(target * (1 - share) + face * share)
    return out


def on_stand_in(image: U8, pasting: Pasting) -> U8:
    card, pasted = kernel_card(), image.copy()
    put = CardPut(card_paste(card))
    put.open()
    put(pasted, pasting)
    assert put.notes == []
    put.close()
    assert card.n_open == 0
    return pasted


@given(
    crop_size=st.integers(4, 60),
    region_wh=st.tuples(st.integers(8, 190), st.integers(8, 90)),
    scale=st.floats(0.2, 6),
    grain=st.sampled_from([0.0, 0.2, 2.5]),
    is_smooth=st.booleans(),
    seed=st.integers(0, 99),
)
@example(4, (8, 8), 1.0, 0.0, False, 0)
@example(60, (190, 8), 6.0, 2.5, False, 1)  # wider than the work grid, enlarged
@example(60, (33, 17), 1.56, 0.0, False, 2)  # about where enlarging begins
@settings(max_examples=examples(60))
def test_a_face_is_pasted_as_it_is_meant_to_be(
    crop_size: int, region_wh: tuple[int, int], scale: float, grain: float, is_smooth: bool, seed: int
) -> None:
    """To two levels: a level of rounding on the way may become two where bicubic weights are above one."""
    pasting = a_pasting(
        crop_size=crop_size, region_wh=region_wh, scale=scale, grain=grain, is_smooth=is_smooth, seed=seed
    )
    image = a_frame(pasting)
    difference = np.abs(on_stand_in(image, pasting) - exactly(image, pasting))
    assert difference.max() <= 2 and (difference > 1).mean() < 0.001


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.5, 1.6, 3.0])
@pytest.mark.parametrize("grain", [0.0, 3.0])
def test_it_is_nearer_to_what_is_meant_than_the_cpus_way_and_near_to_that(scale: float, grain: float) -> None:
    """OpenCV bends in steps of a 32nd of a cell and of a pixel."""
    pasting = a_pasting(crop_size=256, region_wh=(230, 280), scale=scale, grain=grain)
    image = a_frame(pasting)
    host = image.copy()
    put_on_host(host, pasting)
    card, meant = on_stand_in(image, pasting).astype(np.float64), exactly(image, pasting)
    assert np.square(card - meant).mean() <= np.square(host - meant).mean()
    assert 10 * np.log10(255**2 / np.square(card - host).mean()) > 40


def test_where_the_mask_is_empty_and_outside_the_region_no_byte_changes() -> None:
    pasting = a_pasting(grain=4.0)
    image, region = a_frame(pasting), pasting.region
    pasted = on_stand_in(image, pasting)
    full = cv2.resize(pasting.mask, (region.x1 - region.x0, region.y1 - region.y0))
    kept = np.ones(image.shape[:2], bool)
    kept[region.y0 : region.y1, region.x0 : region.x1] = full == 0
    assert 0.05 < (full == 0).mean() < 0.95
    np.testing.assert_array_equal(pasted[kept], image[kept])
    assert (pasted[~kept] != image[~kept]).mean() > 0.5


# -- host code


MAKERS: dict[str, Any] = {
    "numpy": lambda card: card,
    "cuda-python": lambda card: CudaDevice(driver=FakeCuda(card)),
    "pycuda": lambda card: PycudaDevice(driver=FakePycuda(card)),
}


@pytest.mark.parametrize("library", MAKERS)
def test_one_copy_in_and_one_out_for_a_face(library: str) -> None:
    card = kernel_card()
    paste = card_paste(MAKERS[library](card))
    paste.open()
    paste.open()
    for seed, size in enumerate(((120, 140), (60, 50), (150, 200))):
        pasting = a_pasting(region_wh=size, seed=seed)
        image = a_frame(pasting)
        card.copies.clear()
        CardPut(paste)(image, pasting)
        ways = [way for way, _ in card.copies]
        assert ways == ["in", "out"] and card.copies[1][1] == 3 * size[0] * size[1]
    paste.close()
    paste.close()
    assert card.used_bytes == 0
    with pytest.raises(EngineError, match=r"not open\. Call open"):
        CardPut(paste)(image, pasting)


def test_kernels_that_paste_something_else_are_refused_before_the_first_face(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = kernel_card()
    run_kernel = card.run_kernel

    def lazy(kernel: int, grid: Any, block: Any, arguments: Any, stream: int) -> None:
        if len(arguments) != 5:  # the last one does nothing
            run_kernel(kernel, grid, block, arguments, stream)

    monkeypatch.setattr(card, "run_kernel", lazy)
    paster = Paster(card=CardPut(card_paste(card)))
    with pytest.raises(DeviceError, match=r"pastes something else.*--frames-on-card"):
        paster.open()
    paster.close()
    assert card.n_open == 0


@pytest.mark.parametrize("after", range(1, 26, 3))
def test_wherever_the_card_is_lost_the_cpu_pastes(after: int, caplog: pytest.LogCaptureFixture) -> None:
    card = kernel_card()
    put = CardPut(card_paste(card))
    put.open()
    card.lose(after_calls=after)
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            pasting = a_pasting(seed=seed)
            image = a_frame(pasting)
            want = image.copy()
            put(image, pasting)
            put_on_host(want, pasting)
            assert np.abs(image.astype(int) - want).mean() < 2
    assert caplog.text.count("goes on on the CPU") == len(put.notes) == 1
    np.testing.assert_array_equal(image, want)  # the last one: on the CPU for certain
    put.close()


def test_with_stop_the_failure_is_the_callers_and_the_frame_is_as_it_was() -> None:
    card = kernel_card()
    put = CardPut(card_paste(card), on_loss="stop")
    put.open()
    card.lose()
    pasting = a_pasting()
    image = a_frame(pasting)
    kept = image.copy()
    with pytest.raises(DeviceLostError):
        put(image, pasting)
    np.testing.assert_array_equal(image, kept)


def test_too_little_memory_is_the_cpus_work() -> None:
    card = kernel_card(memory_bytes=GRAIN_TILE.nbytes + 60_000)
    put = CardPut(card_paste(card))
    put.open()
    pasting = a_pasting(region_wh=(300, 300))
    image = a_frame(pasting)
    put(image, pasting)
    assert "too little free memory" in put.notes[0]


# -- in the paste stage


def a_paster(card: NumpyDevice) -> Paster:
    return Paster(card=CardPut(card_paste(card)))


def test_the_stage_pastes_as_on_the_cpu_and_seals() -> None:
    driver, card = a_mesh_xy(), kernel_card()
    paster = a_paster(card)
    paster.open()
    kernels = card.n_kernels
    item = an_item((a_face(driver),), (a_virtual(driver),))
    got, want = paster.process(item), Paster().process(item)
    assert card.n_kernels == kernels + 2 and got.replaced == want.replaced != ()
    assert np.abs(got.image_rgb.astype(int) - want.image_rgb).mean() < 0.5
    paster.close()
    assert card.n_open == 0


def test_a_stage_without_the_card_asked_for_does_not_open() -> None:
    def no_card() -> Device:
        raise DeviceError("there is no NVIDIA driver here.", "Run on the CPU.")

    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        Paster(card=CardPut(CardPaste(GRAIN_TILE, GRAIN_UNIT, opener=no_card))).open()


def test_a_face_whose_paste_fails_is_mosaicked() -> None:
    driver, card = a_mesh_xy(), kernel_card()
    paster = Paster(card=CardPut(card_paste(card), on_loss="stop"))
    paster.open()
    card.lose()
    safe = paster.process(an_item((a_face(driver),), (a_virtual(driver),)))
    assert safe.replaced == () and [r.reason for r in safe.redactions] == ["stage_failed"]


def test_a_photo_through_the_whole_chain_is_that_of_the_cpu(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here no network is on a card: the analysis makes its inputs in host memory, and pasting alone is on it."""
    source = write_people(tmp_path, [3], photos=1, side_px=400) / "person-3" / "look-0.jpg"
    card = kernel_card()
    monkeypatch.setattr(
        assemble, "CardFrame", lambda: CardFrame(opener=lambda: card, compiler=lambda a: compiled())
    )
    monkeypatch.setattr(assemble, "CardPut", lambda on_loss: CardPut(card_paste(card), on_loss=on_loss))
    key, pictures, kernels = Key.generate(), [], []
    for options in (ProcessOptions(), ProcessOptions(preset="gpu", reenactor="warp", frames_on_card=True)):
        safe: list[SafeFrame] = []
        parts = assemble.make_parts(models, key, options, is_still=True)
        process_photo(source, tmp_path / "out.jpg", parts=parts, options=options, on_safe=safe.append)
        assert safe[0].replaced and not safe[0].redactions
        pictures.append(safe[0].image_rgb.astype(np.float64))
        kernels.append(card.n_kernels)
    assert kernels[0] == 0 < kernels[1] and card.n_open == 0
    assert 10 * np.log10(255**2 / np.square(pictures[0] - pictures[1]).mean()) > 40
