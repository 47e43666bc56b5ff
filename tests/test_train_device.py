"""Training on a card: everything lies on the device asked for, which no card is needed to check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keyface.tools.main import main

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'keyface[train]'")


def test_what_judges_training_makes_nothing_on_another_device(models: Any) -> None:
    """PyTorch's `meta` device has shapes but no values, and refuses to be mixed with the CPU, as a card does."""
    from keyface.models.face_measure import FaceMeasure
    from keyface.models.generator import Generator256
    from keyface.models.train_motion import MotionConfig, controls_of, motion_loss
    from keyface.pipeline.faces import canonical

    rigid = canonical.RIGID_INDEX
    models.ensure(["mobilefacenet"])
    measure = FaceMeasure(
        models.path("face_mesh"),
        models.path("face_blendshapes"),
        {"mobilefacenet": models.path("mobilefacenet"), "sface": models.path("sface")},
        np.column_stack([rigid, canonical.RIGID_WEIGHT, canonical.CANONICAL_XYZ[rigid]]),
    ).to("meta")
    generator = Generator256.load(models.path("synthesis_1024"), models.path("head256")).to("meta")
    image = generator(torch.zeros(2, 23, 512, device="meta"))
    found = measure(image)
    assert {t.device.type for t in (found.points, found.blendshapes, found.pose, found.embedding)} == {"meta"}
    assert found.embedding.shape == (2, 256) and found.pose.shape == (2, 2)
    terms = motion_loss(
        found, controls_of(found), found.embedding[:1], torch.zeros(2, 5, 512, device="meta"), MotionConfig()
    )
    assert {t.device.type for t in terms.values()} == {"meta"}
    with pytest.raises((RuntimeError, TypeError)):
        measure(torch.zeros(2, 3, 256, 256))


@pytest.mark.parametrize("step", ["head", "motion"])
def test_a_card_that_is_not_there_is_told(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    assert main(["train", step, "--device", "cuda"]) == 5
    assert "PyTorch sees no graphics card here" in capsys.readouterr().err
