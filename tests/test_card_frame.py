"""A frame on the card: what is copied and when, whose inputs are made there, and what becomes of failures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from fake_cuda import FakeCuda, FakePycuda
from fake_tensorrt import FakeTensorRt
from generated_people import write_people
from host_kernels import card_frame, compiled, kernel_card
from onnx import TensorProto, helper

from keyface.configs.errors import DeviceError, DeviceLostError, EngineError, UsageError
from keyface.engines.card_frame import CardFrame
from keyface.engines.device_memory import Device
from keyface.engines.device_memory_cuda import CudaDevice
from keyface.engines.device_memory_numpy import NumpyDevice
from keyface.engines.device_memory_pycuda import PycudaDevice
from keyface.engines.engine import Engine, ForwardingEngine, MadeInputs, TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.gpu_networks import GPU_NETWORKS, graph_for
from keyface.engines.ort import OrtEngine
from keyface.engines.soft_landing import SoftLanding
from keyface.engines.store import ModelStore
from keyface.engines.tensorrt_build import ShapeRange, build_plan
from keyface.engines.tensorrt_engine import TensorRtEngine
from keyface.engines.tensorrt_flavour import Flavour
from keyface.pipeline import assemble
from keyface.pipeline.faces.align import cut_out
from keyface.pipeline.faces.analyse import Analyser
from keyface.pipeline.faces.detect import YuNetDetector
from keyface.pipeline.faces.landmarks import LiteRtLandmarker
from keyface.pipeline.faces.recognise import SFACE, Recogniser, RecogniserForm
from keyface.pipeline.faces.sampling import card_crop
from keyface.pipeline.frame import Frame
from keyface.pipeline.process_options import ProcessOptions

U8 = npt.NDArray[np.uint8]
SIZE = 112
FORM = RecogniserForm("image", "copy", SFACE.mean, SFACE.std)


def mirror_network() -> bytes:
    """A network that gives back its picture."""
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    out = helper.make_tensor_value_info("copy", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    node = helper.make_node("Identity", ["image"], ["copy"], name="copy_it")
    graph = helper.make_graph([node], "mirror", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def engine_on(
    card: NumpyDevice, content: bytes, ranges: dict[str, ShapeRange], *, device: Any = None
) -> Engine:
    trt = FakeTensorRt(card)
    flavour = Flavour("tensorrt", trt, trt.__version__)
    plan = build_plan(flavour, content, name="mirror", ranges=ranges).content
    return TensorRtEngine(plan, flavour=flavour, device=device or card, name="mirror", max_batch=8)


MIRROR = {"image": ShapeRange((1, 3, SIZE, SIZE), (1, 3, SIZE, SIZE), (8, 3, SIZE, SIZE))}


def on_cpu() -> Engine:
    return OrtEngine(mirror_network(), name="mirror", threads=1)


def photo(seed: int = 0, size_hw: tuple[int, int] = (90, 120)) -> U8:
    image = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)
    image.flags.writeable = False
    return image


def looks(image: U8, frame: CardFrame, n: int = 1) -> MadeInputs:
    """`n` crops of the picture."""
    matrices = [np.array([[0.5, 0, 9 * i], [0, 0.5, 4 * i]], np.float32) for i in range(n)]
    crops = [card_crop(image, matrix, SIZE, border="black") for matrix in matrices]

    def on_host() -> dict[str, Any]:
        cut = [cut_out(image, matrix, SIZE, border="black") for matrix in matrices]
        return {"image": np.stack(cut).transpose(0, 3, 1, 2).astype(np.float32)}

    return MadeInputs({"image": (n, 3, SIZE, SIZE)}, frame.crops(image, crops, SIZE), on_host)


@pytest.fixture(params=["numpy", "cuda-python", "pycuda"])
def devices(request: pytest.FixtureRequest) -> Iterator[tuple[NumpyDevice, Any]]:
    """A card, and what opens it through a library: the frame and each engine open it themselves."""
    card = kernel_card()
    drivers: dict[str, Any] = {"cuda-python": FakeCuda(card), "pycuda": FakePycuda(card)}

    def opener() -> Device:
        if request.param == "cuda-python":
            return CudaDevice(driver=drivers["cuda-python"])
        return card if request.param == "numpy" else PycudaDevice(driver=drivers["pycuda"])

    yield card, opener
    if request.param != "numpy":
        assert drivers[request.param].n_contexts == 0


def check(engine: Engine, made: MadeInputs) -> None:
    got = engine.run_made(made)["copy"]
    want = made.on_host()["image"]
    assert got.shape == want.shape and np.abs(got - want).max() <= 1


# -- order and copies


def test_a_frame_is_uploaded_once_for_all_networks_and_only_outputs_come_back(devices: Any) -> None:
    card, opener = devices
    frame = CardFrame(opener=opener, compiler=lambda architecture: compiled())
    frame.open()
    one, two = (engine_on(card, mirror_network(), MIRROR, device=opener()) for _ in range(2))
    image, other, n_output = photo(), photo(1), 4 * 3 * SIZE * SIZE
    for picture in (image, other):
        card.copies.clear()
        for engine, n in ((one, 1), (two, 8), (one, 1), (one, 2)):
            check(engine, looks(picture, frame, n))
        copied_in = [n for direction, n in card.copies if direction == "in"]
        assert copied_in == [picture.size], "one upload a frame"
        assert [n for way, n in card.copies if way == "out"] == [n_output * n for n in (1, 8, 1, 2)]
    assert frame.n_uploads == 2
    for engine in (one, two):
        engine.close()
    frame.close()
    assert card.used_bytes == 0


def test_what_is_queued_is_in_order_and_on_the_streams_of_the_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = kernel_card()
    frame, engine, told = card_frame(card), engine_on(card, mirror_network(), MIRROR), []
    frame.open()
    for name in ("copy_in", "run_kernel", "copy_out", "synchronise"):
        kept = getattr(card, name)

        def record(*arguments: Any, name: str = name, kept: Any = kept) -> Any:
            told.append((name, arguments[-1]))
            return kept(*arguments)

        monkeypatch.setattr(card, name, record)
    check(engine, looks(photo(), frame))
    assert [name for name, _ in told] == ["copy_in", "synchronise", "run_kernel", "copy_out", "synchronise"]
    assert {stream for _, stream in told} == {engine._stream}  # type: ignore[attr-defined]
    engine.close()
    frame.close()
    assert card.n_open == 0


def test_a_picture_that_can_change_is_uploaded_each_time() -> None:
    card = kernel_card()
    frame, engine = card_frame(card), engine_on(card, mirror_network(), MIRROR)
    frame.open()
    image = photo().copy()
    check(engine, looks(image, frame))
    image[:] = 255 - image
    check(engine, looks(image, frame))
    assert frame.n_uploads == 2


def test_frames_of_other_sizes_and_parts_of_pictures_are_taken() -> None:
    card = kernel_card()
    frame, engine = card_frame(card), engine_on(card, mirror_network(), MIRROR)
    frame.open()
    for size_hw in ((40, 30), (300, 200), (1, 1), (300, 200)):
        check(engine, looks(photo(1, size_hw), frame))
    part = photo(2, (200, 200))[20:150:2, 31:90]  # not contiguous
    check(engine, looks(part, frame))
    engine.close()
    frame.close()
    frame.close()
    assert card.n_open == 0


def test_the_graph_of_an_engine_serves_made_and_given_inputs() -> None:
    card = kernel_card()
    frame, engine = card_frame(card), engine_on(card, mirror_network(), MIRROR)
    frame.open()
    for seed in range(6):
        made = looks(photo(seed), frame)
        check(engine, made)
        given = made.on_host()
        np.testing.assert_array_equal(engine.run(given)["copy"], given["image"])
    assert card.n_launches >= 8


# -- failures


def test_a_run_that_failed_leaves_no_old_frame_to_the_next() -> None:
    card = kernel_card()
    frame, engine = card_frame(card), engine_on(card, mirror_network(), MIRROR)
    frame.open()
    check(engine, looks(photo(0), frame))
    engine._context.trt.fails_with = ["Error Code 3: API Usage Error"]  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="API Usage"):
        engine.run_made(looks(photo(1), frame))
    check(engine, looks(photo(1), frame))
    check(engine, looks(photo(2), frame))


@pytest.mark.parametrize("after", range(1, 30))
def test_wherever_the_card_is_lost_the_cpu_makes_the_same(
    after: int, caplog: pytest.LogCaptureFixture
) -> None:
    card = kernel_card()
    frame = card_frame(card)
    frame.open()
    engine = SoftLanding(engine_on(card, mirror_network(), MIRROR), on_cpu)
    card.lose(after_calls=after)
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            check(engine, looks(photo(seed), frame))  # type: ignore[arg-type]
    assert engine.backend == "onnxruntime" and caplog.text.count("goes on on the CPU") == 1
    engine.close()
    frame.close()


def test_no_memory_for_the_frame_is_the_cpus_work_and_stop_is_the_callers() -> None:
    card = kernel_card(memory_bytes=400_000)
    frame = card_frame(card)
    frame.open()
    engine = SoftLanding(engine_on(card, mirror_network(), MIRROR), on_cpu)
    check(engine, looks(photo(0, (400, 500)), frame))  # type: ignore[arg-type]
    assert engine.backend == "onnxruntime" and "too little free memory" in engine.notes[0]
    card = kernel_card()
    lost = card_frame(card)
    lost.open()
    engine = SoftLanding(engine_on(card, mirror_network(), MIRROR), on_cpu, on_loss="stop")
    card.lose()
    with pytest.raises(DeviceLostError):
        engine.run_made(looks(photo(), lost))


def test_without_card_or_compiler_opening_says_so() -> None:
    def no_card() -> Device:
        raise DeviceError("there is no NVIDIA driver here.", "Run on the CPU.")

    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        CardFrame(opener=no_card).open()

    def no_compiler(architecture: str) -> bytes:
        raise DeviceError(f"the kernels for {architecture} cannot be compiled.")

    card = kernel_card()
    frame = CardFrame(opener=lambda: card, compiler=no_compiler)
    with pytest.raises(DeviceError, match="kernels for sm89 cannot be compiled"):
        frame.open()
    frame.close()
    with pytest.raises(EngineError, match=r"not open\. Call open"):
        engine_on(card, mirror_network(), MIRROR).run_made(looks(photo(), CardFrame()))


def test_engines_elsewhere_run_what_the_host_makes() -> None:
    frame = CardFrame()  # never opened
    made = looks(photo(), frame, 3)
    for engine in (on_cpu(), ForwardingEngine(on_cpu())):
        np.testing.assert_array_equal(engine.run_made(made)["copy"], made.on_host()["image"])


def test_inputs_that_are_not_made_or_not_float32_are_told() -> None:
    card = kernel_card()
    engine = engine_on(card, mirror_network(), MIRROR)
    with pytest.raises(EngineError, match="mirror inputs: 'image' is not made"):
        engine.run_made(MadeInputs({}, lambda *_: None, dict))
    half = onnx.load_from_string(mirror_network())
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    narrow = engine_on(card, half.SerializeToString(), MIRROR)
    with pytest.raises(EngineError, match="made as float32, want float16"):
        narrow.run_made(looks(photo(), card_frame(card)))


# -- in the chain


def test_it_is_asked_for_and_only_where_tensorrt_runs() -> None:
    assert not ProcessOptions().frames_on_card and "frames_on_card" not in ProcessOptions().settings()
    for words in ({}, {"backend": "onnxruntime_cuda"}, {"preset": "gpu", "backend": "onnxruntime"}):
        with pytest.raises(UsageError, match=r"--frames-on-card: the networks.*Add --preset gpu"):
            ProcessOptions(frames_on_card=True, **words)  # type: ignore[arg-type]
    assert ProcessOptions(frames_on_card=True, preset="gpu").settings()["frames_on_card"] is True


def test_the_analysis_shares_one_frame_and_closes_it_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Card:
        def open(self) -> None:
            told.append("open card")

        def close(self) -> None:
            told.append("close card")

    class Network(FakeEngine):
        def __init__(self, name: str) -> None:
            super().__init__(
                (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),), name=name
            )
            told.append(f"open {name}")

        def close(self) -> None:
            told.append(f"close {self.name}")

    monkeypatch.setattr(assemble, "CardFrame", Card)
    options = ProcessOptions(redact_only=True, frames_on_card=True, preset="gpu")
    stage: Any = assemble.make_parts(ModelStore(), None, options, open_network=Network).analyse
    stage.open()
    assert stage._detector._card is stage._landmarker._card is stage._card
    stage.close()
    assert told[0] == "open card" and told[-1] == "close card" and len(told) == 8


def networks_on(card: NumpyDevice, models: Any) -> dict[str, Engine]:
    """The analysis' networks on the stand-in of TensorRT."""
    engines = {}
    for name in ("yunet_dynamic", "face_mesh", "sface_fast"):
        network = GPU_NETWORKS[name]
        content = graph_for(network, models.path(network.source), "f32")
        engines[name] = engine_on(card, content, dict(network.ranges))
    return engines


def test_the_analysis_of_a_face_is_that_of_the_cpu(models: Any, tmp_path: Path) -> None:
    """The real networks; the same face in the same place, with one upload a frame."""
    folder = write_people(tmp_path, [3], photos=1, side_px=300)
    face = cv2.imread(str(folder / "person-3" / "look-0.jpg"))[..., ::-1]
    image = np.full((540, 960, 3), 90, np.uint8)
    image[120:420, 400:700] = face
    card = kernel_card()
    frame, engines = card_frame(card), networks_on(card, models)
    blendshapes = assemble.network_opener(models, ProcessOptions())("face_blendshapes")

    def stage(card: CardFrame | None, network: Any) -> Analyser:
        return Analyser(
            open_detector=lambda: YuNetDetector(network("yunet_dynamic"), card=card),
            open_landmarker=lambda: LiteRtLandmarker(network("face_mesh"), blendshapes, card=card),
            card=card,
        )

    on_host = stage(None, assemble.network_opener(models, ProcessOptions()))
    on_card = stage(frame, engines.__getitem__)
    on_host.open()
    on_card.open()
    for index in range(5):
        moved = Frame(np.roll(image, 3 * index, axis=1), index, index / 25)
        (want,), (got,) = on_host.process(moved).faces, on_card.process(moved).faces
        assert want.mesh is not None and got.mesh is not None
        assert np.abs(got.mesh.points_xy - want.mesh.points_xy).max() < 0.5
        assert np.abs(got.box_xyxy - want.box_xyxy).max() < 1
    assert frame.n_uploads == 5
    points = got.points_5
    assert points is not None
    ours = Recogniser(engines["sface_fast"], card=frame).embed(moved.image_rgb, points)
    theirs = Recogniser(assemble.network_opener(models, ProcessOptions())("sface_fast")).embed(
        moved.image_rgb, points
    )
    assert float(ours @ theirs) > 0.999 and frame.n_uploads == 5
    on_card.close()
    on_host.close()
