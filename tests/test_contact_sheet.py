"""Contact sheets: size, order, any picture size."""

from __future__ import annotations

import numpy as np
import pytest

from keyface.pipeline.media.contact_sheet import contact_sheet, evenly


def flat(colour: tuple[int, int, int], size_wh: tuple[int, int] = (40, 30)) -> np.ndarray:
    return np.full((size_wh[1], size_wh[0], 3), colour, np.uint8)


def test_places_rows_and_columns_in_order() -> None:
    red, green, blue = flat((200, 0, 0)), flat((0, 200, 0)), flat((0, 0, 200))
    sheet = contact_sheet([("one", [red, green]), ("two", [blue])], cell_px=60, gap_px=4, label_px=20)
    assert sheet.shape == (4 + 2 * 84, 4 + 2 * 64, 3) and sheet.dtype == np.uint8
    assert tuple(sheet[4 + 20 + 30, 4 + 30]) == (200, 0, 0)
    assert tuple(sheet[4 + 20 + 30, 4 + 64 + 30]) == (0, 200, 0)
    assert tuple(sheet[4 + 84 + 20 + 30, 4 + 30]) == (0, 0, 200)


@pytest.mark.parametrize("size_wh", [(1, 1), (500, 20), (20, 500), (333, 777)])
def test_fits_any_picture_without_distortion(size_wh: tuple[int, int]) -> None:
    sheet = contact_sheet([("", [flat((0, 0, 0), size_wh)])], cell_px=64, gap_px=2, label_px=10)
    dark = np.argwhere(sheet.max(axis=2) < 30)
    height, width = np.ptp(dark, axis=0) + 1
    assert max(width, height) == 64
    assert abs(width / height - size_wh[0] / size_wh[1]) <= 0.5 * max(size_wh) / min(size_wh)


def test_refuses_an_empty_sheet_and_odd_pictures() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([("nothing", [])])
    with pytest.raises(ValueError, match="want uint8"):
        contact_sheet([("grey", [np.zeros((4, 4), np.uint8)])])


@pytest.mark.parametrize(("total", "count"), [(200, 7), (7, 7), (3, 7), (1, 1)])
def test_picks_moments_evenly(total: int, count: int) -> None:
    picked = evenly((flat((index, 0, 0)) for index in range(total)), count=count, total=total)
    assert len(picked) == min(count, total)
    places = [int(image[0, 0, 0]) for image in picked]
    assert places == sorted(places)
    if total > count:
        assert max(np.diff(places)) - min(np.diff(places)) <= 1
