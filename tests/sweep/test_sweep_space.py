from __future__ import annotations

import pytest

from redif_ray.config import Config, ConfigError, load
from redif_ray.sweep.population import Population
from redif_ray.sweep.selection import Selection
from redif_ray.sweep.space import configured, current, read_space
from redif_ray.trials.space import Choice, Range


def recipe(*overrides: str) -> Config:
    found: Config = load("smoke", overrides)
    return found


def test_a_space_is_read_from_text_lists_and_nested_overrides() -> None:
    config = recipe(
        "sweep.space.learner.lr=loguniform(1e-6, 1e-4)",
        "sweep.space.rollout.siblings=[4, 8]",
        "sweep.space.learner.anchor.weight=uniform(0, 1)",
        "sweep.space.warm_start.substeps=integer(1, 3)",
        "sweep.space.learner.loss=choice(ppo_clip, grpo_guard)",
    )
    assert read_space(config) == {
        "learner.lr": Range(1e-6, 1e-4, log=True),
        "rollout.siblings": Choice((4, 8)),
        "learner.anchor.weight": Range(0, 1),
        "warm_start.substeps": Range(1, 3, whole=True),
        "learner.loss": Choice(("ppo_clip", "grpo_guard")),
    }


def test_settings_change_a_recipe_and_are_read_from_it() -> None:
    config = configured(recipe(), {"learner.lr": 1e-3, "reward.terms.mse.weight": 2.0})
    assert config.learner.lr == 1e-3 and config.reward.terms["mse"].weight == 2.0
    space = {"learner.lr": Range(1e-6, 1), "learner.clip": Range(0, 1), "reward.terms.mse.weight": Range(0, 4)}
    assert current(config, space) == {"learner.lr": 1e-3, "learner.clip": None, "reward.terms.mse.weight": 2.0}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("learner.lr=loguniform(0, 1)", "both above 0"),
        ("learner.lr=uniform(1, 0.1)", "low below high"),
        ("learner.lr=lognormal(1, 2)", "expected uniform"),
        ("learner.lr=0.1", "sweep.space.learner.lr"),
        ("learner.lr=uniform(-1, 1)", "sweep.space.learner.lr: learner.lr=-1"),
        ("learner.larning_rate=uniform(0, 1)", "unknown key"),
        ("learner.loss=choice(ppo_clip, ppo)", "learner.loss='ppo'"),
        ("learner.loss=choice(ppo_clip)", "at least two"),
        ("run.seed=integer(0, 3)", "sweep.repeats"),
        ("validation.groups=integer(4, 8)", "judged differently"),
        ("reward.terms.mse.weight=uniform(0.1, 1)", "set sweep.metric to one of validation/recall, validation/mse"),
    ],
)
def test_a_space_that_cannot_be_used_is_one_clear_error(said: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_space(recipe(f"sweep.space.{said}"))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_what_only_goes_with_a_scheduler_is_said() -> None:
    lr = "sweep.space.learner.lr=loguniform(1e-6, 1e-4)"
    with pytest.raises(ConfigError, match="rungs is empty"):
        recipe(lr, "sweep.scheduler=asha")
    with pytest.raises(ConfigError, match=r"multiples of validation\.every"):
        recipe(lr, "sweep.scheduler=asha", "sweep.rungs=[3]")
    with pytest.raises(ConfigError, match=r"only sweep\.scheduler=asha"):
        recipe(lr, "sweep.rungs=[2]")
    config = recipe("sweep.space.learner.rounds=integer(2, 4)", "sweep.scheduler=asha", "sweep.rungs=[2]")
    with pytest.raises(ConfigError, match="equal length"):
        Selection(config, read_space(config))
    config = recipe("sweep.space.rollout.groups=[4, 6]", "sweep.scheduler=pbt")
    with pytest.raises(ConfigError, match=r"expected keys below learner\."):
        Population(config, read_space(config))
    with pytest.raises(ConfigError, match=r"sweep\.space is empty"):
        read_space(recipe())


def test_a_sweep_places_no_ranks_that_share_gpus() -> None:
    turns = ("pipeline.colocate=true", *(f"{role}={{max_workers: 2, gpus: 0.2}}" for role in ("rollout", "reward")))
    config = recipe("sweep.space.learner.lr=loguniform(1e-6, 1e-4)", *turns, "learner={workers: 2, gpus: 0.6}")
    with pytest.raises(ConfigError, match="a sweep cannot place ranks and workers on shared GPUs"):
        read_space(config)
