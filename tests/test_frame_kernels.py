"""The kernels themselves: they compile for every kind of card, and on a CPU they do what the pipeline does there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from host_kernels import NAMES, card_frame, kernel_card, made_on
from hypothesis import example, given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.configs.errors import DeviceError, EngineError
from keyface.engines import kernel_compile
from keyface.engines.card_frame import MAX_CROPS, Border, CanvasLook
from keyface.engines.kernel_compile import compile_kernels, kernel_source
from keyface.pipeline.faces.align import cut_out
from keyface.pipeline.faces.detect import input_nchw
from keyface.pipeline.faces.sampling import card_crop

U8 = npt.NDArray[np.uint8]
BORDERS: tuple[Border, ...] = ("repeat", "mirror", "black")
ARCHITECTURES = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm120")


def no_compiler() -> str:
    if shutil.which("nvcc"):
        return ""
    try:
        if importlib.util.find_spec("cuda.bindings.nvrtc") is not None:
            compile_kernels("sm80", "")
            return ""
    except (ModuleNotFoundError, DeviceError) as error:
        return str(error)
    return "neither nvcc nor NVRTC (nvidia-cuda-nvrtc and cuda-bindings) is installed"


needs_compiler = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())


def picture(height: int, width: int, *, seed: int = 0, most: int = 256, is_smooth: bool = False) -> U8:
    """Noise, or soft blotches; read-only, as frames are."""
    rng = np.random.default_rng(seed)
    if is_smooth:
        coarse = rng.integers(0, most, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        image = rng.integers(0, most, (height, width, 3), dtype=np.uint8)
    image = np.ascontiguousarray(image, np.uint8)
    image.flags.writeable = False
    return image


def similarity(scale: float, angle: float, x: float, y: float) -> npt.NDArray[np.float32]:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]], np.float32)


# -- compiling


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_compile_for_every_card(architecture: str) -> None:
    code = compile_kernels(architecture)
    assert code[:4] == b"\x7fELF"
    for name in NAMES:
        assert name.encode() + b"\0" in code  # under its own name, as the driver looks for it


@needs_compiler
def test_what_a_compiler_refuses_is_told() -> None:
    with pytest.raises(
        DeviceError, match=r"could not compile the kernels for sm_89: .*undefined.*newer CUDA"
    ):
        compile_kernels("sm89", 'extern "C" __global__ void k(int* a) { *a = missing; }')
    with pytest.raises(DeviceError, match="could not compile the kernels for sm_11"):
        compile_kernels("sm11")


def test_no_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.bindings.nvrtc", "cuda.nvrtc"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=r"sm90 cannot be compiled: cuda-python is not installed.*nvrtc"):
        compile_kernels("sm90")


class FakeNvrtc:
    """`cuda.bindings.nvrtc`, as far as it is called."""

    def __init__(self, status: int = 0, problem: str = "") -> None:
        self.status, self.problem, self.n_open = status, problem, 0
        self.options: list[bytes] = []

    def nvrtcCreateProgram(
        self, source: bytes, name: bytes, n: int, headers: Any, names: Any
    ) -> tuple[int, str]:
        if self.problem:
            raise RuntimeError(self.problem)
        assert b"crop_faces" in source
        self.n_open += 1
        return 0, "program"

    def nvrtcCompileProgram(self, program: str, n: int, options: list[bytes]) -> tuple[int]:
        self.options = options
        return (self.status,)

    def nvrtcGetProgramLogSize(self, program: str) -> tuple[int, int]:
        return 0, 4

    def nvrtcGetProgramLog(self, program: str, log: bytes) -> tuple[int]:
        return (0,)

    nvrtcGetCUBINSize, nvrtcGetCUBIN = nvrtcGetProgramLogSize, nvrtcGetProgramLog

    def nvrtcDestroyProgram(self, program: str) -> tuple[int]:
        self.n_open -= 1
        return (0,)


def test_nvrtc_is_asked_first_and_nvcc_where_it_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = FakeNvrtc()
    monkeypatch.setattr(kernel_compile, "_load_nvrtc", lambda: nvrtc)
    assert compile_kernels("sm120") == b" " * 4 and nvrtc.options == [b"--gpu-architecture=sm_120"]
    nvrtc.status = 6
    with pytest.raises(DeviceError, match="NVRTC could not compile the kernels for sm_120: status 6"):
        compile_kernels("sm120")
    assert nvrtc.n_open == 0
    nvrtc.problem = "libnvrtc.so.13 not found"
    monkeypatch.setattr(kernel_compile, "_by_nvcc", lambda name, source: name.encode())
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvcc")
    assert compile_kernels("sm120") == b"sm_120"


def test_the_source_is_carried_and_has_nothing_that_only_a_card_knows() -> None:
    source = kernel_source()
    assert "#include" not in source and "__shared__" not in source and "__syncthreads" not in source


# -- crops


@pytest.fixture
def crops() -> Any:
    card = kernel_card()
    frame = card_frame(card)
    frame.open()

    def make(image: U8, matrices: list[npt.NDArray[np.float32]], size: int, **how: Any) -> Any:
        planes = how.pop("planes", False)
        faces = [card_crop(image, matrix, size, planes=planes, **how) for matrix in matrices]
        shape = (len(faces), 3, size, size) if planes else (len(faces), size, size, 3)
        return made_on(card, frame.crops(image, faces, size), shape)

    yield make
    frame.close()
    assert card.n_open == 0


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 40),
    scale=st.floats(0.02, 12),
    angle=st.floats(-3.2, 3.2),
    at=st.tuples(st.floats(-1.5, 2), st.floats(-1.5, 2)),
    border=st.sampled_from(BORDERS),
    max_step=st.sampled_from([1.4, 2.0]),
    is_smooth=st.booleans(),
)
@example(1, 1, 1, 1.0, 0.0, (0.0, 0.0), "mirror", 1.4, False)  # one pixel
@example(2, 90, 40, 5.0, 0.3, (0.9, -1.0), "mirror", 1.4, False)  # narrower than the way of a mirror
@example(60, 80, 32, 1.0, 0.0, (1.6, 0.2), "black", 2.0, False)  # beside the frame
@example(89, 61, 32, 1.0, 0.7, (0.75, 0.75), "repeat", 2.0, False)  # half outside
@settings(max_examples=examples(150))
def test_a_crop_is_what_the_cpu_cuts_out(
    height: int, width: int, size: int, scale: float, angle: float, at: tuple[float, float], border: Border,
    max_step: float, is_smooth: bool,
) -> None:  # fmt: skip
    """To one level: libraries round bilinear sums differently."""
    image = picture(height, width, seed=height * width, is_smooth=is_smooth)
    matrix = similarity(scale, angle, at[0] * width, at[1] * height)
    card = kernel_card()
    frame = card_frame(card)
    frame.open()
    crop = card_crop(image, matrix, size, border=border, max_step=max_step, planes=False)
    got = made_on(card, frame.crops(image, [crop], size), (1, size, size, 3))[0]
    want = cut_out(image, matrix, size, border=border, max_step=max_step)
    assert np.abs(got - want).max() <= 1
    frame.close()


@pytest.mark.parametrize("border", BORDERS)
def test_crops_of_a_large_picture_differ_in_few_pixels(border: Border, crops: Any) -> None:
    image = picture(720, 1280, seed=3)
    matrices = [
        similarity(scale, angle, x, y)
        for scale, angle, x, y in (
            (0.3, 0.1, 600, 300), (1.0, 0.5, -40, 100), (1.7, -2.0, 1200, 650), (3.3, 3.1, 900, 700),
            (7.0, 0.0, -300, -200), (1.0, 0.0, 17, 19),
        )
    ]  # fmt: skip
    got = crops(image, matrices, 64, border=border)
    for face, matrix in zip(got, matrices, strict=True):
        difference = np.abs(face - cut_out(image, matrix, 64, border=border))
        assert difference.max() <= 1 and difference.mean() < 0.03
    np.testing.assert_array_equal(got[-1], image[19:83, 17:81])  # whole pixels, not turned: the very same


def test_several_faces_are_those_of_one_alone_normalised_as_networks_want_them(crops: Any) -> None:
    image = picture(200, 300, is_smooth=True)
    matrices = [similarity(0.4 + 0.3 * n, 0.2 * n, 20 * n, 15 * n) for n in range(MAX_CROPS)]
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    how = {"border": "black", "mean": mean, "std": std}
    together = crops(image, matrices, 112, planes=True, **how)
    for number, matrix in enumerate(matrices):
        np.testing.assert_array_equal(
            together[number : number + 1], crops(image, [matrix], 112, planes=True, **how)
        )
        cut = cut_out(image, matrix, 112, border="black").transpose(2, 0, 1).astype(np.float32)
        want = (cut - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
        assert np.abs(together[number] - want).max() <= 1 / min(std) + 1e-4


@pytest.mark.parametrize("n", [0, MAX_CROPS + 1])
def test_too_many_and_no_faces_are_told(n: int, crops: Any) -> None:
    with pytest.raises(EngineError, match=f"got {n} crops, want 1 to 8"):
        crops(picture(20, 20), [similarity(1, 0, 0, 0)] * n, 8, border="black")


def test_what_is_far_beyond_any_border_is_no_number_out_of_range(crops: Any) -> None:
    image = picture(30, 40)
    far = np.array([[1e9, 0, 1e12], [0, 1e9, -1e12]], np.float32)
    assert (crops(image, [far], 8, border="black") == 0).all()
    assert np.isfinite(crops(image, [far], 8, border="repeat")).all()
    assert np.isfinite(crops(image, [far], 8, border="mirror")).all()


# -- the detector's canvas


def canvas(image: U8, look: CanvasLook) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Of the kernels and of the CPU."""
    card = kernel_card()
    frame = card_frame(card)
    frame.open()
    want = input_nchw(image, look)
    got = made_on(card, frame.canvas(image, look), want.shape)
    frame.close()
    assert card.n_open == 0
    return got, want


def look_at(image: U8, scale: float, part: tuple[int, int, int, int] | None = None, **how: Any) -> CanvasLook:
    x0, y0, x1, y1 = part or (0, 0, image.shape[1], image.shape[0])
    w, h = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    options: dict[str, Any] = {"by_area": scale < 0.5, "dark": 0.0, "lifted": 80.0, "most_gain": 10.0, **how}
    return CanvasLook(
        part_xyxy=(x0, y0, x1, y1), size_wh=(w, h), canvas_wh=(-(-w // 32) * 32, -(-h // 32) * 32), **options
    )


@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    scale=st.one_of(st.floats(0.05, 2.5), st.sampled_from([0.2, 0.25, 1 / 3, 0.5, 1.0, 2.0])),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    is_smooth=st.booleans(),
)
@example(1, 1, 1.0, (0, 0, 1, 1), False)
@example(120, 1, 0.05, (0, 0, 1, 1), False)
@example(33, 65, 0.5, (0, 0, 1, 1), False)
@settings(max_examples=examples(150))
def test_a_canvas_is_what_the_cpu_resizes(
    height: int, width: int, scale: float, corners: tuple[float, float, float, float], is_smooth: bool
) -> None:
    image = picture(height, width, seed=height, is_smooth=is_smooth)
    x0, x1 = int(min(corners[0], corners[2]) * (width - 1)), int(max(corners[0], corners[2]) * width)
    y0, y1 = int(min(corners[1], corners[3]) * (height - 1)), int(max(corners[1], corners[3]) * height)
    got, want = canvas(image, look_at(image, scale, (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))))
    assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("scale", [0.65, 0.5, 0.37, 0.25])
def test_a_large_canvas_differs_by_rounding_only(scale: float) -> None:
    image = picture(720, 1280)
    got, want = canvas(image, look_at(image, scale))
    difference = np.abs(got - want)
    assert difference.max() <= 1 and difference.mean() < 0.15  # OpenCV's weights have 11 bits


@pytest.mark.parametrize(("most", "gain"), [(256, 1.0), (40, 4.0), (6, 10.0), (1, 10.0)])
def test_a_dark_picture_is_lifted_as_on_the_cpu(most: int, gain: float) -> None:
    image = picture(320, 320, most=most)
    got, want = canvas(image, look_at(image, 1.0, dark=40.0))
    np.testing.assert_allclose(got, want, atol=1)
    assert got.mean() == pytest.approx(gain * image.mean(), rel=0.06, abs=0.5)


def test_a_second_look_knows_nothing_of_the_first() -> None:
    card = kernel_card()
    frame = card_frame(card)
    frame.open()
    bright, dark = picture(64, 64, seed=1), picture(64, 64, seed=2, most=30)
    for image in (bright, dark, bright, dark):
        look = look_at(image, 1.0, dark=40.0)
        want = input_nchw(image, look)
        np.testing.assert_allclose(made_on(card, frame.canvas(image, look), want.shape), want, atol=1)
    frame.close()


@pytest.mark.parametrize("noise", [0, 255])
def test_nothing_beyond_the_frame_is_read(noise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same crops and canvas, whatever lies in the card's memory around the frame."""
    image = picture(31, 47)
    card = kernel_card()
    allocate = card.allocate

    def padded(n_bytes: int) -> int:
        address = allocate(n_bytes + 8192)
        card.view(address, n_bytes + 8192)[:] = noise
        return address

    monkeypatch.setattr(card, "allocate", padded)
    frame = card_frame(card)
    frame.open()
    for border in BORDERS:
        matrix = similarity(2.3, 0.4, 30, 20)
        got = made_on(
            card, frame.crops(image, [card_crop(image, matrix, 32, border=border)], 32), (1, 3, 32, 32)
        )
        want = cut_out(image, matrix, 32, border=border).transpose(2, 0, 1)
        assert np.abs(got[0] - want).max() <= 1
    look = look_at(image, 1.7)
    want = input_nchw(image, look)
    np.testing.assert_allclose(made_on(card, frame.canvas(image, look), want.shape), want, atol=1)
