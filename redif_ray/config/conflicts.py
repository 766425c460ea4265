"""Conflicts: keys of a configuration that are valid one by one and cannot be used together.

There is one function for each subject; it yields a sentence for each conflict, with the keys, their values, what was
expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator

from redif_ray.config.sections import BUILT_IN, Sections
from redif_ray.config.training import Evaluation
from redif_ray.masking import masked_uris


def conflicts(c: Sections) -> Iterator[str]:
    """Yield a sentence for each conflict of a configuration."""
    yield from _teacher(c)
    yield from _search(c)
    yield from _sweep(c)
    yield from unlike(c.evaluation)
    if _has_policy(c):
        yield from _policy(c)
    if c.method in BUILT_IN and c.method not in ("redif", "sfd") and c.learner.rounds > 0:
        yield from _own_rounds(c)
    yield from _pipeline(c)
    yield from _rollout(c)
    yield from _student(c)
    yield from _reward_terms(c)
    yield from _learner(c)
    if c.networks.quantize != "none":
        yield from _quantized(c)
    if c.learner.fsdp:
        yield from _fsdp(c)
    yield from _elastic_workers(c)
    yield from _placement(c)
    yield from _reward_environment(c)


def _has_policy(c: Sections) -> bool:
    return c.method == "redif" and c.learner.rounds > 0


def _teacher(c: Sections) -> Iterator[str]:
    height, width = c.teacher.height, c.teacher.width
    if (height is None) != (width is None):
        key, missing = ("height", "width") if width is None else ("width", "height")
        yield f"teacher.{key}={height or width}: teacher.{missing} is not set; expected both, or neither"
    if c.teacher.base is not None and not c.teacher.model.endswith(".safetensors"):
        yield (
            f"teacher.base={c.teacher.base}: teacher.model={c.teacher.model} is whole without it; expected null, or a "
            "teacher.model in one .safetensors file"
        )


def _search(c: Sections) -> Iterator[str]:
    s = c.search
    if list(s.rungs) != sorted(set(s.rungs)) or any(rung % s.unit_noises for rung in s.rungs):
        yield f"search.rungs={list(s.rungs)}: expected rising multiples of search.unit_noises={s.unit_noises}"
    if s.steps is not None and len(set(s.steps)) != len(s.steps):
        yield f"search.steps={list(s.steps)}: expected each number once"
    if s.descent.batch > s.rungs[-1]:
        yield f"search.descent.batch={s.descent.batch}: expected at most the last of search.rungs={list(s.rungs)}"
    if s.frechet.weight and s.engine != "tune":
        yield (
            f"search.frechet.weight={s.frechet.weight:g}: search.engine={s.engine} cannot differentiate the Fréchet "
            "distance; use search.engine=tune"
        )
    if s.frechet.weight and s.frechet.encoder == c.evaluation.judge:
        yield (
            f"search.frechet.encoder={s.frechet.encoder}: evaluation.judge has the same value, and a judge must not "
            "choose the schedule that it judges; use another encoder"
        )
    if s.network_timestep_trials and s.engine == "gradient":
        count = s.network_timestep_trials
        yield f"search.network_timestep_trials={count}: search.engine=gradient has no trials; use tune or both"


def unlike(evaluation: Evaluation) -> Iterator[str]:
    """Yield a sentence where the images of one condition do not fit into a work unit; also for a batch chosen later."""
    noises, batch = evaluation.diversity.noises, evaluation.batch
    if evaluation.diversity.encoder is not None and batch is not None and noises > batch:
        yield (
            f"evaluation.diversity.noises={noises}: the images of a condition are made at once, and evaluation.batch="
            f"{batch}; expected at most as many, and at least 2"
        )


def _sweep(c: Sections) -> Iterator[str]:
    s, every = c.sweep, c.validation.every
    if s.scheduler == "asha" and not s.rungs:
        yield (
            f"sweep.rungs is empty: sweep.scheduler=asha cuts trials after these rounds; expected rising multiples of "
            f"validation.every={every}"
        )
    if s.rungs and (list(s.rungs) != sorted(set(s.rungs)) or any(rung % every for rung in s.rungs)):
        yield f"sweep.rungs={list(s.rungs)}: expected rising multiples of validation.every={every}"
    if s.rungs and s.scheduler != "asha":
        yield (
            f"sweep.rungs={list(s.rungs)}: only sweep.scheduler=asha cuts trials, and the scheduler is {s.scheduler}; "
            "leave the rungs out, or use asha"
        )


def _policy(c: Sections) -> Iterator[str]:
    exploration, siblings = c.exploration, c.rollout.siblings
    if exploration.eta == 0:
        yield "exploration.eta=0: a policy gradient needs exploration; expected a value in (0, 1], such as 0.25"
    if c.student.steps == 1 and not exploration.last_step:
        yield "student.steps=1: exploration.last_step=false leaves no stochastic step; set exploration.last_step=true"
    if siblings == 1 and c.learner.advantage in ("global_std", "group_std", "mean_only"):
        yield (
            f"rollout.siblings=1: learner.advantage={c.learner.advantage} compares siblings; "
            "expected at least 2, or advantage=running"
        )
    if exploration.antithetic and (siblings % 2 or siblings < 4):
        yield (
            f"rollout.siblings={siblings}: exploration.antithetic=true pairs siblings and compares each "
            "pair with the others; expected an even number, at least 4"
        )
    if exploration.one_step and c.rollout.guided:
        yield (
            f"exploration.one_step=true: rollout.guided={c.rollout.guided} siblings leave the others at every step, so "
            "they cannot share steps; expected 0"
        )
    if exploration.one_step and c.learner.step_weight != "none":
        yield (
            f"exploration.one_step=true: learner.step_weight={c.learner.step_weight} compares the steps of a round, "
            "and there is one that explores; expected none"
        )
    if c.pipeline.staleness and c.learner.loss == "reinforce":
        yield (
            f"pipeline.staleness={c.pipeline.staleness}: learner.loss=reinforce has no ratio that corrects for older "
            "weights; expected 0, or loss=ppo_clip"
        )


def _own_rounds(c: Sections) -> Iterator[str]:
    if c.pipeline.staleness and c.method in ("output", "straight", "distribution_matching"):
        yield (
            f"pipeline.staleness={c.pipeline.staleness}: method={c.method} takes gradients back through the states of "
            "the current weights; expected 0"
        )
    if c.method == "progressive" and c.progressive.halvings > c.learner.rounds:
        yield (
            f"progressive.halvings={c.progressive.halvings}: learner.rounds={c.learner.rounds} leave a stage without a "
            "round; expected at most as many"
        )
    if c.method == "contrast":
        yield from _contrast(c)
    section, siblings = ("output", 1) if c.method in ("output", "straight") else (c.method, c.rollout.siblings)
    if c.method == "contrast":
        siblings = c.contrast.noises
    groups, unit = getattr(c, section).groups, c.rollout.unit_groups * siblings
    units = -(-groups // unit)
    if units < c.learner.workers:
        yield (
            f"learner.workers={c.learner.workers}: {section}.groups={groups} in work units of {unit} groups are "
            f"{units} units a round; expected at least one for each rank"
        )


def _contrast(c: Sections) -> Iterator[str]:
    groups, noises, pool = c.contrast.groups, c.contrast.noises, c.conditions.pool
    unit = c.rollout.unit_groups * noises
    if groups % noises:
        yield f"contrast.groups={groups}: expected a multiple of contrast.noises={noises}, whose rewards are compared"
    elif pool is not None and (groups % unit or pool % unit):
        yield (
            f"conditions.pool={pool}: passes over a pool keep the images of work units together, which hold {unit}; "
            f"expected contrast.groups={groups} and the pool to be multiples of it, or rollout.unit_groups=1"
        )
    if c.learner.advantage == "running":
        yield "learner.advantage=running: method=contrast compares images of one round; expected global_std"


def _pipeline(c: Sections) -> Iterator[str]:
    if c.pipeline.colocate and c.pipeline.staleness:
        yield (
            f"pipeline.colocate=true: with pipeline.staleness={c.pipeline.staleness} workers and learner work at the "
            "same time, so they cannot take turns on a GPU; expected staleness=0"
        )
    if c.pipeline.colocate and c.learner.workers > 1 and c.learner.fsdp:
        yield (
            f"pipeline.colocate=true with learner.workers={c.learner.workers}: weights shared among ranks cannot leave "
            "the GPU; expected learner.fsdp=false"
        )
    if c.learner.workers > 1 and c.learner.gpus and (c.pipeline.colocate or c.learner.gpus != 1):
        yield from _shared_cards(c)


def _shared_cards(c: Sections) -> Iterator[str]:
    """Yield what keeps several ranks from being one on each GPU, with one worker of each role beside it."""
    ranks, gpus = c.learner.workers, c.learner.gpus
    turns = "pipeline.colocate=true with " if c.pipeline.colocate else ""
    turns += f"learner.workers={ranks}"
    if not 0.5 < gpus < 1:
        alone = "" if c.pipeline.colocate else ", or 1 for a GPU of its own"
        yield (
            f"{turns}: learner.gpus={gpus:g} does not put one rank on each GPU beside workers; expected more than 0.5 "
            f"and less than 1, such as 0.6{alone}"
        )
    for role, workers in (("rollout", c.rollout), ("reward", c.reward)):
        if workers.max_workers != ranks or workers.first != ranks:
            yield f"{turns}: {role} has another number of workers; expected {role}.max_workers={ranks}, one a GPU"
        if workers.labels != c.learner.labels:
            yield f"{turns}: {role}.labels are not learner.labels, so they cannot share a GPU; expected the same"
    if (whole := c.rollout.gpus + c.reward.gpus + gpus) > 1 + 1e-9 or not (c.rollout.gpus and c.reward.gpus):
        yield (
            f"{turns}: rollout.gpus + reward.gpus + learner.gpus = {whole:g}, and each of the three needs a part of "
            "one GPU; expected a sum of at most 1, such as 0.2, 0.2 and 0.6"
        )


def _rollout(c: Sections) -> Iterator[str]:
    if c.rollout.guided >= c.rollout.siblings:
        yield f"rollout.guided={c.rollout.guided}: expected less than rollout.siblings={c.rollout.siblings}"
    if c.rollout.groups % c.rollout.unit_groups:
        yield f"rollout.unit_groups={c.rollout.unit_groups}: expected a divisor of rollout.groups={c.rollout.groups}"


def _student(c: Sections) -> Iterator[str]:
    levels, timesteps = c.student.levels, c.student.network_timesteps
    if levels is not None and len(levels) != c.student.steps:
        yield f"student.levels has {len(levels)} entries; expected student.steps={c.student.steps}"
    if timesteps is not None and len(timesteps) != len(levels or ()):
        yield f"student.network_timesteps has {len(timesteps)} entries; expected one for each of student.levels"
    if c.draft.last_steps is not None and c.draft.last_steps > c.student.steps:
        yield f"draft.last_steps={c.draft.last_steps}: expected at most student.steps={c.student.steps}"


def _reward_terms(c: Sections) -> Iterator[str]:
    if c.conditions.metadata and not any({"callable", "url"} & {*term.options} for term in c.reward.terms.values()):
        yield (
            f"conditions.metadata={list(c.conditions.metadata)}: only a function or a service of your own reads "
            "metadata, and reward.terms names none; add one with the option callable or url, or leave metadata out"
        )
    normalised = next((f"reward.terms.{name}" for name, t in c.reward.terms.items() if t.normalise != "none"), None)
    if normalised and c.method == "draft":
        yield f"{normalised}.normalise=std: method=draft has no siblings to normalise over; expected none"
    if normalised and _has_policy(c) and c.rollout.siblings == 1:
        yield f"{normalised}.normalise=std: rollout.siblings=1 leaves no siblings to normalise over; expected none"
    unrewarded = c.method in ("sfd", "consistency", "progressive")
    unrewarded |= c.method == "distribution_matching" and not c.distribution_matching.reward_weight
    if not unrewarded and c.learner.rounds and not any(c.reward.weights.values()):
        yield (
            f"reward.terms: every term has weight 0, so method={c.method} has no reward to raise; give one a weight, "
            "or use method=sfd"
        )
    learned = next((f"reward.terms.{name}" for name in c.reward.terms if name not in c.reward.fixed), None)
    if learned and not _has_policy(c):
        yield (
            f"{learned}: this term learns from the images of policy rounds, and method={c.method} with "
            f"learner.rounds={c.learner.rounds} has none; remove the term, or use method=redif"
        )
    if learned and not any(term.weight for term in c.reward.fixed.values()):
        yield (
            f"{learned} has no other term beside it: its scale changes from round to round, so it cannot choose the "
            "best checkpoint; add another term, such as mse, of any weight but 0"
        )


def _learner(c: Sections) -> Iterator[str]:
    regulariser, workers = c.learner.regulariser, c.learner.workers
    if regulariser.kind in ("renyi", "power") and regulariser.order in (0, 1):
        yield f"learner.regulariser.order={regulariser.order}: {regulariser.kind} needs a value other than 0 and 1"
    if c.rollout.groups % workers:
        yield f"learner.workers={workers}: expected a divisor of rollout.groups={c.rollout.groups}"


def _quantized(c: Sections) -> Iterator[str]:
    """Yield what keeps the student's frozen base from being quantized."""
    asked = f"networks.quantize={c.networks.quantize}"
    if not c.student.lora.rank:
        yield f"{asked}: student.lora.rank=0 trains all weights, which cannot be quantized; expected none, or adapters"
    if c.learner.fsdp:
        yield f"{asked}: learner.fsdp=true cannot share quantized weights out among ranks; expected none, or fsdp=false"
    if c.networks.compile:
        yield f"{asked}: networks.compile=true is not supported with quantized layers; expected none, or compile=false"
    if c.pipeline.colocate:
        yield f"{asked}: pipeline.colocate=true would move quantized weights between devices; expected none, or false"
    if c.method == "distribution_matching" and not c.distribution_matching.lora.rank:
        yield (
            f"{asked}: method=distribution_matching trains a second network whole; expected none, or "
            "distribution_matching.lora.rank above 0"
        )


def _fsdp(c: Sections) -> Iterator[str]:
    if c.learner.optimizer == "adamw_8bit":
        yield "learner.fsdp=true: learner.optimizer=adamw_8bit cannot share its moments out among ranks; expected adamw"
    if c.learner.workers == 1:
        yield "learner.fsdp=true: learner.workers=1 has no other rank to share the weights with; expected at least 2"
    if c.method == "draft":
        yield (
            "learner.fsdp=true: method=draft differentiates through several network calls at once, which FSDP does "
            "not support here; expected method=redif or sfd"
        )
    if c.method == "distribution_matching":
        yield (
            "learner.fsdp=true: the second network of method=distribution_matching cannot be shared among ranks; "
            "expected false, or distribution_matching.lora for less memory"
        )
    if c.method in ("contrast", "consistency", "progressive"):
        yield f"learner.fsdp=true: ranks cannot share the earlier student of method={c.method}; expected false"
    if c.networks.compile:
        yield (
            "learner.fsdp=true: networks.compile=true would compile the hooks that gather the shares of the weights; "
            "expected false"
        )


def _elastic_workers(c: Sections) -> Iterator[str]:
    local = c.ray.address == "local"
    if c.ray.wait and local:
        yield (
            "ray.wait=true: the private cluster of ray.address=local does not grow; leave wait out, or join a cluster "
            "that grows with ray.address=auto"
        )
    for role, workers in (("rollout", c.rollout), ("reward", c.reward)):
        if workers.first > workers.max_workers:
            yield f"{role}.min_workers={workers.min_workers}: expected at most {role}.max_workers={workers.max_workers}"
        if workers.min_workers and local:
            yield (
                f"{role}.min_workers={workers.min_workers}: the private cluster of ray.address=local does not grow; "
                "leave min_workers out, or join a cluster that grows with ray.address=auto"
            )


def _placement(c: Sections) -> Iterator[str]:
    local = c.ray.address == "local"
    for role, section in (("rollout", c.rollout), ("reward", c.reward), ("learner", c.learner)):
        for name, amount in section.resources.items():
            key = f"{role}.resources.{name}"
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                yield f"{key}: {name} is no custom resource; expected {role}.cpus and {role}.gpus, or another name"
            if amount > 1 and amount % 1:
                yield f"{key}={amount:g}: above 1 Ray takes no fractions; expected a whole number, or less than 1"
            if local:
                yield (
                    f"{key}={amount:g}: the private cluster of ray.address=local has no custom resources; leave the "
                    "resource out, or join a cluster that has it with ray.address=auto"
                )
        if section.labels and local:
            yield (
                f"{role}.labels: the private cluster of ray.address=local has no labels; leave them out, or join a "
                "cluster that has them with ray.address=auto"
            )


def _reward_environment(c: Sections) -> Iterator[str]:
    env = c.reward.runtime_env
    if env is None:
        return
    if c.method == "draft":
        yield (
            "reward.runtime_env: method=draft evaluates the rewards in the learner, which has no such environment; "
            "leave it out, and install the packages of the rewards on the learner's nodes"
        )
    for uri in env.py_modules:
        if "://" not in uri:
            yield (
                f"reward.runtime_env.py_modules: {uri!r} is no URI; expected the URI of a .zip or .whl that every node "
                "can read, such as file:///shared/my.zip"
            )
    if any(masked_uris(text) != text for text in (*env.pip, *env.py_modules)):
        yield (
            "reward.runtime_env: a URL holds a user or password, or a token, which would be logged; leave it out of "
            "the URL, and put it into the nodes' ~/.netrc"
        )
