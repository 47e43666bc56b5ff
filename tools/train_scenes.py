"""Photos over which the projector's last steps paste virtual people. Their pictures stay in memory: none is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from keyface.configs.errors import SourceError
from keyface.configs.people_split import Split
from keyface.models.paste import SIDE, PhotoCrops
from keyface.pipeline.face import F32, AnalysedFrame, Face, FaceMesh, VirtualFace
from keyface.pipeline.faces.align import align_arcface, cut_out
from keyface.pipeline.faces.geometry import (
    box_from_mesh,
    compose_affine,
    points_5_from_mesh,
)
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.paste.blend import bend_between, crop_map, upscale_map
from keyface.pipeline.paste.hairline import zone_planes
from keyface.pipeline.paste.mask import Region, core_polygons, face_mask, fill, region_of, widened
from keyface.pipeline.paste.place import LEFT_EYE, OVAL, RIGHT_EYE, face_width, fit_frame_from_crop
from keyface.pipeline.reenact.mirror import pasted_alone
from keyface.pipeline.reenact.motion import amplified, controls_of, transfer
from keyface.tools.train_photos import PARTS, PersonPhoto, PhotoReader

MAX_YAW_DEG, MAX_PITCH_DEG = 30.0, 22.0
_FRINGE = 0.85  # as in `pipeline.paste.composite`
_STRIP = 0.10


@dataclass(frozen=True, slots=True)
class Scene:
    """One photo.

    Attributes:
        person: number; embeddings: (R, 128) of the photo.
        item, face: what the product's paster gets.
        controls: (54,) that a virtual person takes on.
        frame_from_seen: (2, 3), from the crop that recognisers see.
        region: of the photo, what is pasted; crops: one row of `PhotoCrops`.
    """

    person: int
    embeddings: F32
    item: AnalysedFrame
    face: Face
    controls: F32
    frame_from_seen: F32
    region: Region
    crops: PhotoCrops

    @property
    def mesh(self) -> FaceMesh:
        """The driver's."""
        assert self.face.mesh is not None
        return self.face.mesh

    def seen_in(self, image_rgb: ImageRgb) -> ImageRgb:
        """The crop that recognisers see, of the photo or what was made of it: uint8 (112, 112, 3)."""
        return cut_out(image_rgb, self.frame_from_seen, SIDE, border="black")

    def place(self, crop_rgb: ImageRgb, mesh: FaceMesh) -> tuple[F32, ImageRgb] | None:
        """`at` of `SoftPaste` (112, 112, 2) for a virtual face, and what the product's own paster makes of it as
        recognisers see it; None where that face cannot be pasted."""
        try:
            frame_from_crop = fit_frame_from_crop(mesh.points_xyz, self.mesh.points_xyz)
        except ValueError:
            return None
        virtual = VirtualFace(self.face.track_id, crop_rgb, mesh, frame_from_crop)
        pasted = pasted_alone(self.item, self.face, virtual)
        if pasted is None:
            return None
        bend = bend_between(self.mesh.points_xy[OVAL], mesh.points_xy, frame_from_crop)
        r = self.region
        over_region = upscale_map(crop_map(r, bend, frame_from_crop), (r.x1 - r.x0, r.y1 - r.y0))
        at = _on_seen(over_region, _region_from_seen(self.frame_from_seen, r), border=cv2.BORDER_REPLICATE)
        return ((at + 0.5) * (2 / crop_rgb.shape[0]) - 1).astype(np.float32), self.seen_in(pasted)


def read_scenes(
    photos: Sequence[PersonPhoto],
    part: Split,
    reader: PhotoReader,
    resting: F32,
    *,
    people: int,
    per_person: int = 3,
    seed: int = 0,
) -> list[Scene]:
    """Scenes of a part's people with two usable photos or more, in a seeded order; photos of strong pose are left
    out."""
    by_person: dict[int, list[PersonPhoto]] = {}
    for photo in photos:
        if PARTS[photo.part] == part:
            by_person.setdefault(photo.person, []).append(photo)
    rng, found, n_people = np.random.default_rng(seed), [], 0
    several = [p for p in sorted(by_person) if len(by_person[p]) > 1]
    for number in rng.permutation(several):
        own: list[Scene] = []
        for i in rng.permutation(len(by_person[int(number)])):
            scene = _read(by_person[int(number)][i], reader, resting)
            if scene is not None:
                own.append(scene)
            if len(own) == per_person:
                break
        if len(own) > 1:
            found += own
            n_people += 1
        if n_people == people:
            break
    return found


def _read(photo: PersonPhoto, reader: PhotoReader, resting: F32) -> Scene | None:
    try:
        looked = reader.look(photo.path)
    except SourceError:
        return None
    if looked is None:
        return None
    image_rgb, mesh = looked
    if abs(mesh.pose_ypr_deg[0]) > MAX_YAW_DEG or abs(mesh.pose_ypr_deg[1]) > MAX_PITCH_DEG:
        return None
    return make_scene(photo.person, image_rgb, mesh, reader.embed(image_rgb, mesh), resting)


def make_scene(
    person: int, image_rgb: ImageRgb, mesh: FaceMesh, embeddings: F32, resting: F32
) -> Scene | None:
    """The scene of a photo with one face; None where no face can be pasted."""
    controls = controls_of(mesh)
    controls[2:] = amplified(transfer(controls[2:], resting, resting), resting)
    points_5 = points_5_from_mesh(mesh.points_xyz)
    face = Face(1, box_from_mesh(mesh.points_xyz), points_5, 1.0, is_predicted=False, mesh=mesh)
    aligned = align_arcface(image_rgb, points_5)
    wide = widened(mesh.points_xy[OVAL], mesh.points_xy)
    region = region_of(np.concatenate([wide, mesh.points_xy]), (image_rgb.shape[1], image_rgb.shape[0]))
    if region is None:
        return None
    crops = _crops(aligned.crop_rgb, mesh.points_xy, wide, region, aligned.frame_from_crop)
    item = AnalysedFrame(Frame(image_rgb, 0, 0.0), (face,))
    return Scene(person, embeddings, item, face, controls, aligned.frame_from_crop, region, crops)


def _crops(base: ImageRgb, driver_xy: F32, wide: F32, region: Region, frame_from_seen: F32) -> PhotoCrops:
    """What the paste needs of a photo, as `pipeline.paste.composite` makes it, in the crop that recognisers see."""
    outline, width = driver_xy[OVAL], face_width(driver_xy)
    planes = zone_planes(region, driver_xy)
    mask, core = face_mask(region, [wide], core_polygons(driver_xy, width), width, planes[..., 0])
    inside = np.minimum(mask, fill(region, [outline]) * np.float32(1 / 255))
    forehead, high, upper = cv2.split(planes)
    soft = cv2.GaussianBlur(inside, (0, 0), _STRIP * width * region.scale)
    strip = np.clip((0.97 - soft) * 4, 0, 1) * (1 - core)
    eyes = fill(region, [cv2.convexHull(driver_xy[e])[:, 0] for e in (RIGHT_EYE, LEFT_EYE)])
    hair = np.maximum(high, strip) * (1 - core) * (1 - eyes * np.float32(1 / 255))
    skin = inside * (1 - core) * (1 - _FRINGE * forehead)
    low, high_xy = outline.min(0), outline.max(0)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).astype(np.float32)
    in_frame = grid @ frame_from_seen[:, :2].T + frame_from_seen[:, 2]
    uv = (in_frame - (low + high_xy) / 2) / max(width / 2, 1.0)
    to_region = _region_from_seen(frame_from_seen, region)
    full = (region.x1 - region.x0, region.y1 - region.y0)

    def seen(plane: F32) -> torch.Tensor:
        whole = cv2.resize(np.asarray(plane, np.float32), full, interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(_on_seen(whole, to_region))[None, None]

    return PhotoCrops(
        torch.from_numpy(base.astype(np.float32)).permute(2, 0, 1)[None],
        seen(mask), seen(inside), seen(skin),
        torch.from_numpy(uv.astype(np.float32)).permute(2, 0, 1)[None],
        seen(forehead), seen(hair), seen(upper),
    )  # fmt: skip


def _region_from_seen(frame_from_seen: F32, region: Region) -> F32:
    region_from_frame = np.array([[1, 0, -region.x0], [0, 1, -region.y0]], np.float32)
    return compose_affine(region_from_frame, frame_from_seen)


def _on_seen(plane: F32, region_from_seen: F32, *, border: int = cv2.BORDER_CONSTANT) -> F32:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(plane, region_from_seen, (SIDE, SIDE), flags=flags, borderMode=border)
    return np.asarray(warped, np.float32)
