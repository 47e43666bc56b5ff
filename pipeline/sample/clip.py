"""Makes the sample clip: a generated person who acts out a `Performance`, with sound.

Nobody real is in it: the pictures come from the generator and the movements from a script.
"""

from __future__ import annotations

import math
import tempfile
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from keyface.pipeline.face import F32
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.media.capture import SourceInfo
from keyface.pipeline.media.sink import Mp4Sink
from keyface.pipeline.paste.redact import redact_frame
from keyface.pipeline.sample.performance import SAMPLE_RATE_HZ, Moment, Performance

FPS = 25


class Portrait(Protocol):
    """A generated person who can be told how to look."""

    def render(self, pose_ypr_deg: F32, blendshapes: F32) -> ImageRgb:
        """uint8 (S, S, 3), FFHQ alignment (roll 0), for yaw, pitch and roll in degrees (roll is ignored:
        it belongs to the picture, not to the face) and 52 blendshapes in [0, 1]."""
        ...


def write_sample_clip(
    path: Path,
    portrait: Portrait,
    performance: Performance,
    *,
    size_px: int = 512,
    on_frame: Callable[[], object] | None = None,
) -> None:
    """Writes the clip as MP4 with sound; it appears under its name only whole.

    Args:
        path: of the new file; replaced if it exists.
        size_px: width and height, even.
        on_frame: called after each frame written.

    Raises:
        SinkError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="keyface-voice-") as folder:
        voice = Path(folder) / "voice.wav"
        write_voice(voice, performance)
        info = _info(voice, performance, size_px)
        with Mp4Sink(path, info, audio_from=voice) as sink:
            for frame in sample_frames(portrait, performance, size_px=size_px):
                sink.write(redact_frame(frame, ()))  # safe as it is: nobody real is in it
                if on_frame is not None:
                    on_frame()
            sink.commit()


def sample_frames(portrait: Portrait, performance: Performance, *, size_px: int = 512) -> Iterator[Frame]:
    """The frames of the clip, `size_px` square, FPS a second, each rendered when it is asked for."""
    for index in range(n_frames(performance)):
        moment = performance.at(index / FPS)
        picture = portrait.render(moment.pose_ypr_deg, moment.blendshapes)
        image_rgb = _held(picture, moment, size_px)
        yield Frame(image_rgb, index, index / FPS, pts=index, time_base=Fraction(1, FPS))


def n_frames(performance: Performance) -> int:
    """How many frames `sample_frames` gives."""
    return round(performance.duration_s * FPS)


def write_voice(path: Path, performance: Performance) -> None:
    """The performance's sound as a 16-bit mono WAV file."""
    samples = np.rint(performance.voice() * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.tobytes())


def _info(voice: Path, performance: Performance, size_px: int) -> SourceInfo:
    return SourceInfo(
        path=voice,
        container="generated",
        codec="rawvideo",
        pix_fmt="rgb24",
        size_wh=(size_px, size_px),
        fps=float(FPS),
        frame_rate=Fraction(FPS),
        duration_s=performance.duration_s,
        n_frames_hint=n_frames(performance),
        time_base=Fraction(1, FPS),
        first_pts=0,
    )


def _held(picture: ImageRgb, moment: Moment, size_px: int) -> ImageRgb:
    """The picture as from a camera held in the hand: turned by the roll and shifted by the sway, enlarged
    enough that the corners stay filled."""
    size_wh, roll_deg = (size_px, size_px), float(moment.pose_ypr_deg[2])
    how = cv2.INTER_AREA if size_px < picture.shape[0] else cv2.INTER_CUBIC
    fitted = cv2.resize(picture, size_wh, interpolation=how)
    middle = (size_px - 1) / 2
    zoom = 1.06 + abs(math.sin(math.radians(roll_deg)))
    matrix = cv2.getRotationMatrix2D((middle, middle), -roll_deg, zoom)  # OpenCV counts anticlockwise
    matrix[:, 2] += np.multiply(moment.sway_xy, size_px)
    held = cv2.warpAffine(fitted, matrix, size_wh, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(held, np.uint8)
