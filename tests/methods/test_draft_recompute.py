"""Back-propagation that holds the activations of all steps trains the same student in fewer network calls."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pipelines import write_sd

from redif_ray.config import load
from redif_ray.loop import PlainLoop
from redif_ray.methods import phases_of
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.activations import decode_and_back
from redif_ray.planning.calls import phase_calls, prices
from redif_ray.planning.memory import footprints
from redif_ray.planning.peak import peak_mb


@pytest.mark.parametrize("last", [1, None])
def test_the_student_is_the_same_and_the_calls_are_those_that_are_counted(last: int | None, tmp_path: Path) -> None:
    weights, counted = [], []
    for recompute in (True, False):
        config = load(
            "smoke",
            [
                f"run.root={tmp_path}",
                "tracking.uri=off",
                "method=draft",
                "warm_start.rounds=0",
                "learner={rounds: 1, lr: 1e-3}",
                "rollout={groups: 4, siblings: 2, unit_groups: 2}",
                "reward.terms={mse: {}}",
                f"draft={{groups: 4, minibatch: 2, recompute: {str(recompute).lower()}, last_steps: {last or 'null'}}}",
            ],
        )
        loop = PlainLoop(config)
        metrics = loop.round(0)
        weights.append(loop.checksum())
        every = prices(config, loop.student)
        (phase,) = phases_of(config)
        forward, backward = (metrics[f"update/network_calls_{way}"] for way in ("forward", "backward"))
        assert phase_calls(config, phase, every).learner == int(forward + backward * (every.backward - 1))
        counted.append((forward, backward))
    steps = last or 2
    assert weights[0] == weights[1]
    assert counted == [(4 * (2 + steps), 4 * steps), (4 * 2, 4 * steps)]


def test_the_activations_of_all_steps_are_counted(tmp_path: Path) -> None:
    def activations(folder: str | Path, *given: str) -> float:
        own = ("method=draft", "student.steps=4", "learner.microbatch=16", "warm_start.rounds=0", "draft.groups=16")
        config = load("smoke", [f"run.root={tmp_path}", f"teacher.model={folder}", *own, *given])
        return footprints(config).roles["learner"].activations

    one, four = activations("fashion-mnist"), activations("fashion-mnist", "draft.recompute=false")
    assert activations("fashion-mnist", "draft={groups: 16, recompute: false, last_steps: 1}") == one
    assert 3.5 < four / one < 4.1
    latent = write_sd(tmp_path / "m")
    decoded = peak_mb(lambda: decode_and_back(teacher_outline(load("smoke", [f"teacher.model={latent}"]).teacher), 16))
    alone = activations(latent, "method=straight", "output.groups=64", "learner.microbatch=64")
    assert activations(latent, "draft.recompute=false") == pytest.approx(alone + decoded, rel=0.03)
    assert decoded > 0.1 * alone
