"""Prints who is where in a video: one CSV line per face and frame, with pose and a few expressions.

python examples/list_faces.py IN.mp4 > faces.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from keyface.engines.store import ModelStore
from keyface.pipeline.face import BLENDSHAPE_NAMES
from keyface.pipeline.faces.analyse import Analyser
from keyface.pipeline.media.capture import FileSource

SHOWN = ("jawOpen", "eyeBlinkLeft", "mouthSmileLeft")


def main(source: Path) -> None:
    store = ModelStore()
    store.ensure("default")
    analyser = Analyser.from_store(store)
    print("time_s,track,x0,y0,x1,y1,yaw,pitch,roll," + ",".join(SHOWN))
    analyser.open()
    try:
        with FileSource(source) as frames:
            for frame in frames:
                for face in analyser.process(frame).faces:
                    if face.mesh is not None:
                        shapes = [face.mesh.blendshapes[BLENDSHAPE_NAMES.index(name)] for name in SHOWN]
                        values = [*face.box_xyxy, *face.mesh.pose_ypr_deg, *shapes]
                        row = ",".join(f"{value:.2f}" for value in values)
                        print(f"{frame.pts_s:.3f},{face.track_id},{row}")
    finally:
        analyser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
