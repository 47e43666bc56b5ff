"""Adaptive quality: down when behind, up again with hysteresis, and never for the wrong reason."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from keyface.pipeline.live.quality import STEPS, QualityGovernor, QualityOptions

SOURCE_FPS = 30.0


class Player:
    """Shows frames of a 30 fps source at a rate that depends on the step."""

    def __init__(self, governor: QualityGovernor) -> None:
        self.governor = governor
        self.now_s = 0.0
        self.steps: list[int] = []

    def play(self, seconds: float, fps_at: Callable[[int], float], age_s: float = 0.05) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 1 / min(SOURCE_FPS, fps_at(self.governor.step))
            self.governor.note(int(self.now_s * SOURCE_FPS), age_s, self.now_s)
            if not self.steps or self.steps[-1] != self.governor.step:
                self.steps.append(self.governor.step)


def test_steps_go_down_until_the_rate_is_held_and_stay() -> None:
    player = Player(QualityGovernor())
    player.play(15.0, lambda step: (12, 18, 26, 29, 30, 30)[step])
    assert player.steps[:3] == [0, 1, 2]
    assert 3 not in player.steps


def test_a_step_up_is_tried_later_and_later_while_it_fails() -> None:
    player = Player(QualityGovernor())
    player.play(200.0, lambda step: 12.0 if step == 0 else 30.0)
    trials = player.steps.count(0) - 1
    assert 2 <= trials <= 6
    assert player.governor.step == 1


def test_quality_comes_back_when_the_machine_is_free_again() -> None:
    player = Player(QualityGovernor())
    player.play(20.0, lambda _: 5.0)
    assert player.governor.step == len(STEPS) - 1
    player.play(400.0, lambda _: 30.0)
    assert player.governor.step == 0


def test_a_slow_source_and_a_rate_above_the_target_are_no_reason() -> None:
    player = Player(QualityGovernor())
    for index in range(300):
        player.governor.note(index, 0.05, index / 10.0)  # 10 fps, nothing dropped
    assert player.governor.step == 0
    player = Player(QualityGovernor())
    player.play(20.0, lambda _: 26.0)
    assert player.steps == [0]


def test_old_pictures_are_a_reason() -> None:
    player = Player(QualityGovernor())
    player.play(3.0, lambda _: 30.0, age_s=0.4)
    assert player.governor.step >= 1


def test_exceptional_frames_say_nothing() -> None:
    governor = QualityGovernor()
    for index in range(200):
        governor.note(3 * index, 0.3, index / 8.0, is_exceptional=True)
    assert governor.step == 0 and governor.changes == 0


def test_a_fixed_step_holds_and_automatic_goes_on_from_it() -> None:
    player = Player(QualityGovernor(QualityOptions(first_hold_s=5.0)))
    player.governor.fix(4)
    player.play(20.0, lambda _: 5.0)
    assert player.governor.step == 4 and player.governor.changes == 0
    player.governor.fix(None)
    assert player.governor.step == 4
    player.play(120.0, lambda _: 30.0)
    assert player.governor.step == 0 and player.governor.changes >= 4


def test_beauty_goes_before_the_search() -> None:
    first = STEPS[0]
    assert (first.render_every, first.detect_every, first.detect_scale) == (1, 1, 1.0)
    for better, worse in pairwise(STEPS):
        assert worse.render_every >= better.render_every
        assert worse.detect_every >= better.detect_every
        assert worse.detect_scale <= better.detect_scale
    searched_less = [i for i, step in enumerate(STEPS) if step.detect_every > 1 or step.detect_scale < 1]
    assert min(searched_less) == 3, "what the module says"
