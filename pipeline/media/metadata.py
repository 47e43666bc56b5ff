"""Which texts of a source may be carried over on request: short ones, never a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from keyface.pipeline.media.open import open_input

_LONGEST = 1000  # characters; longer ones are XMP, lyrics, or a picture in base64
_ABOUT_THE_FILE = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "rotate"})
_MAY_HOLD_A_PICTURE = re.compile(r"thumb|cover|pict|image|artwork|preview|photo|xmp|icon", re.IGNORECASE)
_LOOKS_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{200,}")


def harmless_metadata(path: Path) -> dict[str, str]:
    """Key and text pairs of the file that hold no picture.

    Raises:
        SourceError: the file cannot be read.
    """
    container = open_input(path)
    try:
        return without_pictures(container.metadata)
    finally:
        container.close()


def without_pictures(metadata: Mapping[str, str]) -> dict[str, str]:
    """Drops what describes the old file, what is named like a picture, and what is long or encoded."""
    return {
        key: text
        for key, text in metadata.items()
        if key.lower() not in _ABOUT_THE_FILE
        and not _MAY_HOLD_A_PICTURE.search(key)
        and len(text) <= _LONGEST
        and not _LOOKS_ENCODED.search(text)
    }
