"""YuNet: decoding, scales, the closer look, and what it finds on photos."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import EngineError
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.open import open_engine
from keyface.pipeline.faces.detect import DetectOptions, YuNetDetector
from keyface.pipeline.faces.geometry import iou_matrix

Array = npt.NDArray[Any]
SIZES = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
OUTPUTS = tuple(
    TensorSpec(f"{kind}_{stride}", "float32", (1, None, n))
    for kind, n in SIZES.items()
    for stride in (8, 16, 32)
)
INPUTS = (TensorSpec("input", "float32", (1, 3, None, None)),)


class FakeYuNet:
    """Sees the bright part of a picture as one face, in two neighbouring cells of stride 8."""

    def __init__(self, score: float = 0.9, min_side: int = 8) -> None:
        self.score, self.min_side = score, min_side
        self.input_sizes: list[tuple[int, int]] = []
        self.means: list[float] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        picture = inputs["input"][0, 0]
        height, width = picture.shape
        self.input_sizes.append((width, height))
        self.means.append(float(picture.mean()))
        out: dict[str, Array] = {
            spec.name: np.zeros(
                (1, height * width // int(spec.name.split("_")[1]) ** 2, spec.shape[2] or 1), np.float32
            )
            for spec in OUTPUTS
        }
        ys, xs = np.nonzero(picture > 0.6 * max(picture.max(), 1))
        if not len(xs) or np.ptp(xs) < self.min_side:
            return out
        x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        for column, score in ((int(cx // 8), self.score), (int(cx // 8) - 1, self.score * 0.9)):
            row = int(cy // 8)
            k = row * (width // 8) + column
            out["cls_8"][0, k] = out["obj_8"][0, k] = score
            out["bbox_8"][0, k] = [
                cx / 8 - column,
                cy / 8 - row,
                np.log((x1 - x0) / 8),
                np.log((y1 - y0) / 8),
            ]
            points = np.array([[x0, y0], [x1, y0], [cx, cy], [x0, y1], [x1, y1]]) / 8 - [column, row]
            out["kps_8"][0, k] = points.ravel()
        return out


def picture(box: tuple[int, int, int, int], size_wh: tuple[int, int] = (640, 360), level: int = 250) -> Array:
    image = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = level
    return image


def detector(fake: FakeYuNet, **options: Any) -> YuNetDetector:
    return YuNetDetector(FakeEngine(INPUTS, OUTPUTS, fake), DetectOptions(**options))


@pytest.mark.parametrize("size_wh", [(640, 360), (333, 777), (1920, 1080), (100, 90)])
def test_boxes_and_points_come_back_in_picture_pixels(size_wh: tuple[int, int]) -> None:
    w, h = size_wh
    box = (w // 4, h // 4, w // 4 + w // 3, h // 4 + w // 3)
    found = detector(FakeYuNet()).detect(picture(box, size_wh))
    assert len(found) == 1  # both cells, both looks: one face
    tolerance = max(2.0, w / 100)
    np.testing.assert_allclose(found[0].box_xyxy, box, atol=tolerance)
    np.testing.assert_allclose(found[0].points_5[0], box[:2], atol=tolerance)
    np.testing.assert_allclose(found[0].points_5[4], box[2:], atol=tolerance)
    assert found[0].score == pytest.approx(0.9, abs=1e-5)


@pytest.mark.parametrize(
    ("size_wh", "near", "far"),
    [
        ((640, 360), (416, 256), (160, 96)),
        ((1920, 1080), (1248, 704), (160, 96)),
        ((3840, 2160), (2048, 1152), (160, 96)),
        ((64, 64), (320, 320), (160, 160)),
    ],
)
def test_input_size_follows_the_smallest_face(
    size_wh: tuple[int, int], near: tuple[int, int], far: tuple[int, int]
) -> None:
    fake = FakeYuNet()
    detector(fake).detect(picture((0, 0, 1, 1), size_wh))
    assert fake.input_sizes == [near, far]


def test_second_look_can_be_left_out() -> None:
    fake = FakeYuNet()
    detector(fake, far_input_px=0).detect(picture((0, 0, 1, 1)))
    assert len(fake.input_sizes) == 1


def test_scores_below_the_threshold_are_dropped() -> None:
    image = picture((100, 100, 200, 200))
    assert detector(FakeYuNet(score=0.45)).detect(image) == []
    assert len(detector(FakeYuNet(score=0.45)).detect(image, min_score=0.4)) == 1


def test_dark_pictures_are_lifted() -> None:
    fake = FakeYuNet()
    detector(fake).detect(np.full((360, 640, 3), 10, np.uint8))
    assert fake.means[0] > 60
    detector(fake).detect(np.full((360, 640, 3), 120, np.uint8))
    assert fake.means[-2] < 121


@pytest.mark.parametrize("corner", [(300, 200), (0, 0), (600, 330)])
def test_closer_look(corner: tuple[int, int]) -> None:
    fake = FakeYuNet()
    box = (*corner, corner[0] + 30, corner[1] + 30)
    found = detector(fake).detect_near(picture(box), np.array(box, np.float32), min_score=0.5)
    assert max(fake.input_sizes[0]) == 160
    visible = np.minimum(box, [640, 360, 640, 360])
    np.testing.assert_allclose(found[0].box_xyxy, visible, atol=1.0)


def test_closer_look_outside_the_picture_finds_nothing() -> None:
    away = np.array([900, 900, 930, 930], np.float32)
    assert detector(FakeYuNet()).detect_near(picture((0, 0, 50, 50)), away, min_score=0.5) == []


def test_outputs_that_are_not_finite_raise() -> None:
    def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        out = FakeYuNet()(inputs)
        out["bbox_16"][0, 0, 0] = np.nan
        return out

    with pytest.raises(EngineError, match="not finite"):
        YuNetDetector(FakeEngine(INPUTS, OUTPUTS, broken)).detect(picture((0, 0, 50, 50)))


def test_close_closes_the_engine() -> None:
    engine = FakeEngine(INPUTS, OUTPUTS, FakeYuNet())
    YuNetDetector(engine).close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"input": np.zeros((1, 3, 64, 64), np.float32)})


# ---------------------------------------------------------------- the network itself
@pytest.fixture(scope="module")
def yunet(models: Any) -> Iterator[YuNetDetector]:
    with open_engine(models.path("yunet_dynamic"), name="yunet_dynamic", threads=1) as engine:
        yield YuNetDetector(engine, DetectOptions(min_score=0.6))


def read_rgb(path: Path) -> Array:
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))


def test_finds_every_annotated_face(yunet: YuNetDetector, shared_dir: Path) -> None:
    folder = shared_dir / "data/challenge/dlib_faces_gt"
    wanted = missed = 0
    for list_name in ("testing.xml", "training.xml"):
        for image in ElementTree.parse(folder / list_name).getroot().iter("image"):
            path = folder / str(image.get("file"))
            if not path.exists():
                continue
            boxes = np.array([d.box_xyxy for d in yunet.detect(read_rgb(path))]).reshape(-1, 4)
            for box in image.iter("box"):
                if box.get("ignore") == "1":
                    continue
                x, y, w, h = (float(box.get(k, 0)) for k in ("left", "top", "width", "height"))
                wanted += 1
                missed += not len(boxes) or iou_matrix(np.array([[x, y, x + w, y + h]]), boxes).max() < 0.4
    assert wanted >= 40 and missed == 0


def test_finds_next_to_nothing_where_there_is_nobody(yunet: YuNetDetector, shared_dir: Path) -> None:
    found = {
        path.name: len(yunet.detect(read_rgb(path)))
        for path in sorted((shared_dir / "data/challenge/nonface").iterdir())
    }
    assert sum(found.values()) <= 1, found  # a dog
