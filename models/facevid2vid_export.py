"""Writes the full reenactor as ONNX: one graph per source, one per frame, and one that reads a driver's motion.

No graph has a 5-D GridSample, which few engines know. Opset 17, float32, dynamic batch. Pictures are RGB in [-1, 1]
outside, as those of every other network of the chain, and in [0, 1] inside, as the public layout was trained.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from keyface.models.facevid2vid import FaceVid2Vid

OPSET = 17
Shapes = dict[str, tuple[int, ...]]


class _Graph(nn.Module):
    def __init__(self, network: FaceVid2Vid) -> None:
        super().__init__()
        self.network = network


class _Source(_Graph):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        unit = image * 0.5 + 0.5
        if self.network.keypoints is None:
            return (self.network.appearance(unit),)
        return self.network.source(unit)


class _Driving(_Graph):
    def forward(self, features: Tensor, source_points: Tensor, driving_points: Tensor) -> Tensor:
        return self.network.render(features, source_points, driving_points) * 2 - 1


class _Motion(_Graph):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.network.motion_of(image * 0.5 + 0.5)
        return found.degrees, found.shift, found.deltas


def export_source(network: FaceVid2Vid, path: Path) -> None:
    """`image` (N, 3, S, S) -> `features` (N, 32, 16, S/4, S/4), `canonical_points` (N, K, 3): kept for each source.

    Without a keypoint detector, `features` alone.

    Raises:
        ValueError: the network has spectral norm, which is for training.
    """
    c = network.config
    outputs: Shapes = {"features": (c.volume_channels, *c.volume_dhw)}
    if network.keypoints is not None:
        outputs["canonical_points"] = (c.n_keypoints, 3)
    _export(_Source(network), {"image": (3, c.side_px, c.side_px)}, outputs, path)


def export_driving(network: FaceVid2Vid, path: Path) -> None:
    """`features`, `source_points` (N, K, 3), `driving_points` (N, K, 3) -> `image` (N, 3, S, S): run for each frame.

    Raises:
        ValueError: the network has spectral norm, which is for training.
    """
    c = network.config
    points, side = (c.n_keypoints, 3), c.side_px * c.upscale
    inputs = {
        "features": (c.volume_channels, *c.volume_dhw),
        "source_points": points,
        "driving_points": points,
    }
    _export(_Driving(network), inputs, {"image": (3, side, side)}, path)


def export_motion(network: FaceVid2Vid, path: Path) -> None:
    """`image` (N, 3, S, S) -> `degrees` (N, 3) yaw, pitch, roll, `shift` (N, 3), `deltas` (N, K, 3).

    Raises:
        ValueError: the network takes keypoints from outside, or has spectral norm.
    """
    if network.pose is None:
        raise ValueError("this network takes keypoints from outside: it has no motion to export")
    c = network.config
    outputs: Shapes = {"degrees": (3,), "shift": (3,), "deltas": (c.n_keypoints, 3)}
    _export(_Motion(network), {"image": (3, c.side_px, c.side_px)}, outputs, path)


def export_facevid2vid(network: FaceVid2Vid, folder: Path) -> dict[str, Path]:
    """Writes facevid2vid_source.onnx, facevid2vid_driving.onnx and, of a network that learns keypoints,
    facevid2vid_motion.onnx to a folder, which is made; returns their paths: "source", "driving", "motion".

    Raises:
        ValueError: the network has spectral norm, which is for training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exports = {"source": export_source, "driving": export_driving}
    if network.pose is not None:
        exports["motion"] = export_motion
    written = {}
    for name, export in exports.items():
        written[name] = folder / f"facevid2vid_{name}.onnx"
        export(network, written[name])
    return written


def _export(graph: _Graph, inputs: Shapes, outputs: Shapes, path: Path) -> None:
    """Shapes are without the batch."""
    if graph.network.config.is_spectral:
        raise ValueError(
            "a network with spectral norm is for training: export its facevid2vid_layout.for_inference"
        )
    was_training = graph.network.training
    written = BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # The tracing exporter is the one that needs no further package; that it is an older one is known.
        warnings.simplefilter("ignore", DeprecationWarning)
        # All sizes but the batch's are meant to be constants of the graph.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # SPADE's norm takes each picture's own mean and deviation at any time, as in training.
        warnings.filterwarnings("ignore", message=".*operator 'instance_norm' is set to train=True")
        torch.onnx.export(
            graph.eval(),
            tuple(torch.zeros(1, *shape) for shape in inputs.values()),
            written,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "N"} for name in [*inputs, *outputs]},
            opset_version=OPSET,
            dynamo=False,
        )
    graph.network.train(was_training)
    model = onnx.load_model_from_string(written.getvalue())
    for value in model.graph.output:  # the exporter loses sight of them behind the lookups
        dims = ["N", *outputs[value.name]]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, dims))
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))
