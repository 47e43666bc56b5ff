"""The full reenactor as ONNX: the same numbers, cached sources, and nothing that few engines know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="training code needs PyTorch: pip install 'keyface[train]'")

from facevid2vid_cases import pictures, points, small_network  # noqa: E402

from keyface.models.facevid2vid import FaceVid2Vid  # noqa: E402
from keyface.models.facevid2vid_export import export_driving, export_motion, export_source  # noqa: E402

F32 = npt.NDArray[np.float32]
VARIANTS: list[dict[str, Any]] = [
    {"decoder": "spade"},
    {"decoder": "plain"},
    {"decoder": "spade", "upscale": 2},
    {"decoder": "plain", "learns_keypoints": False, "n_keypoints": 9},
]


def run(path: Path, **inputs: torch.Tensor) -> list[F32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in inputs.items()}
    found: list[F32] = session.run(None, feeds)
    return found


def assert_near(got: F32, want: torch.Tensor) -> None:
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-3)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def assert_portable(path: Path) -> None:
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    kinds = {node.op_type for node in nodes(model.graph)}
    assert not kinds & {"GridSample", "Loop", "If", "Scan", "ATen"}
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "N" and all(d.dim_value > 0 for d in dims[1:]), value.name


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_graphs_equal_the_network(tmp_path: Path, variant: dict[str, Any]) -> None:
    """Features and keypoints of two sources, kept, then two pictures of each: as torch's to 1e-3, in any batch."""
    network = small_network(**variant)
    source, driving = tmp_path / "source.onnx", tmp_path / "driving.onnx"
    export_source(network, source)
    export_driving(network, driving)
    k = network.config.n_keypoints
    with torch.no_grad():
        features = network.appearance(pictures())
        want = network.render(features, points(k=k), points(k=k, seed=7)) * 2 - 1
    kept = run(source, image=pictures() * 2 - 1)
    assert_near(kept[0], features)
    if network.keypoints is not None:
        with torch.no_grad():
            assert_near(kept[1], network.keypoints(pictures()))
    cached = torch.from_numpy(kept[0])
    (got,) = run(driving, features=cached, source_points=points(k=k), driving_points=points(k=k, seed=7))
    assert_near(got, want)
    (single,) = run(
        driving, features=cached[:1], source_points=points(k=k)[:1], driving_points=points(k=k, seed=7)[:1]
    )
    assert_near(single, want[:1])
    assert np.ptp(got) > 0.01  # says nothing if pictures were flat
    assert_portable(source)
    assert_portable(driving)


def test_the_picture_depends_on_the_driving_keypoints(tmp_path: Path) -> None:
    network = small_network()
    export_driving(network, tmp_path / "driving.onnx")
    with torch.no_grad():
        features = network.appearance(pictures())
    found = [
        run(tmp_path / "driving.onnx", features=features, source_points=points(), driving_points=p)[0]
        for p in (points(), points() + 0.3)
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_motion_graph_equals_the_network(tmp_path: Path) -> None:
    network = small_network()
    export_motion(network, tmp_path / "motion.onnx")
    with torch.no_grad():
        want = network.motion_of(pictures())
    degrees, shift, deltas = run(tmp_path / "motion.onnx", image=pictures() * 2 - 1)
    assert_near(degrees, want.degrees)
    assert_near(shift, want.shift)
    assert_near(deltas, want.deltas)
    assert_portable(tmp_path / "motion.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_keypoints_that_are_no_numbers_give_no_picture(tmp_path: Path, value: float) -> None:
    """Nothing is read outside the volume, and the output is not finite, which engines refuse."""
    network = small_network()
    export_driving(network, tmp_path / "driving.onnx")
    wrong = points()
    wrong[1, 2, 0] = value
    (image,) = run(
        tmp_path / "driving.onnx",
        features=network.appearance(pictures()).detach(),
        source_points=points(),
        driving_points=wrong,
    )
    assert np.isfinite(image[0]).all() and not np.isfinite(image[1]).all()


def test_exporting_leaves_training_as_it_was(tmp_path: Path) -> None:
    network = small_network().train()
    export_source(network, tmp_path / "source.onnx")
    assert network.training and network.appearance.training


@pytest.mark.parametrize(
    ("export", "changes", "words"),
    [
        (export_motion, {"learns_keypoints": False}, "keypoints from outside"),
        (export_driving, {"is_spectral": True}, "for_inference"),
    ],
)
def test_what_cannot_be_exported_is_told(
    tmp_path: Path, export: Any, changes: dict[str, Any], words: str
) -> None:
    network: FaceVid2Vid = small_network(**changes)
    with pytest.raises(ValueError, match=words):
        export(network, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
