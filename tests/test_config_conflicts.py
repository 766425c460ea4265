"""Settings that are right one by one and cannot be together, and their neighbours that can."""

from __future__ import annotations

import pytest

from redif_ray.config import ConfigError, load

MATCHING = "method=distribution_matching"
TURNS = [
    "pipeline.colocate=true",
    "rollout={max_workers: 2, gpus: 0.2}",
    "reward={max_workers: 2, gpus: 0.2}",
    "learner={workers: 2, gpus: 0.6}",
]
CONFLICTS = [
    (["exploration.eta=0"], "exploration.eta=0: .*expected a value in"),
    (["student.steps=1"], "student.steps=1: .*set exploration.last_step=true"),
    (["rollout.siblings=1", "exploration.antithetic=false"], "rollout.siblings=1: .*advantage=global_std.*at least 2"),
    (["rollout.siblings=5"], "rollout.siblings=5: .*antithetic.*even number"),
    (["rollout.siblings=2"], "rollout.siblings=2: .*antithetic.*at least 4"),
    (
        [
            "rollout.siblings=1",
            "exploration.antithetic=false",
            "learner.advantage=running",
            "reward.terms.mse.normalise=std",
        ],
        "reward.terms.mse.normalise=std: rollout.siblings=1 leaves no siblings",
    ),
    (["rollout.guided=16"], "rollout.guided=16: expected less than rollout.siblings=16"),
    (["rollout.groups=4", "rollout.unit_groups=3"], "rollout.unit_groups=3: expected a divisor of rollout.groups=4"),
    (["student.levels=[999, 500]"], "student.levels has 2 entries; expected student.steps=4"),
    (["learner.regulariser.kind=renyi", "learner.regulariser.order=1"], "order=1.0: renyi needs .* other than 0 and 1"),
    (["learner.regulariser.kind=power", "learner.regulariser.order=0"], "order=0.0: power needs .* other than 0 and 1"),
    (["method=draft", "reward.terms.mse.normalise=std"], "terms.mse.normalise=std: method=draft .*expected none"),
    (["reward.terms={discriminator: {}}"], "discriminator has no other term beside it: .*choose the best checkpoint"),
    (["reward.terms={mse: {weight: 0}, discriminator: {}}"], "discriminator has no other term .*any weight but 0"),
    (["method=output", "reward.terms={mse: {weight: 0}}"], "every term has weight 0, so method=output has no reward"),
    (["method=draft", "reward.terms={mse: {}, discriminator: {}}"], "this term learns .*method=draft .*remove"),
    (["method=sfd", "reward.terms={mse: {}, discriminator: {}}"], "this term learns .*method=sfd .*remove"),
    (["learner.rounds=0", "reward.terms={mse: {}, discriminator: {}}"], "discriminator: .*learner.rounds=0 has none"),
    (["method=draft", "reward.runtime_env={}"], "reward.runtime_env: method=draft .*in the learner, .*leave it out"),
    (["reward.runtime_env.py_modules=[/shared/mine]"], "py_modules: '/shared/mine' is no URI; .*file:///shared/my.zip"),
    (["reward.runtime_env.pip=['git+https://me:pw@host/x']"], "runtime_env: a URL holds a user .*nodes' ~/.netrc"),
    (["reward.runtime_env.py_modules=['https://me@host/x.zip']"], "runtime_env: a URL holds a user or password"),
    (["exploration.one_step=true", "rollout.guided=2"], "one_step=true: rollout.guided=2 siblings leave .*expected 0"),
    (["exploration.one_step=true", "learner.step_weight=std"], "one_step=true: learner.step_weight=std .*there is one"),
    (["pipeline.colocate=true", "pipeline.staleness=1"], "with pipeline.staleness=1 workers and learner work at"),
    ([*TURNS, "learner.gpus=0.5"], "learner.workers=2: learner.gpus=0.5 does not put one rank on each GPU .*0.6"),
    ([*TURNS, "learner.gpus=1"], "learner.workers=2: learner.gpus=1 does not put one rank on each GPU"),
    ([*TURNS, "reward.max_workers=3"], "learner.workers=2: reward has another number .*expected reward.max_workers=2"),
    ([*TURNS, "rollout.min_workers=1"], "learner.workers=2: rollout has another number of workers"),
    ([*TURNS, "rollout.gpus=0.3"], r"rollout.gpus \+ reward.gpus \+ learner.gpus = 1.1, .*expected a sum of at most 1"),
    ([*TURNS, "reward.gpus=0"], "each of the three needs a part of one GPU"),
    ([*TURNS, "reward.labels={zone: a}"], "reward.labels are not learner.labels, so they cannot share a GPU"),
    (
        ["pipeline.colocate=true", "learner={workers: 2, fsdp: true}"],
        "cannot leave the GPU; expected learner.fsdp=false",
    ),
    (
        ["conditions.metadata=[tag]"],
        r"metadata=\['tag'\]: only a function or a service of your own .*or leave metadata",
    ),
    (["draft.last_steps=5"], "draft.last_steps=5: expected at most student.steps=4"),
    (["learner.workers=3"], "learner.workers=3: expected a divisor of rollout.groups=4"),
    (["learner.workers=2", "learner.gpus=0.5"], "learner.gpus=0.5 does not put one rank on each GPU .*0.6, or 1 for a"),
    (["learner.workers=2", "learner.gpus=0.6"], "learner.workers=2: rollout has another number .*max_workers=2"),
    (["learner.workers=2", "learner.gpus=2"], "learner.gpus=2 does not put one rank on each GPU .*0.6, or 1 for a"),
    ([*TURNS[1:], "reward.gpus=0.3"], r"^learner.workers=2: rollout.gpus \+ reward.gpus \+ learner.gpus = 1.1, "),
    (["learner.fsdp=true"], "fsdp=true: learner.workers=1 has no other rank .*at least 2"),
    (
        ["learner.fsdp=true", "learner.workers=2", MATCHING],
        "fsdp=true: the second network of method=distribution_matching .*or distribution_matching.lora",
    ),
    ([MATCHING, "pipeline.staleness=1"], "staleness=1: method=distribution_matching takes gradients back .*expected 0"),
    (
        [
            MATCHING,
            "learner.workers=2",
            "distribution_matching.groups=8",
            "rollout={groups: 4, siblings: 4, unit_groups: 2}",
        ],
        "workers=2: distribution_matching.groups=8 in work units of 8 groups are 1 units",
    ),
    (
        ["learner.fsdp=true", "learner.workers=2", "method=progressive"],
        "fsdp=true: ranks cannot share the earlier student of method=progressive",
    ),
    (["method=contrast", "contrast.groups=20"], "contrast.groups=20: expected a multiple of contrast.noises=16"),
    (
        ["method=contrast", "conditions.pool=960", "rollout.unit_groups=16"],
        "pool=960: passes over a pool keep .* hold 256; .*or rollout.unit_groups=1",
    ),
    (["method=contrast", "learner.advantage=running"], "advantage=running: method=contrast compares images of one"),
    (
        ["method=contrast", "learner.workers=3", "rollout={groups: 3, unit_groups: 4}"],
        "workers=3: contrast.groups=128 in work units of 64 groups are 2 units",
    ),
    (["method=progressive", "learner.rounds=2"], "halvings=3: learner.rounds=2 leave a stage without a round"),
    (
        ["method=consistency", "learner.workers=2", "consistency.groups=8", "rollout.siblings=8"],
        "workers=2: consistency.groups=8 in work units of 16 groups are 1 units",
    ),
    (["learner.fsdp=true", "learner.workers=2", "method=draft"], "fsdp=true: method=draft .*method=redif or sfd"),
    (["learner.fsdp=true", "learner.workers=2", "networks.compile=true"], "networks.compile=true .*expected false"),
    (["rollout.resources.spot=1"], "rollout.resources.spot=1: the private cluster .*no custom .*ray.address=auto"),
    (["rollout.labels={zone: a}"], "rollout.labels: the private cluster .*no labels.*ray.address=auto"),
    (["ray.address=auto", "rollout.labels={zone: '!a'}"], "rollout.labels.zone='!a': string should match pattern"),
    (["rollout.max_workers=4", "rollout.min_workers=2"], "rollout.min_workers=2: the private cluster .*does not grow"),
    (["ray.address=auto", "reward.max_workers=2", "reward.min_workers=3"], "min_workers=3: .*at most .*max_workers=2"),
    (["ray.address=auto", "reward.resources.GPU=1"], "reward.resources.GPU: .*expected reward.cpus and reward.gpus"),
    (["ray.address=auto", "learner.resources.big=1.5"], "learner.resources.big=1.5: .*a whole number, or less than 1"),
    (["teacher.height=512"], "teacher.height=512: teacher.width is not set; expected both"),
    (["teacher.width=512"], "teacher.width=512: teacher.height is not set; expected both"),
    (["ray.wait=true"], "ray.wait=true: the private cluster of ray.address=local does not grow"),
]


@pytest.mark.parametrize(("overrides", "pattern"), CONFLICTS, ids=lambda v: "" if isinstance(v, str) else " ".join(v))
def test_an_impossible_combination_says_what_to_change(overrides: list[str], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        load(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["exploration.eta=0", "learner.rounds=0"],
        ["exploration.eta=0", "method=sfd"],
        ["student.steps=1", "exploration.last_step=true"],
        ["rollout.siblings=5", "exploration.antithetic=false"],
        ["rollout.siblings=1", "exploration.antithetic=false", "learner.advantage=running"],
        ["rollout.guided=15"],
        ["student.levels=[999, 750, 500, 250]"],
        ["learner.regulariser.kind=kl", "learner.regulariser.order=1"],
        ["draft.last_steps=4"],
        ["learner.workers=2"],
        ["learner.workers=2", "learner.gpus=1"],
        ["learner.workers=2", "pipeline.colocate=true"],
        TURNS,
        [*TURNS[1:], "pipeline.staleness=1", "learner.fsdp=true"],
        ["learner.gpus=0.5"],
        ["ray.address=auto", "ray.wait=true", "rollout.resources={a: 0.5, b: 2}", "learner.resources.learner=1"],
        ["ray.address=auto", "rollout.max_workers=4", "rollout.min_workers=4", "reward.labels={ray.io/market: spot}"],
    ],
    ids=" ".join,
)
def test_what_borders_on_the_impossible_is_allowed(overrides: list[str]) -> None:
    load(None, overrides)
