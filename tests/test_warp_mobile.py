"""The warping reenactor's networks: geometry, export, and a training that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from test_keypoints import mesh  # noqa: E402

from keyface.models.warp_export import export_warp, stored_in_half  # noqa: E402
from keyface.models.warp_mobile import COARSE_POINTS, FINE_POINTS, Spread, WarpMobile, WarpSizes, warp  # noqa: E402
from keyface.pipeline.reenact.keypoints import unit_points  # noqa: E402

SMALL = WarpSizes(features=8, details=4, coarse=4, fine=4, middle=8, deep=12, shallow=8)


def points(yaw: float = 0.0, pitch: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(unit_points(mesh(yaw, pitch).points_xyz, 256))[None]


def feeds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    source = np.concatenate([points().numpy()] * n)
    driving = np.concatenate([points(8.0 * i - 10).numpy() for i in range(n)])
    return {
        "image": rng.uniform(-1, 1, (n, 3, 256, 256)).astype(np.float32), "points": source,
        "second": rng.uniform(-1, 1, (n, 3, 256, 256)).astype(np.float32),
        "source_points": source, "second_points": np.concatenate([points(2.0).numpy()] * n),
        "driving_points": driving,
        "controls": rng.uniform(0, 1, (n, 108)).astype(np.float32),
    }  # fmt: skip


def test_landmarks_that_stay_shift_nothing() -> None:
    with torch.no_grad():
        shift, raster, near = Spread(64, COARSE_POINTS, 4)((points(),), points())
    assert shift.abs().max() < 1e-6
    assert raster.shape == (1, 4, 64, 64) and float(near.min()) >= 0 and float(near.max()) <= 1


def test_all_landmarks_moved_alike_shift_every_place_alike() -> None:
    moved = points() + torch.tensor([0.1, -0.05, 0.0])
    shift, _, _ = Spread(64, COARSE_POINTS, 4)((points(),), moved)
    assert (shift[0, 0] + 0.1).abs().max() < 1e-5
    assert (shift[0, 1] - 0.05).abs().max() < 1e-5


def test_at_a_landmark_its_own_shift_counts() -> None:
    source, driving = points(), points(15.0)
    spread = Spread(128, FINE_POINTS, 4, width=0.005)
    shift, _, _ = spread((source,), driving)
    corner = 33  # the outer corner of an eye stands alone
    x, y = ((driving[0, corner, :2] + 1) * 64 - 0.5).round().long().tolist()
    wanted = (source - driving)[0, corner, :2]
    assert (shift[0, :, y, x] - wanted).abs().max() < 0.03


def test_of_two_sources_each_has_its_own_shift() -> None:
    one, other, driving = points(), points(9.0, -4.0), points(15.0)
    spread = Spread(64, COARSE_POINTS, 4)
    both, raster, near = spread((one, other), driving)
    for part, source in ((both[:, :2], one), (both[:, 2:], other)):
        alone = spread((source,), driving)
        assert (part - alone[0]).abs().max() < 1e-5
        assert torch.equal(near, alone[2]) and (raster - alone[1]).abs().max() < 1e-5


def test_an_untrained_network_follows_the_mesh() -> None:
    """A dot on a cheek goes where its landmark goes, before anything is learnt."""
    torch.manual_seed(0)
    model = WarpMobile(SMALL).eval()
    source, driving = points(), points(14.0, 6.0)
    cheek = 205
    image = torch.full((1, 3, 256, 256), -1.0)
    x, y = ((source[0, cheek, :2] + 1) * 128 - 0.5).round().long().tolist()
    image[:, :, y - 3 : y + 4, x - 3 : x + 4] = 1.0
    with torch.no_grad():
        motion = model.motion(source, source, driving, torch.zeros(1, 108))
        moved = warp(image, motion.grid_256)[0, 0]
    rows, columns = torch.nonzero(moved > 0.0, as_tuple=True)
    found = torch.stack([columns.float().mean(), rows.float().mean()])
    wanted = (driving[0, cheek, :2] + 1) * 128 - 0.5
    assert (found - wanted).norm() < 4.0 < (wanted - torch.tensor([x, y])).norm()


def test_the_exported_graphs_give_what_torch_gives_for_any_number_of_faces(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = WarpMobile(SMALL).eval()
    for part in model.parameters():
        part.data = part.data.half().float()  # as they are stored
    files = export_warp(model, tmp_path)
    assert sorted(path.name for path in files.values()) == [
        "warp_decode.onnx", "warp_motion.onnx", "warp_source.onnx",
    ]  # fmt: skip
    sessions = {n: ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for n, p in files.items()}

    def run(name: str, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = sessions[name]
        found = session.run(None, {i.name: known[i.name] for i in session.get_inputs()})
        return known | dict(zip((o.name for o in session.get_outputs()), found, strict=True))

    for n in (1, 3):
        known = run("warp_decode", run("warp_motion", run("warp_source", feeds(n))))
        given = {k: torch.from_numpy(v) for k, v in feeds(n).items()}
        with torch.no_grad():
            sources = [given[name] for name in ("image", "points", "second", "second_points")]
            wanted = model(*sources, given["driving_points"], given["controls"])
        assert known["picture"].shape == (n, 3, 256, 256)
        assert known["picture"] == pytest.approx(wanted.numpy(), abs=2e-3)
    for path in files.values():
        graph = onnx.load(str(path)).graph
        large = [i for i in graph.initializer if int(np.prod(i.dims)) >= 64]
        assert large and all(i.data_type != onnx.TensorProto.FLOAT for i in large)


def test_a_weight_too_large_for_half_precision_is_refused() -> None:
    weight = onnx.numpy_helper.from_array(np.full((1, 100), 1e6, np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 100])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 100])], [weight],
    )  # fmt: skip
    with pytest.raises(ValueError, match="too large for half"):
        stored_in_half(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
