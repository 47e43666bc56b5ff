"""Files of named arrays (.npz): written whole or not at all, read without unpickling."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def write_arrays(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Writes `path`; its folder must exist."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def read_arrays(path: Path, *names: str) -> Arrays:
    """The arrays of these names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds other arrays.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in names}
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise ValueError(f"{path.name} is damaged ({error})") from error
