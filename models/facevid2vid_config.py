"""Sizes of the full warping reenactor; the defaults are those of the public 256 px checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DecoderKind = Literal["spade", "plain"]


@dataclass(frozen=True, kw_only=True)
class FaceVid2VidConfig:
    """What the shapes of all five networks follow from.

    Attributes:
        side_px: side of the source picture; the volume is side_px / 2^n_down wide.
        upscale: 2 gives a picture of twice that side (512 of 256), by one more step of the decoder.
        decoder: "spade" modulates by the warped features, "plain" is a stack of residual blocks.
        n_keypoints: 15 in public checkpoints; any number where keypoints come from outside.
        learns_keypoints: False: no keypoint detector and no pose network; a mesh gives keypoints instead.
        is_spectral: the SPADE blocks' convolutions are spectrally normalised, as needed in training only.

    Raises:
        ValueError: sizes that do not fit together.
    """

    side_px: int = 256
    upscale: Literal[1, 2] = 1
    decoder: DecoderKind = "spade"
    n_keypoints: int = 15
    learns_keypoints: bool = True
    is_spectral: bool = False
    # appearance and decoder
    width: int = 64
    n_down: int = 2
    volume_channels: int = 32
    volume_depth: int = 16
    n_resblocks: int = 6
    spade_hidden: int = 128
    # dense motion
    motion_width: int = 32
    motion_max_width: int = 1024
    motion_n_blocks: int = 5
    motion_channels: int = 4
    # keypoint detector
    detector_width: int = 32
    detector_max_width: int = 1024
    detector_n_blocks: int = 5
    detector_shrink: int = 4
    temperature: float = 0.1
    # head pose and expression
    pose_stem: int = 64
    pose_width: int = 256

    def __post_init__(self) -> None:
        if self.upscale not in (1, 2):
            raise ValueError(f"upscale {self.upscale}, want 1 or 2")
        if self.decoder not in ("spade", "plain"):
            raise ValueError(f"decoder '{self.decoder}', want one of spade, plain")
        steps = {
            "dense motion": self.volume_side * 2**-self.motion_n_blocks,
            "keypoint detector": self.side_px / self.detector_shrink * 2**-self.detector_n_blocks,
        }
        for name, left in steps.items():
            if left < 1 or left != int(left):
                raise ValueError(f"side_px {self.side_px} cannot be halved as often as the {name} does")

    @property
    def volume_side(self) -> int:
        """Height and width of the feature volume."""
        return self.side_px >> self.n_down

    @property
    def volume_dhw(self) -> tuple[int, int, int]:
        """Depth, height and width of the feature volume."""
        return self.volume_depth, self.volume_side, self.volume_side

    @property
    def flat_channels(self) -> int:
        """Channels of the volume with its depth folded in."""
        return self.volume_channels * self.volume_depth

    @property
    def deep_width(self) -> int:
        """Channels at the volume's resolution, before and after the volume."""
        return self.width << self.n_down


# What public checkpoints hold; the plain and the SPADE decoder differ in names too, see facevid2vid_layout.
VOX_256 = FaceVid2VidConfig()
