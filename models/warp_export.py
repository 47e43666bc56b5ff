"""Writes the warping reenactor as three ONNX files: weights in half precision, inputs and outputs in float32."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from keyface.models.warp_mobile import N_CONTROLS, N_POINTS, Motion, WarpDecode, WarpMobile, WarpMotion
from keyface.models.warp_second import COLUMNS, FACE_ROWS, TEETH_ROWS

OPSET = 17
MOTION_OUTPUTS = (
    "grid_64", "grid_128", "grid_256", "raster_64", "raster_128", "grid_face", "grid_teeth", "opening",
)  # fmt: skip
_SMALLEST_HALVED = 64  # numbers: shorter constants stay in float32


class _Motion(nn.Module):
    """`WarpMotion` with a tuple in place of its dataclass."""

    def __init__(self, motion: WarpMotion) -> None:
        super().__init__()
        self.motion = motion

    def forward(
        self, source: Tensor, second: Tensor, driving: Tensor, controls: Tensor
    ) -> tuple[Tensor, ...]:
        m = self.motion(source, second, driving, controls)
        return tuple(getattr(m, name) for name in MOTION_OUTPUTS)


class _Decode(nn.Module):
    """`WarpDecode` with the dataclass's tensors one by one."""

    def __init__(self, decode: WarpDecode) -> None:
        super().__init__()
        self.decode = decode

    def forward(
        self, image: Tensor, second: Tensor, features: Tensor, details: Tensor, *rest: Tensor
    ) -> Tensor:
        *motion, controls = rest
        return torch.as_tensor(self.decode(image, second, features, details, Motion(*motion), controls))


def export_warp(model: WarpMobile, folder: Path) -> dict[str, Path]:
    """Writes warp_source.onnx, warp_motion.onnx and warp_decode.onnx to a folder; returns their paths by name."""
    model = model.cpu().float().eval()
    sizes = model.sizes
    image, points = torch.zeros(1, 3, 256, 256), torch.zeros(1, N_POINTS, 3)
    controls = torch.zeros(1, 2 * N_CONTROLS)
    kept = torch.zeros(1, sizes.features, 64, 64), torch.zeros(1, sizes.details, 128, 128)
    grids = tuple(torch.zeros(1, side, side, 2) for side in (64, 128, 256))
    columns = COLUMNS[1] - COLUMNS[0]
    windows = tuple(torch.zeros(1, rows[1] - rows[0], columns, 2) for rows in (FACE_ROWS, TEETH_ROWS))
    opening = torch.zeros(1, 1, TEETH_ROWS[1] - TEETH_ROWS[0], columns)
    rasters = torch.zeros(1, sizes.coarse, 64, 64), torch.zeros(1, sizes.fine + 1, 128, 128)
    graphs = {
        "warp_source": (model.source, (image, points), ("image", "points"), ("features", "details")),
        "warp_motion": (
            _Motion(model.motion), (points, points, points, controls),
            ("source_points", "second_points", "driving_points", "controls"), MOTION_OUTPUTS,
        ),
        "warp_decode": (
            _Decode(model.decode), (image, image, *kept, *grids, *rasters, *windows, opening, controls),
            ("image", "second", "features", "details", *MOTION_OUTPUTS, "controls"), ("picture",),
        ),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, (network, inputs, input_names, output_names) in graphs.items():
        graph = stored_in_half(_traced(network, inputs, input_names, output_names))
        graph.graph.name = f"keyface_{name}"
        written[name] = folder / f"{name}.onnx"
        onnx.save(graph, str(written[name]))
    return written


def _traced(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # PyTorch recommends its newer exporter, which needs a further package and gives the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, inputs, buffer, input_names=list(input_names), output_names=list(output_names),
            dynamic_axes={name: {0: "N"} for name in (*input_names, *output_names)}, opset_version=OPSET,
            dynamo=False,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def stored_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, whose larger float32 weights are kept as float16 and cast when it is opened.

    Raises:
        ValueError: a weight does not fit into half precision.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or int(np.prod(weight.dims)) < _SMALLEST_HALVED:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        largest = float(np.abs(values).max())
        if not largest <= float(np.finfo(np.float16).max):
            raise ValueError(f"{name}: the largest weight is {largest}, too large for half precision")
        half = values.astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(
            helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    model.doc_string = ""
    onnx.checker.check_model(model)
    return model
