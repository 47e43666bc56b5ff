"""The full warping reenactor for a graphics card: FaceVid2Vid's networks together.

    source picture -> features (once), canonical keypoints x_c (once)
    x_s = moved_keypoints(x_c, source's motion), x_d = moved_keypoints(x_c, driver's motion)
    features, x_s, x_d -> flow, visibility -> warped features -> picture

Where keypoints come from a mesh, `source` and `forward` are not for use, and `render` takes the mesh's points.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from keyface.models.facevid2vid_appearance import AppearanceExtractor
from keyface.models.facevid2vid_config import VOX_256, FaceVid2VidConfig
from keyface.models.facevid2vid_decoder import PlainDecoder, SpadeDecoder
from keyface.models.facevid2vid_geometry import HeadMotion, moved_keypoints
from keyface.models.facevid2vid_keypoints import CanonicalKeypoints
from keyface.models.facevid2vid_motion import DenseMotion
from keyface.models.facevid2vid_pose import PoseExpression
from keyface.models.facevid2vid_sampling import sample_volume


@dataclass(frozen=True, slots=True)
class Reenacted:
    """One pass of training, with what the losses need.

    Attributes:
        image: (N, 3, H, W) in [0, 1], the source in the driver's pose and expression.
        source_points, driving_points: (N, K, 3) in [-1, 1].
        driver: the driver's motion.
    """

    image: Tensor
    source_points: Tensor
    driving_points: Tensor
    driver: HeadMotion


class FaceVid2Vid(nn.Module):
    """All networks of `config`; pictures are RGB (N, 3, side_px, side_px) float in [0, 1]."""

    def __init__(self, config: FaceVid2VidConfig = VOX_256) -> None:
        super().__init__()
        self.config = config
        self.appearance = AppearanceExtractor(config)
        self.motion = DenseMotion(config)
        self.decoder = SpadeDecoder(config) if config.decoder == "spade" else PlainDecoder(config)
        self.keypoints = CanonicalKeypoints(config) if config.learns_keypoints else None
        self.pose = PoseExpression(config) if config.learns_keypoints else None

    def source(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of a source: features (N, 32, 16, 64, 64) and canonical keypoints (N, K, 3).

        Raises:
            ValueError: this network takes keypoints from outside.
        """
        return self.appearance(image), self._detector()(image)

    def render(self, features: Tensor, source_points: Tensor, driving_points: Tensor) -> Tensor:
        """The source moved from its keypoints to the driving ones, (N, 3, side, side) in [0, 1]."""
        flow, visibility = self.motion(features, source_points, driving_points)
        image: Tensor = self.decoder(sample_volume(features, flow), visibility)
        return image

    def forward(self, source_image: Tensor, driving_image: Tensor) -> Reenacted:
        """Canonical keypoints of the source, pose and expression of the driver; for training.

        Raises:
            ValueError: this network takes keypoints from outside.
        """
        features, canonical = self.source(source_image)
        at_source, driver = self.motion_of(source_image), self.motion_of(driving_image)
        source_points, driving_points = (
            moved_keypoints(canonical, at_source),
            moved_keypoints(canonical, driver),
        )
        return Reenacted(
            self.render(features, source_points, driving_points), source_points, driving_points, driver
        )

    def motion_of(self, image: Tensor) -> HeadMotion:
        """Pose and expression in a picture.

        Raises:
            ValueError: this network takes keypoints from outside.
        """
        if self.pose is None:
            raise ValueError(
                "this network takes keypoints from outside: it estimates neither pose nor expression"
            )
        motion: HeadMotion = self.pose(image)
        return motion

    def _detector(self) -> CanonicalKeypoints:
        if self.keypoints is None:
            raise ValueError("this network takes keypoints from outside: it has no keypoint detector")
        return self.keypoints
