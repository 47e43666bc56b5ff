"""Photos in and out: formats, orientation, colour, and that nothing but pixels gets through."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from odd_media import picture
from PIL import Image, ImageCms

from keyface.configs.errors import SinkError, SourceError
from keyface.pipeline.frame import Frame, seal
from keyface.pipeline.media.photo import PhotoInfo, read_photo, write_photo

U8 = npt.NDArray[np.uint8]
SIZE_WH = (96, 64)
SECRET = b"SECRET-OF-THE-ORIGINAL"


def rewrite(path: Path, out: Path) -> tuple[Frame, PhotoInfo]:
    frame, info = read_photo(path)
    write_photo(out, seal(frame, frame.image_rgb), info)
    return frame, info


def mean_error(image: Any, want: Any) -> float:
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(want).astype(int)).mean())


def exif_with_thumbnail(orientation: int = 1) -> bytes:
    """EXIF with place, device, and a JPEG thumbnail in its second directory."""
    thumbnail = io.BytesIO()
    Image.fromarray(picture(9, (32, 24))).save(thumbnail, "JPEG", comment=SECRET)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "Maker", SECRET.decode()
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 27.7)
    head = exif.tobytes()
    return head + thumbnail.getvalue()


@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [("a.jpg", {"quality": 95}, 3.0), ("a.png", {}, 0.0), ("a.webp", {"quality": 95}, 4.0),
     ("b.webp", {"lossless": True}, 0.0)],
)  # fmt: skip
def test_each_format_comes_back_as_itself(
    tmp_path: Path, name: str, options: dict[str, Any], limit: float
) -> None:
    Image.fromarray(picture()).save(tmp_path / name, **options)
    frame, info = rewrite(tmp_path / name, tmp_path / f"out-{name}")
    assert (frame.index, frame.pts_s, frame.pts) == (0, 0.0, None)
    assert mean_error(frame.image_rgb, picture()) <= limit
    with Image.open(tmp_path / name) as source, Image.open(tmp_path / f"out-{name}") as result:
        assert result.format == source.format == info.format
        assert result.size == source.size and result.mode == source.mode
        assert mean_error(result, source) <= limit
    assert info.is_lossless == (name == "b.webp") and info.notes == ()


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", format="PNG")
    rewrite(tmp_path / "a.jpg", tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as result:
        assert result.format == "PNG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_orientation_is_applied_and_forgotten(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture()
    Image.fromarray(stored).save(tmp_path / name, exif=exif.tobytes(), quality=98)
    want = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
        5: stored.transpose(1, 0, 2), 6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    frame, _ = rewrite(tmp_path / name, tmp_path / f"out-{name}")
    assert mean_error(frame.image_rgb, want) < 4
    with Image.open(tmp_path / f"out-{name}") as result:
        assert result.size == (want.shape[1], want.shape[0])
        assert not result.getexif()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_nothing_but_pixels_gets_through(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {
        "exif": exif_with_thumbnail(),
        "icc_profile": icc("sRGB"),
        "xmp": b"<x>" + SECRET,
    }
    if name == "a.jpg":
        options["comment"] = SECRET
    if name == "a.png":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("note", SECRET.decode())
    Image.fromarray(picture()).save(tmp_path / name, **options)
    data = (tmp_path / name).read_bytes()
    assert SECRET in data and (name == "a.png" or data.count(b"\xff\xd8\xff") >= 1)
    rewrite(tmp_path / name, tmp_path / f"out-{name}")
    out = (tmp_path / f"out-{name}").read_bytes()
    for word in (
        SECRET,
        b"Exif",
        b"http://ns.adobe.com",
        b"ICC_PROFILE",
        b"iCCP",
        b"ICCP",
        b"eXIf",
        b"XMP ",
        b"tEXt",
    ):
        assert word not in out, word
    assert out.count(b"\xff\xd8\xff") == (1 if name == "a.jpg" else 0), "one picture, no thumbnail"
    with Image.open(tmp_path / f"out-{name}") as result:
        assert set(result.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "loop", "background",
                                    "timestamp", "duration"}  # fmt: skip


def test_pictures_behind_the_first_are_dropped(tmp_path: Path) -> None:
    first, second = Image.fromarray(picture()), Image.fromarray(picture(20))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(tmp_path / "a.jpg") as probe:
        assert probe.format == "MPO" and probe.n_frames == 2  # type: ignore[attr-defined]
    frame, info = rewrite(tmp_path / "a.jpg", tmp_path / "out.jpg")
    assert mean_error(frame.image_rgb, picture()) < 3
    assert any("first of 2" in note for note in info.notes)
    out = (tmp_path / "out.jpg").read_bytes()
    assert out.count(b"\xff\xd8\xff") == 1 and b"MPF" not in out


def test_bytes_behind_the_picture_are_dropped(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(SECRET)
    rewrite(tmp_path / "a.jpg", tmp_path / "out.jpg")
    assert SECRET not in (tmp_path / "out.jpg").read_bytes()


def test_the_sampling_of_a_jpeg_is_kept(tmp_path: Path) -> None:
    for subsampling in (0, 1, 2):
        Image.fromarray(picture()).save(tmp_path / "a.jpg", subsampling=subsampling, quality=95)
        _, info = read_photo(tmp_path / "a.jpg")
        assert info.jpeg_subsampling == subsampling


# --- modes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_alpha_is_kept_and_nothing_hides_below_it(tmp_path: Path, name: str) -> None:
    alpha = np.tile(np.linspace(0, 255, SIZE_WH[0]).astype(np.uint8), (SIZE_WH[1], 1))
    alpha[:, :40] = 0
    rgba = np.dstack([picture(), alpha])
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    Image.fromarray(rgba).save(tmp_path / name, **options)
    frame, info = read_photo(tmp_path / name)
    assert info.alpha is not None and (info.alpha == alpha).all()
    assert (frame.image_rgb[:, :40] == 0).all()
    assert mean_error(frame.image_rgb[:, 41:], picture()[:, 41:]) == 0
    bright = np.full_like(frame.image_rgb, 200)
    write_photo(tmp_path / f"out-{name}", seal(frame, bright), info)
    with Image.open(tmp_path / f"out-{name}") as result:
        assert result.mode == "RGBA"
        got = np.asarray(result)
    assert (got[..., 3] == alpha).all() and (got[:, :40, :3] == 0).all() and (got[:, 41:, :3] == 200).all()


def test_alpha_turns_with_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.tile(np.arange(SIZE_WH[0], dtype=np.uint8) + 1, (SIZE_WH[1], 1))
    Image.fromarray(np.dstack([picture(), alpha])).save(tmp_path / "a.png", exif=exif.tobytes())
    frame, info = rewrite(tmp_path / "a.png", tmp_path / "out.png")
    assert info.alpha is not None and (info.alpha == np.rot90(alpha, -1)).all()
    assert frame.image_rgb.shape[:2] == info.alpha.shape


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(picture()).quantize(32)
    palette.save(tmp_path / "a.png")
    frame, info = rewrite(tmp_path / "a.png", tmp_path / "out.png")
    assert info.alpha is None and mean_error(frame.image_rgb, palette.convert("RGB")) == 0
    palette.save(tmp_path / "b.png", transparency=3)
    _, info = rewrite(tmp_path / "b.png", tmp_path / "out.png")
    assert info.alpha is not None and ((info.alpha == 0) == (np.asarray(palette) == 3)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_grey_stays_grey(tmp_path: Path, name: str) -> None:
    grey = Image.fromarray(picture()).convert("L")
    grey.save(tmp_path / name)
    frame, info = rewrite(tmp_path / name, tmp_path / f"out-{name}")
    assert info.is_grey and np.ptp(frame.image_rgb, axis=2).max() == 0
    with Image.open(tmp_path / f"out-{name}") as result:
        assert result.mode == "L" and mean_error(result, grey) < 2


def test_grey_with_alpha_and_black_and_white(tmp_path: Path) -> None:
    grey = Image.fromarray(picture()).convert("L")
    grey.putalpha(128)
    grey.save(tmp_path / "a.png")
    rewrite(tmp_path / "a.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as result:
        assert result.mode == "LA" and mean_error(result, grey) == 0
    Image.fromarray(picture()).convert("1").save(tmp_path / "b.png")
    frame, _ = rewrite(tmp_path / "b.png", tmp_path / "out.png")
    assert set(np.unique(frame.image_rgb)) == {0, 255}


def test_sixteen_bits_are_reduced_and_said(tmp_path: Path) -> None:
    deep = np.tile(np.linspace(0, 65535, SIZE_WH[0]).astype(np.uint16), (SIZE_WH[1], 1))
    Image.fromarray(deep).save(tmp_path / "a.png")
    frame, info = rewrite(tmp_path / "a.png", tmp_path / "out.png")
    assert np.abs(frame.image_rgb[..., 0].astype(int) - np.rint(deep / 257)).max() <= 1
    assert any("16-bit" in note for note in info.notes) and info.is_grey


def test_sixteen_bit_colour_is_read(tmp_path: Path) -> None:
    rows = picture().astype(np.uint16) * 257
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *SIZE_WH, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "a.png").write_bytes(data)
    frame, _ = read_photo(tmp_path / "a.png")
    assert mean_error(frame.image_rgb, picture()) <= 1


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    frame, _ = rewrite(tmp_path / "a.jpg", tmp_path / "out.jpg")
    assert mean_error(frame.image_rgb, picture()) < 5
    with Image.open(tmp_path / "out.jpg") as result:
        assert result.mode == "RGB"


def icc(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]


def swapped_profile() -> bytes:
    """sRGB with the colorants of red and blue exchanged: a profile that must not be ignored."""
    data = bytearray(icc("sRGB"))
    tags = {}
    for i in range(struct.unpack(">I", data[128:132])[0]):
        at = 132 + 12 * i
        tags[bytes(data[at : at + 4])] = struct.unpack(">II", data[at + 4 : at + 12])
    (red, size), (blue, _) = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red : red + size], data[blue : blue + size] = data[blue : blue + size], data[red : red + size]
    return bytes(data)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_colour_profiles_are_applied_and_dropped(tmp_path: Path, name: str) -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[...] = (220, 20, 20)
    Image.fromarray(red).save(tmp_path / name, icc_profile=swapped_profile(), quality=98)
    frame, info = rewrite(tmp_path / name, tmp_path / f"out-{name}")
    assert mean_error(frame.image_rgb, red[..., ::-1]) < 8, "what is stored as red is shown as blue"
    assert info.notes == ()
    with Image.open(tmp_path / f"out-{name}") as result:
        assert "icc_profile" not in result.info


def test_an_unusable_profile_is_said(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png", icc_profile=b"nonsense" * 40)
    frame, info = rewrite(tmp_path / "a.png", tmp_path / "out.png")
    assert mean_error(frame.image_rgb, picture()) == 0
    assert any("profile" in note for note in info.notes)


def test_damaged_exif_does_not_stop_the_photo(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30
    )
    frame, _ = rewrite(tmp_path / "a.jpg", tmp_path / "out.jpg")
    assert frame.image_rgb.shape == (64, 96, 3)


# --- refused ------------------------------------------------------------------------------------------


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(SourceError) as caught:
        read_photo(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("a.webp", "WEBP"), ("a.gif", "GIF"), ("a.png", "PNG")])
def test_animations_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    images = [Image.fromarray(picture(i)) for i in range(3)]
    images[0].save(tmp_path / name, format=kind, save_all=True, append_images=images[1:], duration=100)
    assert ("GIF" if kind == "GIF" else "animated") in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.bmp", "a.tiff", "a.gif", "a.ico"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    Image.fromarray(picture()).save(tmp_path / name)
    assert "JPEG, PNG or WebP" in refusal(tmp_path / name)


def test_bad_files_have_a_sentence_each(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    assert "not a photo" in refusal(tmp_path / "text.jpg")
    assert "empty" in refusal(tmp_path / "empty.jpg")
    assert "does not exist" in refusal(tmp_path / "missing.jpg")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert "truncated or damaged" in refusal(tmp_path / name) or "not a photo" in refusal(tmp_path / name)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_never_escapes_the_error_tree(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    name = ("a.jpg", "a.png", "a.webp")[seed % 3]
    Image.fromarray(picture()).save(tmp_path / name, exif=exif_with_thumbnail(), icc_profile=icc("sRGB"))
    data = bytearray((tmp_path / name).read_bytes())
    for place in rng.integers(8, len(data), 30):
        data[place] = rng.integers(256)
    (tmp_path / name).write_bytes(bytes(data))
    try:
        frame, _ = read_photo(tmp_path / name)
    except SourceError:
        return
    assert frame.image_rgb.dtype == np.uint8


def test_decompression_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000
    assert "larger than the limit" in refusal(tmp_path / "bomb.png")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    assert "12000x12000" in refusal(tmp_path / "large.png")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert "96x64" in refusal(tmp_path / "a.png", max_pixels=6000)


# --- writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [Frame(picture(), 0, 0.0), picture(), None])
def test_only_safe_frames_are_written(tmp_path: Path, raw: Any) -> None:
    with pytest.raises(TypeError, match="want SafeFrame"):
        write_photo(tmp_path / "out.png", raw, PhotoInfo("PNG"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.png").write_bytes(b"before")
    frame = Frame(picture(), 0, 0.0)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for target, name in ((Image.Image, "save"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            with pytest.raises(SinkError, match="disk is full"):
                write_photo(tmp_path / "out.png", seal(frame, frame.image_rgb), PhotoInfo("PNG"))
    assert (tmp_path / "out.png").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    frame = Frame(picture(), 0, 0.0)
    safe = seal(frame, frame.image_rgb)
    with pytest.raises(SinkError, match="does not exist"):
        write_photo(tmp_path / "no" / "out.png", safe, PhotoInfo("PNG"))
    with pytest.raises(SinkError, match="is a folder"):
        write_photo(tmp_path, safe, PhotoInfo("PNG"))
    with pytest.raises(ValueError, match="alpha"):
        write_photo(tmp_path / "out.png", safe, PhotoInfo("PNG", alpha=np.zeros((2, 2), np.uint8)))
    assert list(tmp_path.iterdir()) == []
