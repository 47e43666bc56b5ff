"""Options as frozen dataclasses, and their strict reading from TOML.

A table's keys must be fields of the dataclass: an unknown key, a value of the wrong type or outside a
`Literal` is a `UsageError` that lists what is legal. A dataclass may check itself in `__post_init__` by
raising `UsageError`. Presets are TOML files in `configs/presets`, read in the same way.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from keyface.configs.errors import UsageError

BackendName = Literal[
    "auto", "onnxruntime", "openvino", "litert", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"
]
Precision = Literal["f32", "bf16", "f16"]
EncoderName = Literal["software", "nvenc"]
ReenactorName = Literal["latent", "warp"]
ReenactorChoice = Literal["auto", "latent", "warp"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How networks are run; the [engines] table.

    Attributes:
        threads: within one network; 0 leaves it to the back-end.
        threads_by_model: the same for single models, by manifest name.
        allow_spinning: idle threads of ONNX Runtime wait busily: faster alone, slower in company.
        backends: per model, back-ends in the order measured here, fastest first; the first that is
            installed is used, and a model that is not listed takes ONNX Runtime (LiteRT for .tflite).
        precision: used for the models in `reduced_precision` where back-end and processor can, else f32.
        reduced_precision: models whose output may be approximate.
        on_device_loss: when a graphics card is lost or full: go on on the CPU, or fail.
    """

    threads: int = 0
    threads_by_model: Mapping[str, int] = field(default_factory=dict)
    allow_spinning: bool = False
    backends: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    precision: Precision = "f32"
    reduced_precision: tuple[str, ...] = ()
    on_device_loss: Literal["cpu", "stop"] = "cpu"

    def __post_init__(self) -> None:
        for name, count in {"threads": self.threads, **self.threads_by_model}.items():
            if count < 0:
                raise UsageError(f"engines: threads of {name!r} is {count}, want 0 or more.")
        legal = get_args(BackendName)[1:]
        for model, wished in self.backends.items():
            for backend in wished:
                if backend not in legal:
                    raise UsageError(
                        f"engines.backends.{model}: unknown back-end {backend!r}.",
                        f"Legal: {', '.join(legal)}.",
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A file of `configs/presets`; one table for each field."""

    engines: EngineOptions = field(default_factory=EngineOptions)


def preset_names() -> tuple[str, ...]:
    """Names of the presets that the package carries, sorted."""
    return tuple(sorted(path.stem for path in _preset_folder().glob("*.toml")))


def load_preset(name: str = "default") -> Preset:
    """Reads a preset; raises UsageError with the known names."""
    if name not in preset_names():
        raise UsageError(f"no preset is called {name!r}.", f"Legal: {', '.join(preset_names())}.")
    return load_options(Preset, _preset_folder() / f"{name}.toml")


def load_options(options: type[T], path: Path) -> T:
    """Reads a TOML file into a frozen dataclass. Raises UsageError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    return read_options(options, table, where=path.name)


def read_options(options: type[T], table: Mapping[str, Any], *, where: str = "options") -> T:
    """Builds `options` (a dataclass type) from a parsed table; missing keys keep their defaults.

    Raises:
        UsageError: an unknown key or a bad value; the message names the place and the legal values.
    """
    hints = typing.get_type_hints(options)
    legal = {f.name for f in dataclasses.fields(options) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in legal:
            raise UsageError(f"{where}: unknown key {key!r}.", f"Legal keys: {', '.join(sorted(legal))}.")
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    return options(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} is {value!r}, want a table.")
        return read_options(hint, value, where=where)
    if origin is Literal:
        if value not in get_args(hint):
            legal = ", ".join(repr(choice) for choice in get_args(hint))
            raise UsageError(f"{where} is {value!r}.", f"Legal values: {legal}.")
        return value
    if origin in (typing.Union, types.UnionType):
        (inner,) = [choice for choice in get_args(hint) if choice is not type(None)]
        return _convert(inner, value, where)
    if origin is tuple:
        return _convert_list(get_args(hint), value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} is {value!r}, want a table.")
        return {str(key): _convert(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_list(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}, want a list.")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_convert(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(kinds):
        raise UsageError(f"{where} has {len(value)} values, want {len(kinds)}.")
    return tuple(
        _convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    # bool is a subclass of int, yet "threads = true" is a mistake.
    if hint not in (int, float, bool, str) or type(value) is not hint:
        want = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise UsageError(f"{where} is {value!r}, want {want.get(hint, str(hint))}.")
    return value


def _preset_folder() -> Path:
    return Path(str(files("keyface.configs"))) / "presets"
