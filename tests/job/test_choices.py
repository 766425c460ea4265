"""Every named choice runs two real rounds and moves the weights its own way.

The workers and the learner's update are the real ones, called in this process; only Ray is left out.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from smoke_runs import plain_weights
from tiny_models import write_dit

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import LEARNED, Learner, Networks, Regulariser, load
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student
from redif_ray.rewards.base import TERMS

pytestmark = pytest.mark.slow


BASE = [
    "teacher.steps=2",
    "student.steps=2",
    "exploration.eta=0.5",
    "rollout.groups=2",
    "rollout.siblings=4",
    "rollout.unit_groups=1",
    "learner.rounds=2",
    "learner.lr=1e-4",
    "learner.minibatch=4",
    "learner.clip=0.02",
    "learner.inner_epochs=2",
]
SHIPPED = ("classifier", "feature_cosine")  # see Fashion-MNIST's images alone


class Trainer:
    """Weights of runs under `root`, of a teacher that is there, each trained once."""

    def __init__(self, root: Path) -> None:
        self.root, self.tiny, self.known = root, str(write_dit(root / "tiny")), dict[tuple[str, ...], str]()

    def trained(self, *overrides: str, teacher: str | None = None) -> str:
        """Checksum of the weights after two rounds."""
        chosen = (f"teacher.model={teacher or self.tiny}", *overrides)
        if chosen not in self.known:
            self.known[chosen] = plain_weights(load(None, [*BASE, f"run.root={self.root}", *chosen]))
        return self.known[chosen]

    def all_differ(self, choices: list[tuple[str, ...]], teacher: str | None = None) -> None:
        hashes = {choice: self.trained(*choice, teacher=teacher) for choice in choices}
        student = make_student(load_model(teacher or self.tiny), load(None).student.lora)
        assert len({*hashes.values(), weights_sha256(get_weights(student))}) == len(choices) + 1, hashes


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("choices"))


def test_advantages(trainer: Trainer) -> None:
    kinds = get_args(Learner.model_fields["advantage"].annotation)
    filled = ("rollout.siblings=8", "conditions.classes=[0]")  # 16 rewards of one condition a round: the buffer is full
    trainer.all_differ([(f"learner.advantage={kind}", *filled) for kind in kinds])


def test_losses_and_step_weights(trainer: Trainer) -> None:
    kinds = get_args(Learner.model_fields["loss"].annotation)
    weighted = ("learner.step_weight=std", "exploration.last_step=true")
    trainer.all_differ([(f"learner.loss={kind}",) for kind in kinds] + [weighted])


def test_regularisers(trainer: Trainer) -> None:
    kinds = get_args(Regulariser.model_fields["kind"].annotation)
    trainer.all_differ([(f"learner.regulariser.kind={kind}", "learner.regulariser.weight=100") for kind in kinds])


def test_anchor_guided_groups_and_exploration(trainer: Trainer) -> None:
    trainer.all_differ(
        [
            ("learner.anchor.weight=1.0",),
            ("learner.anchor.weight=1.0", "learner.anchor.loss=l1"),
            ("rollout.guided=2",),
            ("exploration.kind=cps",),
            ("exploration.antithetic=false",),
            ("exploration.last_step=true",),
            ("exploration.last_step=true", "exploration.one_step=true"),
        ]
    )


def test_staleness(trainer: Trainer) -> None:
    trainer.all_differ([(f"pipeline.staleness={s}", "learner.rounds=3") for s in (0, 1, 2)])


MATCHING = "method=distribution_matching"


def test_methods(trainer: Trainer) -> None:
    trainer.all_differ(
        [
            (),
            ("method=sfd", "warm_start.rounds=2", "warm_start.groups=4"),
            ("method=draft", "draft.groups=4"),
            ("method=draft", "draft.groups=4", "draft.last_steps=1"),
            ("method=output", "output.groups=4"),
            ("method=straight", "output.groups=4"),
            ("method=output", "output={groups: 4, sampled: true}"),
            ("method=output", "output={groups: 4, sampled: true, std: 0.2, samples: 8}"),
            ("method=output", "output.groups=4", "student.steps=1"),
            ("method=contrast", "contrast={groups: 8, noises: 4, draws: 2}"),
            ("method=contrast", "contrast={groups: 8, noises: 8, draws: 2}"),
            ("method=contrast", "contrast={groups: 8, noises: 4, draws: 2, decay: 0.0}"),
            (MATCHING, "distribution_matching.groups=4"),
            (MATCHING, "distribution_matching={groups: 4, fake_steps: 1}"),
            (MATCHING, "distribution_matching={groups: 4, fake_lr: 1.0e-3}"),
            (MATCHING, "distribution_matching={groups: 4, lora: {rank: 2}}"),
            ("method=consistency", "consistency={groups: 4, draws: 2, substeps: 3, decay: 0.5}"),
            ("method=consistency", "consistency={groups: 4, draws: 2, substeps: 3, decay: 0.0}"),
            ("method=consistency", "consistency={groups: 4, draws: 2, substeps: 2, decay: 0.5}"),
            ("method=progressive", "learner.rounds=2", "progressive={groups: 4, draws: 2, halvings: 2}"),
            ("method=progressive", "learner.rounds=2", "progressive={groups: 4, draws: 2, halvings: 1}"),
            ("method=output", "output.groups=4", "reward.terms={jpeg_compressibility: {normalise: std}, mse: {}}"),
        ]
    )


@pytest.mark.parametrize("lora", ["student.lora.rank=0", "student.lora.rank=2"])
def test_precisions(trainer: Trainer, lora: str) -> None:
    """The ratio of a fresh round is 1 in each of them."""
    kinds = get_args(Networks.model_fields["precision"].annotation)
    trainer.all_differ([(f"networks.precision={kind}", lora) for kind in kinds])


def test_rewards(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(student, teacher, conditions):\n    return -student.mean((1, 2, 3))\n")
    own = f"reward.terms={{mine: {{options: {{callable: '{tmp_path}/mine.py:score'}}}}}}"
    fixed = [name for name in TERMS if name != LEARNED]
    complete = [name for name in fixed if "batch" not in {field.name for field in fields(TERMS[name])}]
    assert len(complete) >= 9  # the others need a network from elsewhere
    trainer.all_differ([(f"reward.terms={{{name}: {{}}}}",) for name in complete if name not in SHIPPED] + [(own,)])
    trainer.all_differ([(f"reward.terms={{{name}: {{}}}}",) for name in SHIPPED], "fashion-mnist")


def test_lora_trains_its_adapters_alone(trainer: Trainer) -> None:
    assert trainer.trained("student.lora.rank=2") != trainer.trained("student.lora.rank=2", "learner.lr=2e-4")
