"""Photos in and out: JPEG, PNG and WebP, upright, in sRGB, and without anything but pixels.

Only decoded pixels are carried from input to output. EXIF with its thumbnail, XMP, IPTC, comments,
preview pictures, pictures behind the first one (MPF), gain maps and colour profiles have no way
through. Transparent pixels come out black below their transparency, so that nothing hides there.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from keyface.configs.errors import SourceError
from keyface.pipeline.frame import Frame, ImageRgb, SafeFrame
from keyface.pipeline.media.open import check_readable_file
from keyface.pipeline.media.partial import PartialFile, sink_error
from keyface.pipeline.media.rotation import apply_turn, turn_of_exif

PhotoFormat = Literal["JPEG", "PNG", "WEBP"]
U8 = npt.NDArray[np.uint8]

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_PHOTO_PIXELS = 120_000_000

_FORMAT_OF_PIL: dict[str | None, PhotoFormat] = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP"}
_EXIF_ORIENTATION = 0x0112
_JPEG_QUALITY = 95
_WEBP_QUALITY = 95
# What Pillow raises on damaged files, depending on the format and on where the damage is.
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class PhotoInfo:
    """How to write a photo in the manner of the one that was read.

    Attributes:
        format: of the file's content, whatever its suffix says.
        is_grey: the photo has no colour and is written without.
        alpha: uint8 (H, W), upright, or None.
        is_lossless: WebP without loss.
        jpeg_subsampling: chroma sampling as Pillow numbers it (0: 4:4:4, 1: 4:2:2, 2: 4:2:0).
        notes: sentences on what was left out or reduced.
    """

    format: PhotoFormat
    is_grey: bool = False
    alpha: U8 | None = field(default=None, compare=False, repr=False)
    is_lossless: bool = False
    jpeg_subsampling: int = 2
    notes: tuple[str, ...] = ()


def read_photo(path: Path | str, *, max_pixels: int = MAX_PHOTO_PIXELS) -> tuple[Frame, PhotoInfo]:
    """Reads a photo.

    Returns:
        The frame (index 0, time 0; upright, sRGB, 8 bits) and what `write_photo` needs.

    Raises:
        SourceError: missing, unreadable, not a JPEG, PNG or WebP, animated, damaged, too large.
    """
    path = Path(path)
    check_readable_file(path, "a photo")
    try:
        with warnings.catch_warnings():
            # Sizes are checked here, against a limit of our own; other warnings are about bad metadata.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                kind = _check_kind(path, image, max_pixels)
                image.load()
                return _decode(image, kind)
    except UnidentifiedImageError as error:
        raise SourceError(f"{path} is not a photo that can be read.", "Give JPEG, PNG or WebP.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "", max_pixels) from error
    except _DECODER_ERRORS as error:
        raise SourceError(f"{path} is truncated or damaged: {error}.", "Copy the file again.") from error


def write_photo(path: Path | str, frame: SafeFrame, info: PhotoInfo) -> None:
    """Writes a photo in the format of `info`; the file appears under its name only when it is whole.

    JPEG and WebP are written at quality 95, with the chroma sampling of the source.

    Raises:
        TypeError: `frame` is not a `SafeFrame`.
        ValueError: the alpha of `info` has another size than `frame`.
        SinkError: the folder is missing or may not be written, or the disk is full.
    """
    if type(frame) is not SafeFrame:
        raise TypeError(f"photo: got {type(frame).__name__}, want SafeFrame")
    image = _to_image(frame.image_rgb, info)
    partial = PartialFile(path)
    try:
        image.save(partial.temporary, format=info.format, **_save_options(info))
    except (OSError, ValueError) as error:
        raise sink_error(partial.path, error) from error
    else:
        partial.commit()
    finally:
        partial.abort()


def _check_kind(path: Path, image: Image.Image, max_pixels: int) -> PhotoFormat:
    kind = _FORMAT_OF_PIL.get(image.format)
    if kind is None:
        raise SourceError(f"{path} is a {image.format} picture.", "Convert it to JPEG, PNG or WebP first.")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise SourceError(f"{path} is animated.", "Convert it to a video (MP4) first.")
    if image.width * image.height > max_pixels:
        raise _too_large(path, f" of {image.width}x{image.height}", max_pixels)
    return kind


def _too_large(path: Path, size: str, max_pixels: int) -> SourceError:
    limit = f"{max_pixels / 1e6:.0f} megapixels"
    return SourceError(
        f"{path} holds a picture{size} that is larger than the limit of {limit}.", "Scale it down first."
    )


def _decode(image: Image.Image, kind: PhotoFormat) -> tuple[Frame, PhotoInfo]:
    notes: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"Only the first of {image.n_frames} pictures in the file is kept.")  # type: ignore[attr-defined]
    if image.mode.startswith("I") or image.mode == "F":
        notes.append("16-bit grey is reduced to 8 bits.")
    turn = turn_of_exif(_orientation(image, notes))
    is_grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    sampling = JpegImagePlugin.get_sampling(image) if kind == "JPEG" else -1
    colours, alpha = _split_alpha(image)
    image_rgb = np.asarray(_to_srgb(colours, image.info.get("icc_profile"), notes), dtype=np.uint8)
    if alpha is not None:
        image_rgb = np.where(alpha[:, :, None] == 0, np.uint8(0), image_rgb)
        alpha = np.ascontiguousarray(apply_turn(alpha, turn))
    frame = Frame(np.ascontiguousarray(apply_turn(image_rgb, turn)), index=0, pts_s=0.0)
    info = PhotoInfo(
        format=kind, is_grey=is_grey, alpha=alpha, is_lossless=kind == "WEBP" and _is_lossless_webp(image),
        jpeg_subsampling=sampling if sampling >= 0 else 2, notes=tuple(notes),
    )  # fmt: skip
    return frame, info


def _split_alpha(image: Image.Image) -> tuple[Image.Image, U8 | None]:
    """The picture without alpha (L, RGB or CMYK, 8 bits) and its alpha, if any."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(deep / 257), 0, 255).astype(np.uint8)), None
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image), 0, 255).astype(np.uint8)), None
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if has_alpha:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), np.asarray(rgba.getchannel("A"), dtype=np.uint8)
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """RGB in sRGB; a profile that cannot be used is left aside, and said."""
    if profile:
        try:
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            notes.append("The colour profile could not be used and is dropped.")
        else:
            assert converted is not None
            return converted
    return image.convert("RGB")


def _is_lossless_webp(image: Image.Image) -> bool:
    """True when the picture is in a VP8L chunk, the lossless coding of WebP."""
    with open(str(image.filename), "rb") as file:  # type: ignore[attr-defined]
        file.seek(12)
        while len(header := file.read(8)) == 8:
            if header[:4] in (b"VP8L", b"VP8 "):
                return bool(header[:4] == b"VP8L")
            size = int.from_bytes(header[4:], "little")
            file.seek(size + size % 2, io.SEEK_CUR)
    return False


def _orientation(image: Image.Image, notes: list[str]) -> object:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except (*_DECODER_ERRORS, struct.error):
        notes.append("The EXIF data is damaged; the picture is taken as upright.")
        return None


def _to_image(image_rgb: ImageRgb, info: PhotoInfo) -> Image.Image:
    colours = Image.fromarray(image_rgb)
    if info.is_grey:
        colours = colours.convert("L")
    if info.alpha is None:
        return colours
    if info.alpha.shape != image_rgb.shape[:2]:
        raise ValueError(f"photo: got alpha {info.alpha.shape}, want {image_rgb.shape[:2]}")
    visible = Image.fromarray(
        np.where(info.alpha[:, :, None] == 0, np.uint8(0), np.asarray(colours.convert("RGB")))
    )
    if info.is_grey and info.format == "PNG":
        visible = visible.convert("L")
    visible.putalpha(Image.fromarray(info.alpha))
    return visible


def _save_options(info: PhotoInfo) -> dict[str, Any]:
    match info.format:
        case "JPEG":
            return {"quality": _JPEG_QUALITY, "subsampling": info.jpeg_subsampling}
        case "PNG":
            return {"compress_level": 6}
        case "WEBP":
            return {"lossless": info.is_lossless, "quality": _WEBP_QUALITY, "method": 4, "exact": False}
