"""Keys of a configuration that are right each by itself, and wrong together."""

from __future__ import annotations

import re
from collections.abc import Iterator

from redif_ray.config.sections import Sections


def conflicts(c: Sections) -> Iterator[str]:
    """What is wrong with a configuration, a sentence each: the keys, what they are, what was expected."""
    yield from _search_conflicts(c)
    yield from _sweep_conflicts(c)
    policy = c.method == "redif" and c.learner.rounds > 0
    if policy and c.exploration.eta == 0:
        yield "exploration.eta=0: a policy gradient needs exploration; expected a value in (0, 1], such as 0.25"
    if policy and c.student.steps == 1 and not c.exploration.last_step:
        yield "student.steps=1: exploration.last_step=false leaves no stochastic step; set exploration.last_step=true"
    if policy and c.rollout.siblings == 1 and c.learner.advantage in ("global_std", "group_std", "mean_only"):
        yield (
            f"rollout.siblings=1: learner.advantage={c.learner.advantage} compares siblings; "
            "expected at least 2, or advantage=running"
        )
    if policy and c.exploration.antithetic and (c.rollout.siblings % 2 or c.rollout.siblings < 4):
        yield (
            f"rollout.siblings={c.rollout.siblings}: exploration.antithetic=true pairs siblings and compares each "
            "pair with the others; expected an even number, at least 4"
        )
    if policy and c.pipeline.staleness and c.learner.loss == "reinforce":
        yield (
            f"pipeline.staleness={c.pipeline.staleness}: learner.loss=reinforce has no ratio that would account for "
            "it; expected 0, or loss=ppo_clip"
        )
    if c.pipeline.colocate and c.pipeline.staleness:
        yield f"pipeline.colocate=true: with pipeline.staleness={c.pipeline.staleness} no role waits; expected 0"
    if c.pipeline.colocate and c.learner.workers > 1:
        yield (
            f"pipeline.colocate=true: learner.workers={c.learner.workers} have GPUs of their own, which they share "
            "with no one; expected 1"
        )
    if policy and c.exploration.one_step and c.rollout.guided:
        yield (
            f"exploration.one_step=true: rollout.guided={c.rollout.guided} siblings leave the others at every step; "
            "expected 0"
        )
    if policy and c.exploration.one_step and c.learner.step_weight != "none":
        yield (
            f"exploration.one_step=true: learner.step_weight={c.learner.step_weight} compares the steps of a round, "
            "and there is one; expected none"
        )
    if c.rollout.guided >= c.rollout.siblings:
        yield f"rollout.guided={c.rollout.guided}: expected less than rollout.siblings={c.rollout.siblings}"
    if c.rollout.groups % c.rollout.unit_groups:
        yield f"rollout.unit_groups={c.rollout.unit_groups}: expected a divisor of rollout.groups={c.rollout.groups}"
    if c.student.levels is not None and len(c.student.levels) != c.student.steps:
        yield f"student.levels has {len(c.student.levels)} entries; expected student.steps={c.student.steps}"
    if c.student.network_timesteps is not None and len(c.student.network_timesteps) != len(c.student.levels or ()):
        count = len(c.student.network_timesteps)
        yield f"student.network_timesteps has {count} entries; expected one for each of student.levels"
    if c.search.network_timestep_trials and c.search.engine == "gradient":
        count = c.search.network_timestep_trials
        yield f"search.network_timestep_trials={count}: search.engine=gradient has no trials; use tune or both"
    if c.learner.regulariser.kind in ("renyi", "power") and c.learner.regulariser.order in (0, 1):
        order, kind = c.learner.regulariser.order, c.learner.regulariser.kind
        yield f"learner.regulariser.order={order}: {kind} needs a value other than 0 and 1"
    normalised = [name for name, term in c.reward.terms.items() if term.normalise != "none"]
    if c.method == "draft" and normalised:
        key = f"reward.terms.{normalised[0]}.normalise"
        yield f"{key}=std: method=draft has no siblings to normalise over; expected none"
    if policy and c.rollout.siblings == 1 and normalised:
        key = f"reward.terms.{normalised[0]}.normalise"
        yield f"{key}=std: rollout.siblings=1 leaves no siblings to normalise over; expected none"
    learned = next((name for name in c.reward.terms if name not in c.reward.fixed), None)
    if learned and not policy:
        yield (
            f"reward.terms.{learned}: it learns from the images of policy rounds, and method={c.method} with "
            f"learner.rounds={c.learner.rounds} has none; remove it, or use method=redif"
        )
    if learned and not any(term.weight for term in c.reward.fixed.values()):
        yield (
            f"reward.terms.{learned} has no other term beside it: what it says changes from round to round, so "
            "it cannot choose the best checkpoint; add another term, such as mse, of any weight but 0"
        )
    if c.draft.last_steps is not None and c.draft.last_steps > c.student.steps:
        yield f"draft.last_steps={c.draft.last_steps}: expected at most student.steps={c.student.steps}"
    if c.learner.workers > 1 and c.learner.gpus not in (0, 1):
        yield f"learner.gpus={c.learner.gpus:g}: learner.workers={c.learner.workers} need whole ones; expected 1"
    if c.rollout.groups % c.learner.workers:
        yield f"learner.workers={c.learner.workers}: expected a divisor of rollout.groups={c.rollout.groups}"
    yield from _sharding_conflicts(c)
    yield from _placement_conflicts(c)
    yield from _environment_conflicts(c)


def _sharding_conflicts(c: Sections) -> Iterator[str]:
    if not c.learner.fsdp:
        return
    if c.learner.workers == 1:
        yield "learner.fsdp=true: learner.workers=1 has nobody to share with; expected at least 2"
    if c.method == "draft":
        yield "learner.fsdp=true: method=draft differentiates whole chains of calls; expected method=redif or sfd"
    if c.networks.compile:
        yield "learner.fsdp=true: networks.compile=true would compile what gathers the shares; expected false"


def _search_conflicts(c: Sections) -> Iterator[str]:
    s = c.search
    if list(s.rungs) != sorted(set(s.rungs)) or any(rung % s.unit_noises for rung in s.rungs):
        yield f"search.rungs={list(s.rungs)}: expected rising multiples of search.unit_noises={s.unit_noises}"
    if s.steps is not None and len(set(s.steps)) != len(s.steps):
        yield f"search.steps={list(s.steps)}: expected each number once"
    if s.descent.batch > s.rungs[-1]:
        yield f"search.descent.batch={s.descent.batch}: expected at most the last of search.rungs={list(s.rungs)}"
    if s.frechet.weight and s.engine != "tune":
        yield f"search.frechet.weight={s.frechet.weight:g}: search.engine={s.engine} cannot descend it; expected tune"
    if s.frechet.weight and s.frechet.encoder == c.evaluation.judge:
        yield (
            f"search.frechet.encoder={s.frechet.encoder}: that is evaluation.judge, which is to judge what it did not "
            "choose; expected another"
        )


def _sweep_conflicts(c: Sections) -> Iterator[str]:
    s, every = c.sweep, c.validation.every
    if s.scheduler == "asha" and not s.rungs:
        yield f"sweep.rungs is empty; sweep.scheduler=asha cuts after rounds, multiples of validation.every={every}"
    if s.rungs and (list(s.rungs) != sorted(set(s.rungs)) or any(rung % every for rung in s.rungs)):
        yield f"sweep.rungs={list(s.rungs)}: expected rising multiples of validation.every={every}"
    if s.rungs and s.scheduler != "asha":
        yield f"sweep.rungs={list(s.rungs)}: only sweep.scheduler=asha cuts trials; it is {s.scheduler}"


def _placement_conflicts(c: Sections) -> Iterator[str]:
    if c.ray.wait and c.ray.address == "local":
        yield "ray.wait=true: the private cluster of ray.address=local does not grow; join one that does"
    for role, workers in (("rollout", c.rollout), ("reward", c.reward)):
        if workers.first > workers.max_workers:
            yield f"{role}.min_workers={workers.min_workers}: expected at most {role}.max_workers={workers.max_workers}"
        if workers.min_workers and c.ray.address == "local":
            yield (
                f"{role}.min_workers={workers.min_workers}: the private cluster of ray.address=local does not grow; "
                "leave it out, or join one that does with ray.address=auto"
            )
    for role, section in (("rollout", c.rollout), ("reward", c.reward), ("learner", c.learner)):
        for name, amount in section.resources.items():
            key = f"{role}.resources.{name}"
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                yield f"{key}: that is no custom resource; expected {role}.cpus and {role}.gpus, or a name of your own"
            if amount > 1 and amount % 1:
                yield f"{key}={amount:g}: Ray shares out whole ones above 1; expected a whole number, or less than 1"
            if c.ray.address == "local":
                yield (
                    f"{key}={amount:g}: the private cluster of ray.address=local has no custom resources; leave it "
                    "out, or join a cluster that has some with ray.address=auto"
                )
        if section.labels and c.ray.address == "local":
            yield (
                f"{role}.labels: the private cluster of ray.address=local has no labels; leave them out, or join a "
                "cluster that has some with ray.address=auto"
            )


def _environment_conflicts(c: Sections) -> Iterator[str]:
    env = c.reward.runtime_env
    if env is None:
        return
    if c.method == "draft":
        yield (
            "reward.runtime_env: method=draft back-propagates through the rewards in the learner, which has no such "
            "environment; leave it out, and install what the rewards need where the learner runs"
        )
    for uri in env.py_modules:
        if "://" not in uri:
            yield (
                f"reward.runtime_env.py_modules: {uri!r} is no URI; expected that of a .zip or .whl which every node "
                "can read, such as file:///shared/my.zip"
            )
    if any(re.search(r"//[^/@\s]+@", text) for text in (*env.pip, *env.py_modules)):
        yield (
            "reward.runtime_env: a URL holds a user or password, which would be logged; leave it out, and keep it in "
            "the nodes' ~/.netrc"
        )
