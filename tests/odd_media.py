"""Makes the odd videos that real life brings, without a face in them, at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
RATE_HZ = 48000


@dataclass(frozen=True)
class Sound:
    """One audio track: codec, length, start on the clock of the file, Hz."""

    codec: str = "aac"
    seconds: float = 1.0
    start_s: float = 0.0
    rate_hz: int = RATE_HZ
    layout: str = "stereo"


def picture(index: int = 0, size_wh: tuple[int, int] = (96, 64)) -> U8:
    """A smooth coloured picture that moves with `index` and is nowhere symmetric."""
    width, height = size_wh
    x = np.linspace(0, 1, width, dtype=np.float64)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float64)[:, None]
    waves = [
        128 + 60 * np.sin(5 * x + 3 * y + 0.3 * index) * y + 50 * x,
        128 + 70 * np.cos(4 * y - 0.2 * index) - 40 * x * y,
        40 + 150 * x * (1 - y) + 20 * np.sin(0.5 * index),
    ]
    return (
        np.stack([np.broadcast_to(w, (height, width)) for w in waves], axis=-1).clip(0, 255).astype(np.uint8)
    )


def write_video(
    path: Path,
    *,
    n_frames: int = 12,
    size_wh: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    time_base: Fraction = Fraction(1, 25),
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    sounds: Sequence[Sound] = (),
    rotation_deg: int | None = None,
    is_mirrored: bool = False,
    tags: dict[str, int] | None = None,
    metadata: dict[str, str] | None = None,
    cover: bool = False,
    images: Sequence[U8] | None = None,
    movflags: str = "",
) -> Path:
    """Encodes `images` (by default `picture(0..)`) and returns `path`; the suffix chooses the container."""
    pts = list(range(n_frames)) if pts is None else list(pts)
    images = [picture(i, size_wh) for i in range(len(pts))] if images is None else images
    flags = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", container_options=flags) as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream(codec, rate=round(1 / time_base) if time_base.denominator < 1000 else 25)
        stream.width, stream.height = images[0].shape[1], images[0].shape[0]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        stream.options = options or {}
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation_deg is not None:
            stream.set_display_rotation(rotation_deg, hflip=is_mirrored)
        audio = [(sound, _add_sound(out, sound)) for sound in sounds]
        cover_stream = _add_cover(out) if cover else None
        if cover_stream is not None:
            _mux_cover(out, cover_stream)
        for image, stamp in zip(images, pts, strict=True):
            out.mux(stream.encode(_video_frame(image, pix_fmt, stamp, time_base, tags or {})))
        out.mux(stream.encode(None))
        for sound, track in audio:
            _write_sound(out, track, sound)
    return path


def write_sound_only(path: Path, sound: Sound | None = None, *, cover: bool = False) -> Path:
    """An audio file, with a cover picture if asked."""
    sound = sound or Sound()
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as out:
        track = _add_sound(out, sound)
        cover_stream = _add_cover(out) if cover else None
        if cover_stream is not None:
            _mux_cover(out, cover_stream)
        _write_sound(out, track, sound)
    return path


def write_without_frames(path: Path) -> Path:
    """A video track that holds nothing."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        out.start_encoding()
    return path


def write_changing_size(path: Path, sizes_wh: Sequence[tuple[int, int]], n_each: int = 4) -> Path:
    """Motion JPEG in AVI whose pictures change their size."""
    with av.open(str(path), "w") as out:
        stream = out.add_mux_stream("mjpeg", rate=25, width=sizes_wh[0][0], height=sizes_wh[0][1])
        stream.time_base = Fraction(1, 25)
        stamp = 0
        for size_wh in sizes_wh:
            for data in _jpeg_packets(size_wh, n_each):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = stamp
                packet.duration, packet.is_keyframe = 1, True
                out.mux(packet)
                stamp += 1
    return path


def spoil_packets(path: Path, numbers: Sequence[int], *, keep_share: float = 0.3) -> Path:
    """Overwrites the later part of some video packets with zeros, inside the file."""
    with av.open(str(path)) as source:
        packets = [bytes(p) for p in source.demux(source.streams.video[0]) if p.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        position, size = data.index(packets[number]), len(packets[number])
        begin = position + int(size * keep_share)
        data[begin : position + size] = bytes(position + size - begin)
    path.write_bytes(bytes(data))
    return path


def cut_file(path: Path, share: float) -> Path:
    """Keeps only the first `share` of the file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def sound_packets(path: Path) -> list[tuple[str, list[bytes]]]:
    """Codec and packets of every audio track."""
    tracks = []
    with av.open(str(path)) as probe:
        n_tracks = len(probe.streams.audio)
    for number in range(n_tracks):
        with av.open(str(path)) as container:
            stream = container.streams.audio[number]
            tracks.append((stream.codec_context.name, [bytes(p) for p in container.demux(stream) if p.size]))
    return tracks


def sound_samples(path: Path, track: int = 0) -> tuple[float, npt.NDArray[np.float32]]:
    """Start in seconds and samples (n,) at 48 kHz, mono, of one audio track."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[track]
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE_HZ)
        parts, start_s = [], None
        for frame in container.decode(stream):
            if start_s is None:
                start_s = float(frame.pts * frame.time_base)
            parts += [r.to_ndarray()[0] for r in resampler.resample(frame)]
        parts += [r.to_ndarray()[0] for r in resampler.resample(None)]
    return start_s or 0.0, np.concatenate(parts)


def tone(seconds: float, rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    """A tone whose pitch rises, so that every moment can be told from every other."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (300 * t + 200 * t * t))).astype(np.float32)


def _video_frame(image: U8, pix_fmt: str, stamp: int, time_base: Fraction, tags: dict[str, int]) -> Any:
    has_alpha = "a" in pix_fmt.removeprefix("gray").removeprefix("yuv")[:1]
    if has_alpha:
        alpha = np.full((*image.shape[:2], 1), 200, np.uint8)
        frame = av.VideoFrame.from_ndarray(np.concatenate([image, alpha], axis=2), format="rgba")
    else:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    matrix = {1: 1, 5: 5, 6: 5, 9: 9}.get(tags.get("colorspace", 2), 5)
    colour_range = 2 if pix_fmt.startswith("yuvj") else tags.get("color_range", 1)
    frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=colour_range)
    frame.pts, frame.time_base = stamp, time_base
    return frame


def _add_sound(out: Any, sound: Sound) -> Any:
    return out.add_stream(sound.codec, rate=sound.rate_hz, layout=sound.layout)


def _write_sound(out: Any, track: Any, sound: Sound) -> None:
    channels = av.AudioLayout(sound.layout).nb_channels
    samples = np.repeat(tone(sound.seconds, sound.rate_hz)[None, :], channels, axis=0)
    for begin in range(0, samples.shape[1], 960):
        chunk = np.ascontiguousarray(samples[:, begin : begin + 960])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.time_base = sound.rate_hz, Fraction(1, sound.rate_hz)
        frame.pts = begin + round(sound.start_s * sound.rate_hz)
        out.mux(track.encode(frame))
    out.mux(track.encode(None))


def _add_cover(out: Any) -> Any:
    stream = out.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
    stream.disposition = 0x400  # attached picture
    return stream


def _mux_cover(out: Any, stream: Any) -> None:
    frame = av.VideoFrame.from_ndarray(picture(3, (320, 240)), format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _jpeg_packets(size_wh: tuple[int, int], count: int) -> list[bytes]:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height = size_wh
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    packets = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(picture(index, size_wh), format="rgb24").reformat(
            format="yuvj420p"
        )
        frame.pts = index
        packets += encoder.encode(frame)
    return [bytes(p) for p in (*packets, *encoder.encode(None))]
