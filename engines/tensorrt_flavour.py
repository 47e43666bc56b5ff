"""The two TensorRT libraries behind one record: `tensorrt` (10.x, 11.x) and `tensorrt_rtx`.

Their Python API is the same. `tensorrt` builds for the card that is there, any since SM75. `tensorrt_rtx`
builds for RTX cards only, but also ahead of time, on a machine without a card.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from keyface.configs.errors import EngineError
from keyface.engines.device_memory import DeviceInfo

FlavourName = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[FlavourName, ...] = get_args(FlavourName)

INSTALL: dict[FlavourName, str] = {
    "tensorrt": "pip install tensorrt",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
_OLDEST: dict[FlavourName, int] = {"tensorrt": 10, "tensorrt_rtx": 1}
_OLDEST_CARD = (7, 5)
_USE_RTX = "Use tensorrt_rtx."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flavour:
    """One TensorRT library that is loaded: its name, its module and its version."""

    name: FlavourName
    module: Any
    version: str

    @property
    def architectures(self) -> tuple[str, ...]:
        """What it builds ahead of time, such as "sm89"; empty: only for the card that is there."""
        if self.name != "tensorrt_rtx" or not hasattr(self.module, "ComputeCapability"):
            return ()
        names = (name for name in dir(self.module.ComputeCapability) if re.fullmatch(r"SM\d+", name))
        return tuple(sorted((name.lower() for name in names), key=lambda name: int(name[2:])))

    def check_ahead(self, architectures: tuple[str, ...]) -> None:
        """Raises EngineError unless it can build for all of these without a card."""
        wrong = [name for name in architectures if name not in self.architectures]
        if wrong:
            able = f"It builds for {', '.join(self.architectures)}." if self.architectures else _USE_RTX
            raise EngineError(f"{self.name} cannot build ahead of time for {', '.join(wrong)}.", able)

    def check_card(self, info: DeviceInfo) -> None:
        """Raises EngineError when it has no code for this card."""
        if self.architectures:
            if info.architecture not in self.architectures:
                legal = ", ".join(self.architectures)
                raise EngineError(
                    f"{self.name} has no code for {info.name} ({info.architecture}), only for {legal}.",
                    "Use --backend tensorrt or onnxruntime_cuda on this card.",
                )
        elif info.compute_capability < _OLDEST_CARD:
            raise EngineError(
                f"{self.name} wants a card of SM75 or newer, {info.name} is {info.architecture}.",
                "Use --backend onnxruntime_cuda on this card.",
            )


class Messages:
    """A logger for TensorRT that keeps its errors, for our own, and passes the rest to Python's logging.

    `logger` is an object of the module's own logger class, which its C++ side asks for.
    """

    def __init__(self, module: Any) -> None:
        self.errors: list[str] = []
        keeper: Messages = self
        base: Any = module.ILogger

        class _Logger(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                keeper._take(severity, message, base)

        self.logger = _Logger()

    def _take(self, severity: Any, message: str, base: Any) -> None:
        if severity in (base.ERROR, base.INTERNAL_ERROR):
            self.errors.append(message.strip())
        elif severity == base.WARNING:
            log.info("TensorRT: %s", message.strip())

    def take(self) -> str:
        """The errors since the last call, as one line."""
        errors, self.errors = self.errors, []
        return " ".join(errors)[:600].rstrip(".") or "no reason given"


def load_flavour(name: FlavourName) -> Flavour:
    """Imports one of the libraries. Raises EngineError: not installed, not loadable, or too old."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        missing = error.name == name if isinstance(error, ModuleNotFoundError) else False
        problem = f"{name} is not installed." if missing else f"{name} cannot be loaded: {error}."
        raise EngineError(problem, f"Install it: {INSTALL[name]}") from error
    except (OSError, RuntimeError) as error:  # a shared library that is missing
        raise EngineError(f"{name} cannot be loaded: {error}.", f"Install it: {INSTALL[name]}") from error
    version = str(module.__version__)
    if int(version.split(".")[0]) < _OLDEST[name]:
        raise EngineError(
            f"{name} {version} is too old, want {_OLDEST[name]}.0 or newer.", f"Install it: {INSTALL[name]}"
        )
    return Flavour(name, module, version)


def choose_flavour(info: DeviceInfo | None = None) -> Flavour:
    """The library for a card: the first that is installed and has code for it, `tensorrt` before
    `tensorrt_rtx`; without a card the one that builds ahead of time.

    Raises EngineError with every reason.
    """
    order = FLAVOURS if info is not None else ("tensorrt_rtx",)
    reasons = []
    for name in order:
        try:
            flavour = load_flavour(name)
            if info is not None:
                flavour.check_card(info)
            return flavour
        except EngineError as error:
            reasons.append(error.problem)
    raise EngineError(" ".join(reasons), f"Install one: {' or '.join(INSTALL[name] for name in order)}")


def is_installed(name: FlavourName) -> bool:
    """True when the library can be found; it is not imported."""
    return importlib.util.find_spec(name) is not None


def parse_architectures(text: str) -> tuple[str, ...]:
    """ "75,89" or "sm75,sm89" -> ("sm75", "sm89"), sorted, each once. Raises EngineError."""
    found = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:sm_?)?(\d{2,3})\s*", part, re.IGNORECASE)
        if match is None:
            raise EngineError(f"--sm: got {text!r}.", "Want numbers with commas, such as 75,80,86,89,120.")
        found.add(int(match[1]))
    return tuple(f"sm{number}" for number in sorted(found))
