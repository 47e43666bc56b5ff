"""The second source picture: the skull's transform, its windows, and that the decoder lays it where it says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_warp_mobile import SMALL, feeds, points  # noqa: E402

from keyface.models.warp_mobile import WarpMobile, warp  # noqa: E402
from keyface.models.warp_second import (  # noqa: E402
    COLUMNS,
    FACE_ROWS,
    SKULL_POINTS,
    TEETH_ROWS,
    cut,
    feather,
    put,
    skull_transform,
    teeth_grid,
)

MOUTH = (13, 14, 78, 308)
small = st.floats(-0.25, 0.25, width=32)


def places() -> torch.Tensor:
    axis = (torch.arange(256) + 0.5) / 128 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], 2)[None]


@given(st.lists(small, min_size=6, max_size=6))
def test_an_affine_motion_of_the_skull_is_found(values: list[float]) -> None:
    linear = torch.eye(2) + torch.tensor(values[:4]).reshape(2, 2)
    driving = points(6.0, 3.0)
    source = driving.clone()
    source[..., :2] = driving[..., :2] @ linear.T + torch.tensor(values[4:])
    found = skull_transform(source, driving)[0]
    assert (found[:, :2] - linear).abs().max() < 1e-3
    assert (found[:, 2] - torch.tensor(values[4:])).abs().max() < 1e-3


def test_what_the_mouth_does_does_not_move_the_teeth() -> None:
    source, driving = points(), points(10.0)
    opened = driving.clone()
    others = [i for i in range(478) if i not in SKULL_POINTS]
    opened[:, others, 1] += 0.2
    assert torch.equal(skull_transform(source, opened), skull_transform(source, driving))


def test_points_in_one_place_give_finite_numbers() -> None:
    assert skull_transform(points(), torch.zeros(1, 478, 3)).isfinite().all()


def test_a_tooth_goes_with_the_skull() -> None:
    """A dot between the lips, of a head that moved in the plane, is where the head's motion takes it."""
    source = points()
    turn = torch.tensor([[0.99, -0.12], [0.12, 0.99]])
    driving = source.clone()
    driving[..., :2] = source[..., :2] @ turn.T + torch.tensor([0.04, -0.03])
    mouth = source[0, MOUTH, :2].mean(0)
    image = torch.full((1, 3, 256, 256), -1.0)
    x, y = ((mouth + 1) * 128 - 0.5).round().long().tolist()
    image[:, :, y - 2 : y + 3, x - 2 : x + 3] = 1.0
    shown = put(warp(image, teeth_grid(places(), skull_transform(source, driving))) + 1, TEETH_ROWS)[0, 0]
    rows, columns = torch.nonzero(shown > 1.0, as_tuple=True)
    found = torch.stack([columns.float().mean(), rows.float().mean()])
    wanted = (turn @ mouth + torch.tensor([0.04, -0.03]) + 1) * 128 - 0.5
    assert (found - wanted).norm() < 1.5


@pytest.mark.parametrize(
    ("rows", "scale"), [(FACE_ROWS, 1), (FACE_ROWS, 2), (TEETH_ROWS, 1), (TEETH_ROWS, 2)]
)
def test_what_is_cut_is_put_back(rows: tuple[int, int], scale: int) -> None:
    whole = torch.rand(2, 3, 256 // scale, 256 // scale) + 1
    back = put(cut(whole, rows, scale), rows, scale)
    assert back.shape == whole.shape
    inside = back != 0
    assert torch.equal(back[inside], whole[inside])
    height, width = rows[1] - rows[0], COLUMNS[1] - COLUMNS[0]
    assert int(inside[0, 0].sum()) == height // scale * (width // scale)


def test_a_mesh_at_rest_has_eyes_and_mouth_in_the_window() -> None:
    px = (points()[0, :, :2] + 1) * 128
    for index in (33, 263, 13, 61, 291):
        assert COLUMNS[0] + 12 < px[index, 0] < COLUMNS[1] - 12
        assert FACE_ROWS[0] + 12 < px[index, 1] < FACE_ROWS[1] - 12


def test_the_windows_edges_are_soft() -> None:
    weight = feather(TEETH_ROWS)
    assert float(weight.max()) == 1.0 and 0 < float(weight.min()) < 0.01
    assert float((weight[..., 1:] - weight[..., :-1]).abs().max()) < 0.1


def test_the_decoder_lays_the_second_picture_where_it_says() -> None:
    torch.manual_seed(0)
    model = WarpMobile(SMALL).eval()
    given_ = {name: torch.from_numpy(array) for name, array in feeds(1).items()}
    sources = [given_[name] for name in ("image", "points", "second", "second_points")]

    def shown(face: float, teeth: float) -> torch.Tensor:
        bias = model.decode.paint[0].bias
        with torch.no_grad():
            bias[16:20], bias[20:24] = face, teeth  # large against what the opening adds
            return torch.as_tensor(model(*sources, given_["driving_points"], given_["controls"]))

    nothing, face, teeth = shown(-40, -40), shown(40, -40), shown(-40, 40)
    motion = model.motion(sources[1], sources[3], given_["driving_points"], given_["controls"])
    middle = (slice(None), slice(None), slice(140, 190), slice(80, 170))
    for picture, grid, rows in ((face, motion.grid_face, FACE_ROWS), (teeth, motion.grid_teeth, TEETH_ROWS)):
        laid = put(warp(sources[2], grid), rows)
        assert (picture[middle] - laid[middle]).abs().max() < 1e-4
        about = put(torch.ones(1, 3, rows[1] - rows[0], COLUMNS[1] - COLUMNS[0]), rows) == 0
        assert torch.equal(picture[about], nothing[about])
    assert (face[middle] - nothing[middle]).abs().mean() > 0.1
