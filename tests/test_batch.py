"""Which files are made from which, and what `--resume` remembers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fake_chain import touch

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.batch import RESUME_FILE, Job, ResumeLog, plan_jobs

pytestmark = pytest.mark.timeout(240)


def test_one_file_goes_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    clip = touch(tmp_path / "a.mov")
    assert plan_jobs([clip], tmp_path / "b.mp4") == [Job(clip, tmp_path / "b.mp4", "video")]
    out = tmp_path / "out"
    out.mkdir()
    assert plan_jobs([clip], out) == [Job(clip, out / "a.mp4", "video")]


def test_folders_keep_relative_names(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "in" / "out"
    for name in ("b/c.MOV", "a.jpeg", "d.png", ".hidden.mp4", ".git/x.mp4", "text.txt", "out/old.mp4"):
        touch(root / name)
    jobs = plan_jobs([root], out)
    assert [(str(j.source.relative_to(root)), str(j.output.relative_to(out)), j.kind) for j in jobs] == [
        ("a.jpeg", "a.jpeg", "photo"),
        ("d.png", "d.png", "photo"),
        ("b/c.MOV", "b/c.mp4", "video"),
    ]


def test_names_that_would_collide(tmp_path: Path) -> None:
    for name in ("a.mov", "a.mp4"):
        touch(tmp_path / "in" / name)
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    assert {j.output.name for j in jobs} == {"a.mp4", "a.mov.mp4"}
    twice = [touch(tmp_path / folder / "a.mp4") for folder in ("x", "y")]
    with pytest.raises(UsageError, match="would both become"):
        plan_jobs(twice, tmp_path / "out")


def test_jobs_that_make_no_sense(tmp_path: Path) -> None:
    clip, photo = touch(tmp_path / "a.mp4"), touch(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="does not exist"):
        plan_jobs([tmp_path / "none.mp4"], tmp_path / "b.mp4")
    with pytest.raises(SourceError, match="no video or photo"):
        plan_jobs([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UsageError, match=r"must end in \.mp4"):
        plan_jobs([clip], tmp_path / "b.avi")
    with pytest.raises(UsageError, match="must be a PNG file"):
        plan_jobs([photo], tmp_path / "b.jpg")
    with pytest.raises(UsageError, match="is a file, but a folder is needed"):
        plan_jobs([clip, photo], touch(tmp_path / "file"))
    with pytest.raises(UsageError, match="--force"):
        plan_jobs([clip], touch(tmp_path / "b.mp4"))
    assert plan_jobs([clip], tmp_path / "b.mp4", may_replace=True)
    os.link(clip, tmp_path / "link.mp4")
    for same in (clip, tmp_path / "x" / ".." / "a.mp4", tmp_path / "link.mp4", tmp_path):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="is the input"):
            plan_jobs([clip], same, may_replace=True)


def test_resume_log(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = Job(touch(tmp_path / "a.mp4"), touch(out / "sub" / "a.mp4"), "video")

    def log(settings: dict[str, Any] | None = None, fingerprint: str = "1234abcd") -> ResumeLog:
        return ResumeLog(out, settings=settings or {"crf": 18}, fingerprint=fingerprint)

    first = log()
    assert not first.is_finished(job)
    first.add(job)
    assert log().is_finished(job)
    assert not log({"crf": 20}).is_finished(job) and not log(fingerprint="0").is_finished(job)
    text = (out / RESUME_FILE).read_text()
    assert "1234abcd" not in text and str(tmp_path) not in text
    os.utime(job.source, (1, 1))
    assert not log().is_finished(job)
    log().add(job)
    job.output.write_bytes(b"changed")
    assert not log().is_finished(job)
    job.output.unlink()
    assert not log().is_finished(job)
    for damage in ("", "[]", "{}", '{"version": 2, "finished": {}}', '{"version": 1, "finished": 3}'):
        (out / RESUME_FILE).write_text(damage)
        assert not log().is_finished(job)
