"""Anonymises one video from Python.

python examples/anonymise_video.py IN.mp4 OUT.mp4 my.key     (make the key with: keyface keygen my.key)
"""

from __future__ import annotations

import sys
from pathlib import Path

from keyface.engines.store import ModelStore
from keyface.pipeline.assemble import make_parts, model_names
from keyface.pipeline.people.key import Key
from keyface.pipeline.process import process_video
from keyface.pipeline.process_options import ProcessOptions


def main(source: Path, output: Path, key_file: Path) -> None:
    options = ProcessOptions(faces="all")
    store = ModelStore()
    store.ensure(model_names(options))  # fetches what is missing
    with Key.load(key_file) as key:
        summary = process_video(source, output, parts=make_parts(store, key, options), options=options)
    print(f"{summary.frames} frames, {summary.faces} faces, {summary.fps:.1f} fps")
    print(f"mosaic in {summary.redacted_frames} frames: {summary.redacted}")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
