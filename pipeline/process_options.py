"""How files are processed: the options of `keyface process`, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from keyface.configs.errors import UsageError
from keyface.configs.schema import (
    BackendName,
    EncoderName,
    ReenactorChoice,
    ReenactorName,
    load_preset,
    preset_names,
)
from keyface.engines.chain_network import uses_card
from keyface.pipeline.choose import FacesChoice
from keyface.pipeline.runner import OnFault

GeneratorPx = Literal[256, 1024]

# What `auto` takes on each kind of device: the one that measured better, see docs/reenactor.md.
AUTO_REENACTOR: Mapping[Literal["cpu", "card"], ReenactorName] = {"cpu": "warp", "card": "latent"}
WARP_PX: GeneratorPx = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """How files are processed.

    Attributes:
        faces: "all", or "largest": only the largest track gets a virtual face, all others a mosaic.
        redact_only: mosaic all faces; needs no key and no generator.
        start_s, end_s: part of a video that is kept, seconds; None: from the start, to the end.
        keep_metadata: keep title, place, device and the like; pictures and thumbnails are dropped anyway.
        crf: constant rate factor of H.264, 0 (lossless) to 51.
        encoder: of videos: "software" (x264) or "nvenc", a graphics card's; see `media.encoder`.
        on_fault: "redact" mosaics a frame on which a stage fails, "stop" ends the file there.
        max_faults_in_a_row: more failures in a row end the file.
        stage_timeout_s: longest time for one frame in one stage.
        lookahead_s: how far back a face that is found late is hidden.
        generator_px: side of the virtual faces as they are rendered; 1024 is sharper in large faces and
            many times slower.
        reenactor: "latent": the generator renders every frame; "warp": it renders a person once, and a smaller
            network moves that picture, 256 px only; "auto": see `reenactor_used`.
        preset: how networks are run: "default", or "exact" for the same pixels on every machine.
        backend: inference back-end for all networks, "auto": as the preset prefers.
        threads: of one network; 0: as configured.
        frames_on_card: the analysis makes its networks' inputs on the card, and faces are blended into the frame
            there, see `engines.card_frame` and `engines.card_paste`; for TensorRT.
    """

    faces: FacesChoice = "all"
    redact_only: bool = False
    start_s: float | None = None
    end_s: float | None = None
    keep_metadata: bool = False
    crf: int = 18
    encoder: EncoderName = "software"
    on_fault: OnFault = "redact"
    max_faults_in_a_row: int = 30
    stage_timeout_s: float = 30.0
    lookahead_s: float = 0.5
    generator_px: GeneratorPx = 256
    reenactor: ReenactorChoice = "auto"
    preset: str = "default"
    backend: BackendName = "auto"
    threads: int = 0
    frames_on_card: bool = False

    def __post_init__(self) -> None:
        for name, value, legal in (
            ("--faces", self.faces, get_args(FacesChoice)),
            ("--on-fault", self.on_fault, get_args(OnFault)),
            ("--backend", self.backend, get_args(BackendName)),
            ("--reenactor", self.reenactor, get_args(ReenactorChoice)),
            ("--encoder", self.encoder, get_args(EncoderName)),
        ):
            if value not in legal:
                raise UsageError(f"{name}: got {value!r}.", f"Legal: {', '.join(legal)}.")
        if self.preset not in preset_names():
            raise UsageError(f"--preset: got {self.preset!r}.", f"Legal: {', '.join(preset_names())}.")
        if self.generator_px not in get_args(GeneratorPx):
            raise UsageError(f"--generator: got {self.generator_px}.", "Legal: 256, 1024.")
        if self.reenactor == "warp" and self.generator_px != WARP_PX:
            raise UsageError(
                f"--reenactor warp: it moves pictures of {WARP_PX} px, and --generator asks for {self.generator_px}.",
                "Leave one of them out.",
            )
        if self.frames_on_card and (
            self.backend == "onnxruntime_cuda"
            or not uses_card(self.backend, load_preset(self.preset).engines)
        ):
            raise UsageError(
                "--frames-on-card: the networks of this run are not on a card through TensorRT.",
                "Add --preset gpu, or leave it out.",
            )
        _check_range("--start", self.start_s, 0.0)
        _check_range("--end", self.end_s, 0.0)
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise UsageError(
                f"--end: got {self.end_s:g} s, which is not after the start.", "Give a later time."
            )
        _check_range("--crf", self.crf, 0, 51)
        _check_range("--max-faults", self.max_faults_in_a_row, 0)
        _check_range("--stage-timeout", self.stage_timeout_s, 0.1)
        _check_range("--lookahead", self.lookahead_s, 0.0, 5.0)
        _check_range("--threads", self.threads, 0)

    @property
    def reenactor_used(self) -> ReenactorName:
        """The reenactor asked for; with "auto" the better one, as measured, for the device and the generator."""
        if self.reenactor != "auto":
            return self.reenactor
        if self.generator_px != WARP_PX:
            return "latent"
        return AUTO_REENACTOR["card" if uses_card(self.backend, load_preset(self.preset).engines) else "cpu"]

    def settings(self) -> dict[str, Any]:
        """What decides the output, as plain values."""
        settings = asdict(self)
        settings["reenactor"] = self.reenactor_used
        if settings["reenactor"] == "latent":  # what was made when there was no other one stays valid
            del settings["reenactor"]
        if not self.frames_on_card:
            del settings["frames_on_card"]
        if self.encoder == "software":
            del settings["encoder"]
        for name in ("stage_timeout_s", "threads", "backend"):
            del settings[name]
        return settings


def _check_range(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    if value is None or (least <= value <= most and math.isfinite(value)):
        return
    want = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
    raise UsageError(f"{name}: got {value:g}, want {want}.", "See `keyface process --help`.")
