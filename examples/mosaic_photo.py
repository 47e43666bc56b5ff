"""Mosaics the faces of one photo, with the detector alone: no key, no virtual faces.

python examples/mosaic_photo.py IN.jpg OUT.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from keyface.engines.open import open_engine
from keyface.engines.store import ModelStore
from keyface.pipeline.faces.detect import YuNetDetector
from keyface.pipeline.frame import Redaction
from keyface.pipeline.media.photo import read_photo, write_photo
from keyface.pipeline.paste.redact import redact_frame


def main(source: Path, output: Path) -> None:
    store = ModelStore()
    store.ensure(["yunet_dynamic"])
    frame, info = read_photo(source)
    detector = YuNetDetector(open_engine(store.path("yunet_dynamic"), name="yunet_dynamic"))
    try:
        boxes = [detection.box_xyxy for detection in detector.detect(frame.image_rgb)]
    finally:
        detector.close()
    redactions = [Redaction((float(a), float(b), float(c), float(d)), "requested") for a, b, c, d in boxes]
    write_photo(output, redact_frame(frame, redactions), info)
    print(f"{len(boxes)} faces")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
