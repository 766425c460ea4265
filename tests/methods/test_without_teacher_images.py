"""Training makes no image of the teacher where no reward term reads one, and learns the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from redif_ray.config import Config, load
from redif_ray.loop import PlainLoop
from redif_ray.methods import phases_of
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.calls import phase_calls, prices
from redif_ray.rewards.base import TERMS, RewardError
from redif_ray.rewards.names import ALONE

SOURCE = """
def bright(student, teacher, conditions):
    return student.mean((1, 2, 3))

def brighter(student, teacher, conditions):
    return (student - teacher).mean((1, 2, 3))
"""
METHODS = {
    "redif": ("learner.lr=1e-3",),
    "output": ("method=output", "output={groups: 4, samples: 4}"),
    "straight": ("method=straight", "output.groups=4"),
    "draft": ("method=draft", "draft={groups: 4, minibatch: 4}"),
    "distribution_matching": ("method=distribution_matching", "distribution_matching={groups: 4, reward_weight: 1}"),
}


def config(root: Path, function: str, method: str, *, teacher: bool) -> Config:
    (root / "rewards.py").write_text(SOURCE)
    reads = "true" if teacher else "false"
    options = f"{{callable: {root / 'rewards.py'}:{function}, teacher: {reads}, differentiable: true}}"
    found: Config = load(
        "smoke",
        [
            f"run.root={root / reads}",
            "tracking.uri=off",
            "warm_start.rounds=0",
            "learner.rounds=2",
            "rollout={groups: 4, siblings: 4, unit_groups: 2}",
            f"reward.terms={{mine: {{options: {options}}}}}",
            *METHODS[method],
        ],
    )
    return found


def made(settings: Config) -> list[str]:
    """Train without validation; return the checksum of the weights, and the names of the files of teacher images."""
    loop = PlainLoop(settings)
    for round in range(settings.learner.rounds):
        loop.round(round)
    return [loop.checksum(), *sorted(p.name for p in (Path(settings.run.root) / ".targets").rglob("*.parquet"))]


@pytest.mark.parametrize("method", METHODS)
def test_the_student_is_the_same_and_no_image_is_made(method: str, tmp_path: Path) -> None:
    with_images, without = (made(config(tmp_path, "bright", method, teacher=each)) for each in (True, False))
    assert with_images[0] == without[0] and len(with_images) > 1 and len(without) == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_counts_no_image_of_the_teacher(method: str, tmp_path: Path) -> None:
    found = []
    for teacher in (True, False):
        settings = config(tmp_path, "bright", method, teacher=teacher)
        every = prices(settings, teacher_outline(settings.teacher))
        (phase,) = phases_of(settings)
        found.append(phase_calls(settings, phase, every))
    assert found[0].reward - found[1].reward == 2 * 4 * every.target
    assert (found[0].rollout, found[0].learner) == (found[1].rollout, found[1].learner)


def test_a_function_that_reads_the_teacher_s_image_after_all_fails(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"reward term 'mine'.*brighter failed: TypeError: .*'NoneType'"):
        made(config(tmp_path, "brighter", "redif", teacher=False))


def test_the_terms_that_need_no_teacher_are_known_without_them() -> None:
    assert {name for name, term in TERMS.items() if "teacher" not in term.needs} == ALONE | {"discriminator"}
