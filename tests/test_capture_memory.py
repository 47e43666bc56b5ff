"""A source that is opened again and again keeps nothing of the times before."""

from __future__ import annotations

import gc
from pathlib import Path

from odd_media import write_video

from keyface.pipeline.media.capture import FileSource


def test_a_closed_file_leaves_no_decoder_behind(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=5)
    gc.collect()
    gc.disable()  # the collector comes by chance; closing must do
    try:
        for _ in range(4):
            with FileSource(path) as source:
                assert len(list(source)) == 5
        del source
        kept = [thing for thing in gc.get_objects() if type(thing).__name__ == "InputContainer"]
    finally:
        gc.enable()
    assert len(kept) <= 1  # the last one
