"""Folders of people, keys, rendering that goes on, what is seen, the figures and their report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from fake_chain import fake_parts

from keyface.configs.errors import SourceError, UsageError
from keyface.configs.evaluation import RecogniserThresholds, load_evaluation
from keyface.configs.papers import load_papers
from keyface.configs.people_split import split_of
from keyface.pipeline.face import Detection
from keyface.pipeline.measure.evaluation_keys import (
    BOOK,
    KEY_LENGTHS,
    OWN,
    RECOVERED,
    SHARED,
    EvaluationKeys,
    bits_condition,
    expand_bits,
    flip_bit,
)
from keyface.pipeline.measure.people_figures import PeopleFigures, measure_figures
from keyface.pipeline.measure.people_folder import Photo, find_photos
from keyface.pipeline.measure.people_pictures import tsne_map
from keyface.pipeline.measure.people_render import Outcome, Rendered, Task, render
from keyface.pipeline.measure.people_report import PeopleReport, to_json, to_markdown
from keyface.pipeline.measure.people_table import MISSED, PeopleTable, Row
from keyface.pipeline.measure.seen_faces import FaceSeen, PhotoEyes, SeenFaces, look_at_original
from keyface.pipeline.people.key import Key
from keyface.pipeline.process_options import ProcessOptions
from keyface.tools.evaluate_images_command import plan_tasks

F32 = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
JUDGES = {
    "first": RecogniserThresholds("first", 0.5, 0.4, 0.01, 0.99),
    "second": RecogniserThresholds("second", 0.5, 0.4, 0.01, 0.99, True),
}
BOX = np.array([10, 10, 50, 50], np.float32)
POINTS = np.array([[20, 25], [40, 25], [30, 32], [22, 42], [38, 42]], np.float32)
DONE = Outcome(1, (), (), 0.1)


def write_photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for person, count in (("ann", 3), ("bob", 2), ("cyd", 5), ("dee", 1), (".hidden", 2)):
        for n in range(count):
            write_photo(tmp_path / "people" / person / f"{n}.png", n)
    (tmp_path / "people" / "ann" / "notes.txt").write_text("no photo")
    return tmp_path / "people"


# ---------------------------------------------------------------- folder and keys
def test_people_with_enough_photos_are_found_in_a_fixed_order(folder: Path) -> None:
    photos = find_photos(folder, people=10, photos=3)
    assert [p.name for p in photos] == [
        "ann/0.png", "ann/1.png", "ann/2.png", "bob/0.png", "bob/1.png", "cyd/0.png", "cyd/1.png", "cyd/2.png",
    ]  # fmt: skip
    two = {p.person for p in find_photos(folder, people=2, photos=2)}
    assert two == set(sorted(("ann", "bob", "cyd"), key=lambda n: hashlib.sha256(n.encode()).digest())[:2])


def test_only_people_of_a_part_are_taken(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(60)]
    for name in names:
        for n in range(2):
            write_photo(tmp_path / name / f"{n}.png")
    found = {p.person for p in find_photos(tmp_path, people=60, photos=2, split="test")}
    assert found == {name for name in names if split_of(name) == "test"} and found


def test_folders_that_do_not_do_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        find_photos(tmp_path / "nowhere", people=5, photos=2)
    with pytest.raises(SourceError, match="has 1 people with 4 photos"):
        find_photos(folder, people=5, photos=4, min_photos=4)
    with pytest.raises(UsageError, match="--people: got 1"):
        find_photos(folder, people=1, photos=2)
    with pytest.raises(UsageError, match="--photos: got 1"):
        find_photos(folder, people=5, photos=1)


def test_every_condition_has_a_key_of_its_own() -> None:
    with Key(bytes(range(32))) as master:
        keys = EvaluationKeys(master)
        conditions = [SHARED, *(bits_condition(n, is_flipped=f) for n in KEY_LENGTHS for f in (False, True))]
        prints = {(c, p): keys.key(c, p).fingerprint for c in [*conditions, OWN] for p in ("ann", "bob")}
        assert len({prints[OWN, p] for p in ("ann", "bob")}) == 2
        for condition in conditions:
            assert prints[condition, "ann"] == prints[condition, "bob"]
        assert len(set(prints.values())) == len(conditions) + 2
        assert master.fingerprint not in prints.values()
        assert keys.key(RECOVERED, "ann").fingerprint == prints[OWN, "ann"]
        assert keys.key(BOOK, "ann").fingerprint == prints[SHARED, "ann"]
        with pytest.raises(ValueError, match="got condition 'odd'"):
            keys.key("odd", "ann")


def test_short_keys_are_expanded_and_bits_turned_over() -> None:
    assert flip_bit(b"\x00\xff", 0) == b"\x01\xff" and flip_bit(b"\x00\xff", 15) == b"\x00\x7f"
    assert len(expand_bits(b"\x05")) == 32
    assert expand_bits(b"\x05") == expand_bits(b"\x05")
    changed = int.from_bytes(expand_bits(b"\x05")) ^ int.from_bytes(expand_bits(b"\x04"))
    assert 90 < changed.bit_count() < 166  # about half of 256
    assert expand_bits(b"\x05") != expand_bits(b"\x05" + bytes(15))


def test_the_plan_has_both_keys_of_each_photo_and_extras_of_different_people(folder: Path) -> None:
    photos = find_photos(folder, people=3, photos=2)
    tasks = plan_tasks(photos, n_extra=2)
    assert sum(t.condition in (SHARED, OWN) for t in tasks) == 2 * len(photos)
    extra = [t for t in tasks if t.condition == "bits-8"]
    assert [t.photo.name for t in extra] == ["ann/0.png", "bob/0.png"]
    assert {t.condition for t in tasks} == {
        SHARED, OWN, RECOVERED, *(f"bits-{n}{f}" for n in KEY_LENGTHS for f in ("", "-flipped")),
    }  # fmt: skip
    assert len(plan_tasks(photos, n_extra=0)) == 2 * len(photos)
    assert tasks[-1].condition == RECOVERED
    noted = plan_tasks(photos, n_extra=1, with_book=True)
    assert [t.photo for t in noted if t.condition == BOOK] == photos
    assert noted[-1].condition == RECOVERED


# ---------------------------------------------------------------- rendering
def test_rendering_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    photos = find_photos(folder, people=2, photos=2)
    tasks = plan_tasks(photos, n_extra=0)
    made: list[str] = []

    def parts(key: Key, task: Task) -> Any:
        assert task in tasks
        made.append(key.fingerprint)
        return fake_parts(BOX)

    with Key(bytes(range(32))) as master:
        keys, rendered = EvaluationKeys(master), Rendered(tmp_path / "out", {"a": 1})
        first = render(tasks, rendered, keys, parts, options=ProcessOptions())
        assert [next(first), next(first)] == tasks[:2]
        first.close()
        assert rendered.todo(tasks) == tasks[2:]
        assert list(render(tasks, rendered, keys, parts, options=ProcessOptions())) == tasks[2:]
        assert len(made) == len(tasks) and made[0] == keys.key(SHARED, photos[0].person).fingerprint
        assert rendered.todo(tasks) == []
        outcome = rendered.outcome(tasks[0])
        assert outcome is not None and outcome.replaced + len(outcome.redactions) >= 1
        # Another recipe, another source, a damaged picture and a damaged note: each is made again.
        assert Rendered(tmp_path / "out", {"a": 2}).todo(tasks) == tasks
        write_photo(tasks[0].photo.path, 99)
        assert rendered.todo(tasks) == tasks[:2]
        rendered.path(tasks[3]).write_bytes(b"damaged")
        rendered.path(tasks[5]).with_name(f"{tasks[5].photo.path.name}.json").write_text("{")
        assert rendered.todo(tasks) == [tasks[0], tasks[1], tasks[3], tasks[5]]


# ---------------------------------------------------------------- what is seen
class OneFace:
    def detect(self, image_rgb: Image) -> list[Detection]:
        return [] if image_rgb.max() == 0 else [Detection(BOX, POINTS, 0.9), Detection(BOX - 9, POINTS, 0.8)]


class Colour:
    name = "colour"
    calls = 0

    def embed(self, image_rgb: Image, face: Detection) -> F32:
        self.calls += 1
        vector = image_rgb[10:50, 10:50].reshape(-1, 3).mean(0) - 127
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class NoMesh:
    def detect(self, image_rgb: Image, **_: Any) -> None:
        return None


def test_what_was_seen_is_kept_until_a_file_changes(tmp_path: Path) -> None:
    judge = Colour()
    eyes = PhotoEyes(OneFace(), [judge], NoMesh())
    original, hidden, black = (tmp_path / f"{n}.png" for n in ("original", "hidden", "black"))
    write_photo(original, 1)
    write_photo(hidden, 2)
    cv2.imwrite(str(black), np.zeros((64, 64, 3), np.uint8))
    seen = SeenFaces(tmp_path / "measures", ["colour"])
    for _ in range(2):
        first = seen.original(original, eyes)
        assert first is not None and first.is_found and first.pose_ypr_deg is None
        assert first.box_xyxy == pytest.approx(BOX)  # the one in the middle
        second = seen.anonymised(hidden, first, original, eyes)
        assert second.is_found
        assert seen.original(black, eyes) is None
        gone = seen.anonymised(black, first, original, eyes)
        assert not gone.is_found and gone.box_xyxy == pytest.approx(BOX)
    assert judge.calls == 3  # each face once
    assert first.embeddings["colour"] == pytest.approx(
        judge.embed(cv2.imread(str(original))[..., ::-1], None)
    )  # type: ignore[arg-type]
    SeenFaces(tmp_path / "measures", ["other"]).original(original, eyes)
    for file in (tmp_path / "measures").iterdir():
        file.write_bytes(b"damaged")
    assert seen.original(original, eyes) is not None
    assert judge.calls == 6


def test_a_picture_without_a_face_has_nothing_to_see() -> None:
    assert look_at_original(np.zeros((64, 64, 3), np.uint8), PhotoEyes(OneFace(), [], NoMesh())) is None


# ---------------------------------------------------------------- figures
def seen_face(
    vectors: Mapping[str, F32], *, yaw: float = 0.0, smile: float = 0.0, feature: float = 0.0
) -> FaceSeen:
    shapes = np.full(52, smile, np.float32)
    return FaceSeen(
        True, BOX, POINTS, dict(vectors), np.array([yaw, 0, 0], np.float32), shapes,
        {"features_192": np.random.default_rng(int(feature)).normal(feature, 1, 192).astype(np.float32)},
    )  # fmt: skip


def unit(vector: npt.NDArray[np.float64]) -> F32:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def people_rows(n_people: int = 24, n_photos: int = 3, *, leak: float = 0.0) -> list[Row]:
    """People whose virtual faces are independent of the originals, and of each other under each key, but for a
    share `leak` of the original."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(n_people):
        centres = {kind: unit(rng.normal(size=64)) for kind in ("original", SHARED, OWN, "bits-8")}
        for photo in range(n_photos):
            noise = [0.05 * rng.normal(size=64) for _ in range(4)]
            x = unit(centres["original"] + noise[0])
            faces = {
                kind: {j: unit((1 - leak) * centres[kind] + leak * x + noise[1 + i]) for j in JUDGES}
                for i, kind in enumerate((SHARED, OWN, "bits-8"))
            }
            smile = float(rng.uniform(0, 1))
            hidden = {
                kind: (DONE, seen_face(faces[kind], yaw=2.0, smile=0.9 * smile, feature=1)) for kind in faces
            }
            hidden["bits-8-flipped"] = hidden[SHARED]
            hidden[RECOVERED] = hidden[OWN]
            name = f"person{n:02d}"
            rows.append(
                Row(
                    Photo(name, Path(f"{name}/{photo}.png"), f"{name}/{photo}.png"),
                    seen_face({j: x for j in JUDGES}, smile=smile),
                    hidden,
                )
            )
    return rows


@pytest.fixture(scope="module")
def figures() -> PeopleFigures:
    return measure_figures(PeopleTable(people_rows()), JUDGES)


def test_perfect_virtual_faces_have_perfect_figures(figures: PeopleFigures) -> None:
    assert (figures.photos, figures.people) == (72, 24)
    found = figures.identity["first"]
    for name in (
        "anonymity",
        "diversity",
        "synchronism_shared_auc",
        "synchronism_own_auc",
        "differentiation",
    ):
        assert found[name].value == pytest.approx(1.0, abs=0.02), name
    for name in ("synchronism_shared_eer", "synchronism_own_eer", "recovered_by_second_pass"):
        assert found[name].value == pytest.approx(0.0, abs=0.02), name
    assert found["anonymity"].count == 144 and found["diversity"].count == 72
    assert found["synchronism_own_eer"].count == 72 * 71 // 2
    assert figures.picture["detection_rate"].value == 1.0
    assert figures.picture["yaw_error"].value == pytest.approx(2.0)
    assert figures.picture["roll_error"].value == 0.0
    assert figures.mosaicked[SHARED] == {}
    links = figures.links["first"]
    assert links is not None and links.d_sys < links.chance + 0.15
    assert figures.frechet[SHARED]["features_192"].count == 72
    assert figures.key_lengths[8]["first"]["anonymity"].value == pytest.approx(1.0, abs=0.02)
    assert set(figures.key_lengths) == {8}


def test_faces_that_keep_the_original_are_found_out() -> None:
    found = measure_figures(PeopleTable(people_rows(leak=0.8)), JUDGES)
    first = found.identity["first"]
    assert first["anonymity"].value == 0.0 and first["diversity"].value == 0.0
    assert first["recovered_by_second_pass"].value == 1.0
    links = found.links["first"]
    assert links is not None and links.d_sys > 0.9
    assert found.recovery["first"]["no_key"].auc > 0.95


def test_an_inverter_gains_nothing_from_independent_faces(figures: PeopleFigures) -> None:
    attack = figures.recovery["first"]["no_key"]
    assert abs(attack.gain) < 0.2 and 0.25 < attack.auc < 0.75
    assert (attack.fitted, attack.tested) == (36, 12)


def test_mosaics_are_left_out_and_missed_faces_are_not() -> None:
    rows = people_rows(12)
    box = (12.0, 12.0, 48.0, 48.0)
    told = {
        0: Outcome(0, ((box, "too_small"),), (), 0.1),
        1: Outcome(0, (), (), 0.1),
        2: Outcome(0, (), ("reenact",), 0.1),
        3: Outcome(1, (((200.0, 200.0, 240.0, 240.0), "too_small"),), (), 0.1),  # somebody else's mosaic
    }
    for index, outcome in told.items():
        faces = dict(rows[index].anonymised)
        face = rows[index].original if index == 1 else faces[SHARED][1]
        faces[SHARED] = (outcome, face)
        rows[index] = dataclasses.replace(rows[index], anonymised=faces)
    found = measure_figures(PeopleTable(rows), JUDGES)
    assert found.mosaicked[SHARED] == {"fault": 1, MISSED: 1, "too_small": 1}
    anonymity = found.identity["first"]["anonymity"]
    assert anonymity.count == 72 - 2  # the missed one is seen, and recognised
    assert anonymity.value == pytest.approx(1 - 1 / 70)
    assert found.picture["replaced_rate"].value == pytest.approx(1 - 3 / 72)
    assert found.picture["detection_rate"].count == 69


# ---------------------------------------------------------------- report
def report_of(figures: PeopleFigures) -> PeopleReport:
    return PeopleReport(figures, JUDGES, load_evaluation().image_targets, load_papers(), {"folder": "people"})


def test_json_fits_its_schema_and_holds_no_embedding(figures: PeopleFigures) -> None:
    import jsonschema

    schema = json.loads((Path(str(files("keyface.configs"))) / "evaluate_images.schema.json").read_text())
    told = json.loads(json.dumps(to_json(report_of(figures)), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(told, schema)
    assert told["recognisers"]["second"]["is_used_in_training"] is True
    assert told["recognisers"]["first"]["figures"]["anonymity"]["count"] == 144
    told["recognisers"]["first"]["figures"]["anonymity"]["value"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told, schema)


def test_markdown_stands_beside_the_papers(figures: PeopleFigures) -> None:
    text = to_markdown(report_of(figures))
    (line,) = [x for x in text.splitlines() if x.startswith("| anonymity: photos")]
    assert "1.000" in line and line.endswith("| IVFG 0.988, KFAAR 0.962 |")
    assert "| second * |" in text and "Targets, by the worst of first\n" in text
    widths = {len(x.split(" | ")) for x in text.splitlines() if x.startswith("| cosine")}
    assert len(widths) == 1


def test_verdicts_go_by_the_worst_independent_judge(figures: PeopleFigures) -> None:
    bad = dict(figures.identity)
    bad["second"] = {**bad["second"], "anonymity": dataclasses.replace(bad["second"]["anonymity"], value=0.0)}
    verdicts = {v.figure: v for v in report_of(dataclasses.replace(figures, identity=bad)).verdicts()}
    assert verdicts["anonymity"].outcome == "pass"  # only a judge that was trained against says so
    bad["first"] = bad["second"]
    verdicts = {v.figure: v for v in report_of(dataclasses.replace(figures, identity=bad)).verdicts()}
    assert verdicts["anonymity"].outcome == "fail" and verdicts["anonymity"].value == 0.0
    assert set(verdicts) == set(load_evaluation().image_targets)


def test_papers_are_read_strictly(tmp_path: Path) -> None:
    papers = load_papers()
    assert {p.value for p in papers.beside("diversity")} == {0.750, 0.783}
    assert papers.beside("nothing") == ()
    (tmp_path / "p.toml").write_text('[papers]\nA = "a"\n[[row]]\nfigure = "x"\npaper = "B"\n')
    with pytest.raises(UsageError, match="row 1 is not as wanted"):
        load_papers(tmp_path / "p.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_papers(tmp_path / "none.toml")


def test_the_map_shows_three_kinds_of_faces() -> None:
    pytest.importorskip("sklearn", reason="the map needs scikit-learn")
    drawn = tsne_map(PeopleTable(people_rows(6, 2)), "first")
    assert drawn is not None and drawn.shape == (900, 900, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 6  # a colour a person
    assert tsne_map(PeopleTable(people_rows(3, 1)), "first") is None
