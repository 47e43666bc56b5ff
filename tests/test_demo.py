"""The demo, end to end, and the examples on what it made."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.contact_sheet import write_picture
from keyface.pipeline.media.photo import read_photo
from keyface.pipeline.people.key import Key
from keyface.pipeline.sample.performance import Performance
from keyface.tools import demo_command

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 3.0
pytestmark = pytest.mark.slow


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *(str(part) for part in command)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def demo(models: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "made"
    folder.mkdir()
    for number in (1, 2):  # keys that are there are used: the same faces in every run
        Key(bytes(range(number, number + 32))).save(folder / f"demo-{number}.key")
    options = ["--seconds", str(SECONDS), "--size", "256", "--out", str(folder)]
    done = run("-m", "keyface.tools.main", "demo", *options)
    told = [Path(line) for line in done.stdout.split()]
    assert sorted(told) == sorted(path for path in folder.iterdir() if path.suffix != ".key")
    return folder


def frames(path: Path) -> list[np.ndarray]:
    with FileSource(path) as source:
        return [frame.image_rgb for frame in source]


def test_makes_all_files_and_nothing_else(demo: Path) -> None:
    names = {path.name for path in demo.iterdir()}
    clips = {"original.mp4", "anonymised.mp4", "side-by-side.mp4", "contact-sheet.png"}
    assert names == clips | {"demo-1.key", "demo-2.key"}
    assert all((demo / name).stat().st_mode & 0o077 == 0 for name in ("demo-1.key", "demo-2.key"))


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.key"
    with demo_command._key(path) as made, demo_command._key(path) as again:
        assert made.fingerprint == again.fingerprint
    assert path.stat().st_mode & 0o077 == 0


def test_clips_match_frame_by_frame(demo: Path) -> None:
    with FileSource(demo / "original.mp4") as a, FileSource(demo / "anonymised.mp4") as b:
        times = [[frame.pts_s for frame in source] for source in (a, b)]
        assert a.info.audio_tracks[0].codec == b.info.audio_tracks[0].codec == "aac"
    assert times[0] == times[1] and len(times[0]) == round(SECONDS * 25)


def distance(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """Mean absolute difference over time and colours, levels, (H, W)."""
    pairs = zip(first, second, strict=True)
    return np.mean([np.abs(a.astype(int) - b).mean(axis=2) for a, b in pairs], axis=0)


def test_the_face_is_changed_and_the_rest_is_not(demo: Path) -> None:
    change = distance(frames(demo / "original.mp4"), frames(demo / "anonymised.mp4"))
    side = change.shape[0]
    corner = side // 12
    assert change[side // 3 : 3 * side // 4, side // 3 : 2 * side // 3].mean() > 8.0, "the face is as before"
    assert change[:corner, :corner].mean() < 3.0 and change[:corner, -corner:].mean() < 3.0, "background"


def test_the_generated_person_does_as_the_script_says(demo: Path) -> None:
    rows = list(
        csv.DictReader(io.StringIO(run(ROOT / "examples/list_faces.py", demo / "original.mp4").stdout))
    )
    assert len({row["track"] for row in rows}) == 1
    assert len(rows) >= 0.97 * SECONDS * 25, "the person must be seen in nearly every frame"
    script = [Performance(SECONDS).at(float(row["time_s"])) for row in rows]
    yaw = np.array([moment.pose_ypr_deg[0] for moment in script])
    roll = np.array([moment.pose_ypr_deg[2] for moment in script])
    assert np.corrcoef([float(row["yaw"]) for row in rows], yaw)[0, 1] > 0.9
    assert np.corrcoef([float(row["roll"]) for row in rows], roll)[0, 1] > 0.8
    for name, index in (("jawOpen", 25), ("mouthSmileLeft", 44), ("eyeBlinkLeft", 9)):
        wanted = [moment.blendshapes[index] for moment in script]
        assert np.corrcoef([float(row[name]) for row in rows], wanted)[0, 1] > 0.5, name


def test_contact_sheet_shows_three_rows_of_six(demo: Path) -> None:
    sheet = read_photo(demo / "contact-sheet.png")[0].image_rgb
    assert sheet.shape[1] == 6 * 224 + 7 * 6 and sheet.shape[0] > 3 * 224


def test_example_anonymises_a_video(demo: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    example = ROOT / "examples/anonymise_video.py"
    done = run(example, demo / "original.mp4", again, demo / "demo-1.key")
    assert f"{round(SECONDS * 25)} frames, 1 faces" in done.stdout
    first, original = frames(demo / "anonymised.mp4"), frames(demo / "original.mp4")
    same, other = distance(first, frames(again)), distance(first, original)
    assert same.mean() < 0.3 * other.mean(), "same person and key, same face"


def test_example_mosaics_a_photo(demo: Path, tmp_path: Path) -> None:
    picture = frames(demo / "original.mp4")[10]
    write_picture(tmp_path / "in.png", picture)
    done = run(ROOT / "examples/mosaic_photo.py", tmp_path / "in.png", tmp_path / "out.png")
    assert "1 faces" in done.stdout
    out = read_photo(tmp_path / "out.png")[0].image_rgb
    assert len(np.unique(out.reshape(-1, 3), axis=0)) < 0.8 * len(np.unique(picture.reshape(-1, 3), axis=0))


def test_examples_stay_short() -> None:
    for example in (ROOT / "examples").glob("*.py"):
        assert 15 <= len(example.read_text("utf-8").splitlines()) <= 50, example.name
