"""Times the chain's networks, and all of them together, in PyTorch on a card: eager, compiled, as a CUDA graph.

Every timing is from host memory to host memory: upload, compute, download, wait. `device_ms` is the part
between two events on the card's own clock; what is left of the total is the host's share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.onnx_graph import OnnxGraph

Mode = Literal["eager", "compiled", "cuda_graph"]
DeviceName = Literal["cuda", "cpu"]
YUNET_SIZE = (384, 640)  # height, width, px
_FRAME_SIZE = (1080, 1920)
_WARM_UPS = 3

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCase:
    """What to time.

    Attributes:
        network: name of an ONNX file without its suffix, or "chain" for all of them on a 1080p frame.
        mode: how PyTorch runs it.
        batch: items, or faces of the frame.
        is_half: float16 in place of float32.
    """

    network: str
    mode: Mode
    batch: int
    is_half: bool

    def key(self) -> str:
        """Tells one case from another in a report."""
        precision = "f16" if self.is_half else "f32"
        return f"{self.network}/torch-{self.mode}/{precision}/batch{self.batch}"


class FrameChain(nn.Module):
    """The networks and the pixels of the chain on one frame, without its bookkeeping, decoding and encoding.

    Shrinks the frame for the detector, cuts out every face three times (landmarks, recognition, and its
    place), renders as many virtual faces and blends them in. Where faces lie is fixed: what the detector says
    is downloaded, as the bookkeeping on the host needs it, and does not steer.

    `forward(frame)`: uint8 (1080, 1920, 3) RGB -> uint8 of the same shape, then the small outputs.
    """

    def __init__(self, graphs: Mapping[str, OnnxGraph], n_faces: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.graphs, self.dtype = nn.ModuleDict(dict(graphs)), dtype
        height, width = _FRAME_SIZE
        centres = torch.linspace(-0.8, 0.8, n_faces) if n_faces > 1 else torch.zeros(1)
        half = 0.09  # of the frame's width
        affine = torch.zeros(n_faces, 2, 3)
        affine[:, 0, 0], affine[:, 1, 1], affine[:, 0, 2] = half, half * width / height, centres
        back = torch.zeros(n_faces, 2, 3)
        back[:, 0, 0], back[:, 1, 1], back[:, 0, 2] = 1 / half, height / (half * width), -centres / half
        y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
        mask = (1 - torch.hypot(x, y)).clamp(0, 0.2) * 5
        self.register_buffer("crop_from_frame", affine.to(dtype))
        self.register_buffer("frame_from_crop", back.to(dtype))
        self.register_buffer("mask", mask.to(dtype)[None, None])
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("w_plus", torch.randn(n_faces, 23, 512, generator=generator).to(dtype) * 0.3)

    def _crops(self, image: Tensor, side: int) -> Tensor:
        n_faces = self.crop_from_frame.shape[0]
        grid = F.affine_grid(self.crop_from_frame, [n_faces, 3, side, side], align_corners=False)
        return F.grid_sample(image.expand(n_faces, -1, -1, -1), grid, align_corners=False)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        image = frame.to(self.dtype).permute(2, 0, 1)[None]
        small = F.interpolate(image, size=YUNET_SIZE, mode="bilinear", align_corners=False)
        found = self.graphs["yunet_dynamic"](small.flip(1))
        points, presence = self.graphs["face_mesh"]((self._crops(image, 256) / 255).permute(0, 2, 3, 1))[:2]
        embeddings = self.graphs["sface_fast"](self._crops(image, 112))
        faces = (self.graphs["synthesis_256"](self.w_plus)[0] + 1) * 127.5
        # Colour match: mean and deviation of what is there.
        there = self._crops(image, 256)
        mean, deviation = there.mean((2, 3), keepdim=True), there.std((2, 3), keepdim=True)
        faces = (faces - faces.mean((2, 3), keepdim=True)) / (
            faces.std((2, 3), keepdim=True) + 1
        ) * deviation + mean
        n_faces, (height, width) = len(faces), _FRAME_SIZE
        grid = F.affine_grid(self.frame_from_crop, [n_faces, 4, height, width], align_corners=False)
        layers = torch.cat([faces, self.mask.expand(n_faces, -1, -1, -1)], 1)
        placed = F.grid_sample(layers, grid, align_corners=False)
        alpha = placed[:, 3:]
        out = image * (1 - alpha.sum(0, keepdim=True).clamp(0, 1)) + (placed[:, :3] * alpha).sum(
            0, keepdim=True
        )
        pixels = out[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8)
        return (pixels, points, presence, *embeddings, *found)


def load_graphs(folder: Path, names: tuple[str, ...]) -> dict[str, OnnxGraph]:
    """`folder/NAME.onnx` of each name. Raises ValueError for a graph that is not covered."""
    return {name: OnnxGraph(folder / f"{name}.onnx") for name in names}


CHAIN_NETWORKS = ("yunet_dynamic", "face_mesh", "sface_fast", "synthesis_256")


def measure_case(
    case: BenchCase, folder: Path, *, device: DeviceName, runs: int, compiled_backend: str = "inductor"
) -> dict[str, Any]:
    """Times one case; a row for the report. Raises whatever PyTorch raises."""
    dtype = torch.float16 if case.is_half else torch.float32
    if case.network == "chain":
        module: nn.Module = FrameChain(load_graphs(folder, CHAIN_NETWORKS), case.batch, dtype)
        given = torch.randint(0, 256, (*_FRAME_SIZE, 3), dtype=torch.uint8)
    else:
        module = OnnxGraph(folder / f"{case.network}.onnx")
        given = _example(module.input_shape, case.batch).to(dtype)
    module = module.eval().to(device=device, dtype=dtype)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        given = given.pin_memory()
    with torch.inference_mode():
        upload = given.to(device)
        run: Run = module if case.mode != "compiled" else torch.compile(module, backend=compiled_backend)
        for _ in range(_WARM_UPS):
            outputs = run(upload)
        step = _graph_step(module, upload) if case.mode == "cuda_graph" else None
        totals, devices = _time(run, step, given, upload, outputs, runs, device)
    return _row(case, totals, devices, device)


def _example(shape: tuple[int | None, ...], batch: int) -> Tensor:
    sizes = [n if n is not None else (batch if i == 0 else YUNET_SIZE[i - 2]) for i, n in enumerate(shape)]
    sizes[0] = batch
    return torch.rand(sizes, generator=torch.Generator().manual_seed(0))


def _graph_step(module: nn.Module, upload: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    """A captured CUDA graph that reads `upload`, and its outputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = module(upload)
    return graph, outputs


def _time(
    run: Run,
    step: tuple[Any, tuple[Tensor, ...]] | None,
    given: Tensor,
    upload: Tensor,
    outputs: tuple[Tensor, ...],
    runs: int,
    device: DeviceName,
) -> tuple[list[float], list[float]]:
    """Milliseconds of whole runs, and of the card's part."""
    is_card = device == "cuda"
    host = [torch.empty(o.shape, dtype=o.dtype, pin_memory=is_card) for o in (step[1] if step else outputs)]
    totals, devices = [], []
    for _ in range(runs):
        began = time.perf_counter()
        first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if is_card else (None, None)
        if first is not None:
            first.record()
        upload.copy_(given, non_blocking=True)
        if step is not None:
            step[0].replay()
            made = step[1]
        else:
            made = run(upload)
        for target, source in zip(host, made, strict=True):
            target.copy_(source, non_blocking=True)
        if first is not None and second is not None:
            second.record()
            second.synchronize()
            devices.append(float(first.elapsed_time(second)))
        totals.append((time.perf_counter() - began) * 1e3)
    return totals, devices


def _row(case: BenchCase, totals: list[float], devices: list[float], device: DeviceName) -> dict[str, Any]:
    p50, p95, p99 = (round(float(v), 4) for v in np.percentile(totals, (50, 95, 99)))
    row: dict[str, Any] = {
        "key": case.key(), "network": case.network, "runner": f"torch-{case.mode}",
        "precision": "f16" if case.is_half else "f32", "batch": case.batch, "runs": len(totals),
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "device_ms": None, "host_share": None, "memory_mb": None,
    }  # fmt: skip
    if device == "cuda":
        row["device_ms"] = round(float(np.median(devices)), 4)
        row["host_share"] = round(max(0.0, 1 - row["device_ms"] / p50), 4)
        row["memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return row


def describe(device: DeviceName) -> dict[str, Any]:
    """Card, driver's CUDA and PyTorch."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": "cpu"}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "device": card.name, "compute_capability": f"{card.major}.{card.minor}",
            "memory_gb": round(card.total_memory / 1e9, 1),
        }  # fmt: skip
    return found


def has_card() -> bool:
    """Whether PyTorch sees a card."""
    return bool(torch.cuda.is_available())
