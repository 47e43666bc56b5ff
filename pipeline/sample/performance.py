"""A scripted performance for a generated person: what the head and face of the sample clip do, and say.

The script is a pure function of time, so the sample clip is the same on every machine. It holds what an
anonymiser has to follow: head turns and nods, speech whose mouth shapes fit the sound, blinks, a glance
to each side, raised brows, and a smile. Nobody's movements were recorded for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import BLENDSHAPE_NAMES, F32

SAMPLE_RATE_HZ = 48_000
_PITCH_HZ = 165.0
_INDEX = {name: index for index, name in enumerate(BLENDSHAPE_NAMES)}

# Mouth shapes, as blendshape coefficients, and the first three formants in Hz of the sound that fits each.
_VISEMES: dict[str, dict[str, float]] = {
    "a": {"jawOpen": 0.52, "mouthLowerDown": 0.35, "mouthUpperUp": 0.20},
    "e": {"jawOpen": 0.26, "mouthStretch": 0.30, "mouthLowerDown": 0.35, "mouthUpperUp": 0.18},
    "i": {"jawOpen": 0.12, "mouthStretch": 0.40, "mouthSmile": 0.20, "mouthLowerDown": 0.25},
    "o": {"jawOpen": 0.34, "mouthFunnel": 0.50, "mouthPucker": 0.30},
    "u": {"jawOpen": 0.12, "mouthFunnel": 0.25, "mouthPucker": 0.75},
    "m": {"mouthPress": 0.40, "mouthRollLower": 0.25, "mouthRollUpper": 0.20},
}
_FORMANTS_HZ: dict[str, tuple[float, float, float]] = {
    "a": (800, 1200, 2600),
    "e": (500, 1900, 2600),
    "i": (300, 2300, 3000),
    "o": (480, 900, 2500),
    "u": (330, 800, 2400),
    "m": (250, 1100, 2200),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """What the performer does at one time.

    Attributes:
        pose_ypr_deg: float32 (3,) yaw, pitch, roll, signs as in `pipeline.face`.
        blendshapes: float32 (52,) [0, 1], order of BLENDSHAPE_NAMES.
        sway_xy: shift of the head in the picture, in widths of the picture.
    """

    pose_ypr_deg: F32
    blendshapes: F32
    sway_xy: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Syllable:
    """One voiced sound: its mouth shape, when it begins and how long it lasts."""

    viseme: str
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Performance:
    """A script of `duration_s` seconds (at least 2; actions are spread over it in proportion)."""

    duration_s: float = 8.0

    def __post_init__(self) -> None:
        if not 2.0 <= self.duration_s <= 120.0:
            raise ValueError(f"performance: got {self.duration_s} s, want 2 to 120")

    def syllables(self) -> tuple[Syllable, ...]:
        """Speech between 12 % and 68 % of the time, with a pause in the middle."""
        start_s, end_s = 0.12 * self.duration_s, 0.68 * self.duration_s
        pause_s = (start_s + end_s) / 2
        spoken, t = [], start_s
        for number, viseme in enumerate("maemioaumeaiomauoeimaou" * math.ceil(self.duration_s)):
            duration_s = 0.14 if viseme == "m" else 0.20 + 0.05 * math.sin(2.1 * number)
            if t < pause_s <= t + duration_s:
                t = pause_s + 0.35
            if t + duration_s > end_s:
                break
            spoken.append(Syllable(viseme, t, duration_s))
            t += 0.92 * duration_s
        return tuple(spoken)

    def at(self, t_s: float) -> Moment:
        """The moment `t_s` seconds from the start."""
        part = t_s / self.duration_s
        values = np.zeros(len(BLENDSHAPE_NAMES), np.float32)
        self._speak(values, t_s)
        self._blink(values, t_s)
        _look(values, part)
        smile = _bump(part, 0.72, 0.97)
        _add(values, {"mouthSmile": 0.75 * smile, "cheekSquint": 0.45 * smile, "eyeSquint": 0.25 * smile})
        brow = _bump(part, 0.36, 0.46) + 0.6 * _bump(part, 0.70, 0.80)
        _add(values, {"browInnerUp": 0.7 * brow, "browOuterUp": 0.6 * brow})
        yaw = 22.0 * math.sin(2 * math.pi * 1.5 * part) * _bump(part, 0.0, 1.0, edge=0.12)
        pitch = 7.0 * math.sin(2 * math.pi * 2.5 * part + 0.4) * _bump(part, 0.05, 0.98, edge=0.15)
        roll = 4.0 * math.sin(2 * math.pi * 1.0 * part + 0.9)
        sway = (0.022 * math.sin(2 * math.pi * 1.5 * part), 0.008 * math.sin(2 * math.pi * 2.0 * part))
        return Moment(np.array([yaw, pitch, roll], np.float32), values.clip(0.0, 1.0), sway)

    def voice(self) -> npt.NDArray[np.float32]:
        """Soft vowel-like tones for the syllables: float32 (n,), [-1, 1], mono, SAMPLE_RATE_HZ."""
        track = np.zeros(round(self.duration_s * SAMPLE_RATE_HZ), np.float32)
        for number, syllable in enumerate(self.syllables()):
            sound = _vowel(syllable, _PITCH_HZ * (1.0 + 0.08 * math.sin(1.3 * number)))
            first = round(syllable.start_s * SAMPLE_RATE_HZ)
            track[first : first + len(sound)] += sound[: len(track) - first]
        loudest = float(np.abs(track).max(initial=1e-6))
        return (0.3 * track / loudest).astype(np.float32)

    def _speak(self, values: F32, t_s: float) -> None:
        for syllable in self.syllables():
            # The mouth leads the sound by 60 ms and outlasts it, as mouths do.
            begin = syllable.start_s - 0.06
            weight = _bump(t_s, begin, begin + syllable.duration_s + 0.12, edge=0.5)
            _add(values, {name: weight * value for name, value in _VISEMES[syllable.viseme].items()})

    def _blink(self, values: F32, t_s: float) -> None:
        for part in (0.07, 0.33, 0.56, 0.70, 0.94):
            begin = part * self.duration_s
            _add(values, {"eyeBlink": _bump(t_s, begin, begin + 0.26, edge=0.45)})


def _look(values: F32, part: float) -> None:
    """A glance to the image's right, then one to its left."""
    right, left = _bump(part, 0.42, 0.52), _bump(part, 0.58, 0.67)
    _add(values, {"eyeLookOutLeft": 0.6 * right, "eyeLookInRight": 0.6 * right})
    _add(values, {"eyeLookInLeft": 0.6 * left, "eyeLookOutRight": 0.6 * left})


def _add(values: F32, changes: dict[str, float]) -> None:
    """Adds coefficients; a name without a side means both sides."""
    for name, value in changes.items():
        for full_name in (name, f"{name}Left", f"{name}Right"):
            if full_name in _INDEX:
                values[_INDEX[full_name]] += value


def _bump(x: float, begin: float, end: float, *, edge: float = 0.3) -> float:
    """0 outside [begin, end], 1 inside, with raised-cosine edges that take `edge` of the length each."""
    if not begin < x < end:
        return 0.0
    position = (x - begin) / (end - begin)
    nearest = min(position, 1.0 - position)
    return 1.0 if nearest >= edge else 0.5 - 0.5 * math.cos(math.pi * nearest / edge)


def _vowel(syllable: Syllable, pitch_hz: float) -> npt.NDArray[np.float32]:
    """Harmonics of the pitch, each as loud as the formants near it make it, under a smooth envelope."""
    t_s = np.arange(round(syllable.duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    harmonics_hz = pitch_hz * np.arange(1, int(4000 / pitch_hz) + 1)
    loudness = np.zeros(len(harmonics_hz))
    for rank, formant_hz in enumerate(_FORMANTS_HZ[syllable.viseme]):
        loudness += 0.6**rank / (1.0 + ((harmonics_hz - formant_hz) / 90.0) ** 2)
    vibrato = 0.15 * np.sin(2 * np.pi * 5.0 * (t_s + syllable.start_s))
    waves = np.sin(2 * np.pi * harmonics_hz[:, None] * t_s[None, :] + vibrato[None, :])
    envelope = np.sin(np.pi * np.arange(len(t_s)) / max(len(t_s), 1)) ** 1.2
    level = 0.35 if syllable.viseme == "m" else 1.0
    return (level * envelope * (loudness @ waves)).astype(np.float32)
