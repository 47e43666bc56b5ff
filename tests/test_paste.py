"""The paste stage: no face leaves raw, the background keeps its bytes, and the virtual face is placed, lit
and sharpened as the source is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_face import (
    a_face,
    a_mesh,
    a_mesh_xy,
    a_picture,
    a_virtual,
    an_item,
    ring,
)
from property_cases import examples

from keyface.pipeline.face import VirtualFace
from keyface.pipeline.frame import Redaction
from keyface.pipeline.paste import composite
from keyface.pipeline.paste.mask import core_polygons, widened
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.paste.place import (
    LEFT_BROW,
    OVAL,
    RIGHT_BROW,
    face_width,
    fit_frame_from_crop,
)

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def _raw_share(image: U8, out: U8, points: F32) -> float:
    """Correlation of fine detail between source and output over eyes, nose and mouth: 1 is a raw face."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(
        mask, [np.rint(p).astype(np.int32) for p in core_polygons(points, face_width(points[OVAL]))], 1
    )
    detail = [
        g - cv2.GaussianBlur(g, (0, 0), 2) for g in (x.astype(np.float32).mean(2) for x in (image, out))
    ]
    a, b = (d[mask > 0] for d in detail)
    return float((a * b).mean() / (a.std() * b.std() + 1e-6))


# ---------------------------------------------------------------- the stage
def test_a_frame_without_faces_keeps_every_byte() -> None:
    item = an_item((), ())
    safe = Paster().process(item)
    assert (safe.image_rgb == item.analysed.frame.image_rgb).all()
    assert safe.replaced == () and safe.redactions == ()


def test_a_face_is_replaced_and_the_background_keeps_its_bytes() -> None:
    driver = a_mesh_xy()
    item = an_item((a_face(driver),), (a_virtual(driver),))
    raw = item.analysed.frame.image_rgb
    safe = Paster().process(item)
    assert safe.replaced == (1,) and safe.redactions == ()
    assert abs(_raw_share(raw, safe.image_rgb, driver)) < 0.1
    outside = np.ones(raw.shape[:2], bool)
    edge = widened(driver[OVAL], driver)
    x0, y0, x1, y1 = np.concatenate([edge.min(0), edge.max(0)]).astype(int)
    outside[y0 - 2 : y1 + 3, x0 - 2 : x1 + 3] = False
    assert (safe.image_rgb[outside] == raw[outside]).all()


NAN = np.full((478, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("face_changes", "virtual_changes", "reason"),
    [
        ({"is_predicted": True}, {}, "predicted_only"),
        ({"mesh": None}, {}, "no_landmarks"),
        ({}, None, "reenactment_failed"),
        ({}, {"track_id": 7}, "reenactment_failed"),
        ({"mesh": replace(a_mesh(a_mesh_xy()), points_xyz=NAN)}, {}, "implausible"),
        ({}, {"mesh": replace(a_mesh(a_mesh_xy()), points_xyz=NAN)}, "implausible"),
        (
            {},
            {"mesh": replace(a_mesh(a_mesh_xy()), points_xyz=np.zeros((468, 3), np.float32))},
            "implausible",
        ),
        ({}, {"frame_from_crop": np.full((2, 3), np.nan, np.float32)}, "implausible"),
        ({}, {"frame_from_crop": np.array([[1, 0, 90], [0, 1, 90]], np.float32)}, "implausible"),
        ({}, {"frame_from_crop": np.zeros((2, 3), np.float32)}, "implausible"),
        # the detector saw the face elsewhere than the mesh lies
        (
            {"points_5": np.array([[20, 20], [40, 20], [30, 30], [22, 40], [38, 40]], np.float32)},
            {},
            "implausible",
        ),
        ({"box_xyxy": np.array([0, 0, 60, 60], np.float32)}, {}, "implausible"),
    ],
)
def test_whatever_is_missing_or_odd_ends_in_a_mosaic(
    face_changes: dict[str, Any], virtual_changes: dict[str, Any] | None, reason: str
) -> None:
    driver = a_mesh_xy()
    virtual = () if virtual_changes is None else (a_virtual(driver, **virtual_changes),)
    item = an_item((a_face(driver, **face_changes),), virtual)
    raw = item.analysed.frame.image_rgb
    safe = Paster().process(item)
    assert safe.replaced == ()
    assert [(r.reason, r.track_id) for r in safe.redactions] == [(reason, 1)]
    assert abs(_raw_share(raw, safe.image_rgb, driver)) < 0.15


def test_a_face_smaller_than_can_be_judged_is_mosaicked() -> None:
    driver = a_mesh_xy(width=8.0)
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),)))
    assert [r.reason for r in safe.redactions] == ["too_small"]


def test_a_track_id_that_comes_twice_is_mosaicked_twice() -> None:
    left, right = a_mesh_xy((70, 128), 60), a_mesh_xy((190, 128), 60)
    item = an_item((a_face(left), a_face(right)), (a_virtual(left),))
    safe = Paster().process(item)
    assert safe.replaced == () and len(safe.redactions) == 2


def test_two_virtual_faces_for_one_track_are_none() -> None:
    driver = a_mesh_xy()
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver), a_virtual(driver))))
    assert [r.reason for r in safe.redactions] == ["reenactment_failed"]


@pytest.mark.parametrize("where", ["analysed", "reenacted"])
def test_must_redact_wins_over_a_virtual_face(where: str) -> None:
    driver = a_mesh_xy()
    wanted = Redaction((60, 50, 190, 210), "extreme_pose", 1)
    item = an_item(
        (a_face(driver),),
        (a_virtual(driver),),
        must_redact=(wanted,) if where == "analysed" else (),
    )
    if where == "reenacted":
        item = replace(item, must_redact=(wanted,))
    safe = Paster().process(item)
    assert safe.replaced == () and wanted in safe.redactions
    assert abs(_raw_share(item.analysed.frame.image_rgb, safe.image_rgb, driver)) < 0.15


def test_must_redact_without_a_track_is_mosaicked_over_the_pasted_face() -> None:
    driver = a_mesh_xy()
    extra = Redaction((0, 0, 40, 40), "late_detection")
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),), must_redact=(extra,)))
    assert safe.replaced == (1,) and safe.redactions == (extra,)
    assert len(np.unique(safe.image_rgb[:40, :40].reshape(-1, 3), axis=0)) <= 64


def test_an_exception_while_pasting_ends_in_a_mosaic(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("out of paint")

    monkeypatch.setattr(composite, "resample", broken)
    driver = a_mesh_xy()
    item = an_item((a_face(driver),), (a_virtual(driver),))
    safe = Paster().process(item)
    assert [r.reason for r in safe.redactions] == ["stage_failed"]
    assert abs(_raw_share(item.analysed.frame.image_rgb, safe.image_rgb, driver)) < 0.15
    assert "out of paint" in caplog.text


def test_a_damaged_frame_is_mosaicked_whole() -> None:
    driver = a_mesh_xy()
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),), is_suspect=True))
    assert len(np.unique(safe.image_rgb.reshape(-1, 3), axis=0)) <= 64
    assert safe.replaced == ()


@settings(max_examples=examples(25))
@given(
    st.lists(
        st.tuples(st.integers(-40, 290), st.integers(-40, 290), st.integers(6, 220), st.booleans()),
        max_size=4,
    )
)
def test_every_face_is_replaced_or_mosaicked(places: list[tuple[int, int, int, bool]]) -> None:
    drivers = [a_mesh_xy((x, y), float(width)) for x, y, width, _ in places]
    faces = tuple(a_face(d, i) for i, d in enumerate(drivers))
    virtual = tuple(a_virtual(d, i) for i, (d, p) in enumerate(zip(drivers, places, strict=True)) if p[3])
    safe = Paster().process(an_item(faces, virtual))
    assert {*safe.replaced} | {r.track_id for r in safe.redactions} == {f.track_id for f in faces}
    assert not {*safe.replaced} & {r.track_id for r in safe.redactions}


@pytest.mark.parametrize("centre", [(10, 128), (250, 128), (128, 8), (128, 250), (2, 2)])
def test_faces_cut_by_the_frame_are_covered(centre: tuple[float, float]) -> None:
    driver = a_mesh_xy(centre)
    image = a_picture((256, 256), driver, (180, 130, 110))
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),), image=image))
    assert abs(_raw_share(image, safe.image_rgb, driver)) < 0.15


@pytest.mark.parametrize("width", [14, 40, 300, 700])
def test_faces_of_all_sizes_are_covered(width: int) -> None:
    side = max(64, int(width * 1.6))
    driver = a_mesh_xy((side / 2, side / 2), float(width))
    image = a_picture((side, side), driver, (180, 130, 110))
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),), image=image))
    assert safe.replaced == (1,)
    assert abs(_raw_share(image, safe.image_rgb, driver)) < 0.2


def test_a_still_scene_stays_still() -> None:
    driver, paster = a_mesh_xy(), Paster()
    face, virtual = a_face(driver), a_virtual(driver)
    image = cv2.GaussianBlur(a_picture((256, 256), driver, (180, 130, 110)), (0, 0), 2)
    outs = [
        paster.process(an_item((face,), (virtual,), image=np.asarray(image, np.uint8), index=i)).image_rgb
        for i in range(60)
    ]
    assert np.abs(outs[-1].astype(int) - outs[-2]).max() <= 2


def test_trembling_over_a_still_source_is_quieted_and_motion_is_not_delayed() -> None:
    rng, driver, paster = np.random.default_rng(5), a_mesh_xy(), Paster()
    still = np.asarray(cv2.GaussianBlur(a_picture((256, 256), driver, (180, 130, 110)), (0, 0), 2), np.uint8)
    outs = []
    for i in range(30):
        seen = driver + rng.normal(0, 0.4, driver.shape).astype(np.float32)
        crop = np.random.default_rng(i).normal(0, 6, (256, 256, 1)) + np.array([200, 160, 140])
        virtual = a_virtual(seen, crop_rgb=crop.clip(0, 255).astype(np.uint8))
        outs.append(paster.process(an_item((a_face(seen),), (virtual,), image=still, index=i)).image_rgb)
    assert np.abs(outs[-1].astype(int) - outs[-2])[80:170, 90:166].mean() < 1.0
    moved = driver + np.array([24, 0], np.float32)
    image = np.asarray(cv2.GaussianBlur(a_picture((256, 256), moved, (180, 130, 110)), (0, 0), 2), np.uint8)
    out = paster.process(an_item((a_face(moved),), (a_virtual(moved),), image=image, index=30)).image_rgb
    fresh = Paster().process(an_item((a_face(moved),), (a_virtual(moved),), image=image)).image_rgb
    assert np.abs(out.astype(int) - fresh)[80:170, 110:196].mean() < 12


def test_state_ends_with_a_cut_and_with_close() -> None:
    driver, paster = a_mesh_xy(), Paster()
    face, virtual = a_face(driver), a_virtual(driver)
    first = paster.process(an_item((face,), (virtual,))).image_rgb
    dark = (a_picture((256, 256), driver, (180, 130, 110)) * 0.4).astype(np.uint8)
    paster.process(an_item((face,), (virtual,), image=dark, index=1))
    again = paster.process(an_item((face,), (virtual,), index=0, is_cut=True)).image_rgb
    assert (again == first).all()
    paster.close()
    paster.open()
    assert (paster.process(an_item((face,), (virtual,))).image_rgb == first).all()


def _long_brows(points: F32) -> F32:
    """Brows whose tails' landmarks reach far to the side, as over hair."""
    out = points.copy()
    for brow, x in ((RIGHT_BROW, -0.26), (LEFT_BROW, 0.26)):
        ring(brow, (x, -0.24), (0.19, 0.02), out)
        out[brow] = out[brow] * 120 + 128
    return out


def test_nothing_of_the_drivers_hair_is_left_over_the_face() -> None:
    driver = a_mesh_xy()
    image = a_picture((256, 256), driver, (180, 130, 110))
    top, brows = driver[OVAL].min(0)[1], driver[RIGHT_BROW].min(0)[1]
    image[: int((top + brows) / 2)] = (34, 28, 26)
    image[:, : int(driver[OVAL].min(0)[0] + 12)] = (34, 28, 26)
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),), image=image))
    assert safe.replaced == (1,)
    ring = driver[OVAL] + 0.12 * (driver[OVAL].mean(0) - driver[OVAL])
    x, y = np.rint(ring).astype(int).T
    assert safe.image_rgb[y, x].min() > 60


def test_a_dark_brow_is_no_hair() -> None:
    driver = _long_brows(a_mesh_xy())
    image = a_picture((256, 256), driver, (180, 130, 110))
    for brow in (RIGHT_BROW, LEFT_BROW):
        cv2.fillPoly(image, [cv2.convexHull(np.rint(driver[brow]).astype(np.int32))], (34, 28, 26))
    safe = Paster().process(an_item((a_face(driver),), (a_virtual(driver),), image=image))
    at = np.rint(driver[np.concatenate([RIGHT_BROW, LEFT_BROW])]).astype(int)
    assert safe.image_rgb[at[:, 1], at[:, 0]].min() > 70


def test_a_recogniser_does_not_find_the_driver_again(models: Any, shared_dir: Path) -> None:
    """Photos of real people under faces of generated ones, pose and expression not matched: SFace says the
    generated person rather than the driver, and on average says no match (0.363) to the driver."""
    from keyface.pipeline.faces.landmarks import LiteRtLandmarker

    detector = cv2.FaceDetectorYN.create(str(models.path("yunet")), "", (256, 256))
    recogniser = cv2.FaceRecognizerSF.create(str(models.path("sface")), "")
    landmarker = LiteRtLandmarker.from_folder(models.path("face_mesh").parent)
    drivers = sorted((shared_dir / "data/photos/ffhq256").iterdir())[:14]
    people = sorted((shared_dir / "data/photos/stylegan256").iterdir())[:14]
    similarities = []
    for driver_path, person_path in zip(drivers, people, strict=True):
        images = [
            cv2.resize(cv2.imread(str(p)), (256, 256), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
            for p in (driver_path, person_path)
        ]
        meshes, rows = [], []
        for image in images:
            _, found = detector.detect(image[..., ::-1].copy())
            rows.append(None if found is None else found[0])
            box = None if found is None else np.array([*found[0][:2], *(found[0][:2] + found[0][2:4])])
            meshes.append(None if box is None else landmarker.detect(image, box_xyxy=box.astype(np.float32)))
        if meshes[0] is None or meshes[1] is None:
            continue
        own, points = meshes[1].points_xy, meshes[0].points_xy
        corners = rows[0][4:14].reshape(5, 2)
        virtual = VirtualFace(1, images[1], meshes[1], fit_frame_from_crop(own, points))
        safe = Paster().process(an_item((a_face(points, points_5=corners),), (virtual,), image=images[0]))
        features = [
            recogniser.feature(recogniser.alignCrop(np.ascontiguousarray(image[..., ::-1]), row)).copy()
            for image, row in ((images[0], rows[0]), (images[1], rows[1]), (safe.image_rgb, rows[0]))
        ]
        if safe.replaced:
            similarities.append(
                [recogniser.match(f, features[2], cv2.FaceRecognizerSF_FR_COSINE) for f in features[:2]]
            )
    driver_cosine, virtual_cosine = np.array(similarities).T
    assert len(similarities) >= 8
    assert np.mean(driver_cosine) < 0.32 and np.mean(driver_cosine > 0.363) < 0.3, sorted(driver_cosine)
    assert np.mean(virtual_cosine > driver_cosine) > 0.85
