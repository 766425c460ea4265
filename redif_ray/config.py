"""The whole configuration as one strict, frozen tree. YAML in, dotted overrides on top; an unknown key is an error.

`load(path, overrides)` is the only way in; every message names the key, the value, what was expected and, for a key
that does not exist, the nearest one that does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from redif_ray.conflicts import conflicts
from redif_ray.errors import UserError
from redif_ray.yaml12 import Dumper, Loader

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Resources = dict[str, Annotated[float, Field(gt=0)]]
SECRET = re.compile(  # in the name of a variable, or of what a URI's query holds
    r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|SIGNATURE|SIG\b|SAS", re.IGNORECASE
)
Labels = dict[
    Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*$")],
    Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63)],
]
LABELS = "labels that the node of one must have, as {ray.io/market-type: spot}"


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message is complete and meant for the user."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth", "true or false is not a value of this key")
        return value


class Run(Strict):
    name: str = Field("redif", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder's name")
    root: str = Field("runs", description="where run folders live; a path that every worker sees")
    seed: int = Field(0, ge=0, lt=2**63, description="every random number of the run is a function of it")


class Ray(Strict):
    address: str = Field("local", description="local starts a private cluster, auto joins the one here, or a URL")
    object_store_mb: Positive = Field(300, description="object store of a private cluster")
    num_cpus: Positive | None = Field(None, description="logical CPUs of a private cluster; None asks the machine")
    wait: bool = Field(False, description="wait for nodes that an autoscaler brings, where the cluster has too few now")


class Teacher(Strict):
    model: str = Field("fashion-mnist", description="a diffusers folder, or the name of a shipped teacher")
    solver: Literal["euler", "heun", "dpmpp_2m"] = "dpmpp_2m"
    steps: Positive = Field(20, description="evaluated levels of the target; heun calls the network twice a level")
    schedule: str = Field("uniform_trailing", description="named schedule of the target")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance of the target; 1 is unguided")
    store: str | None = Field(None, description="folder of teacher targets shared between runs; None: <root>/.targets")


class Networks(Strict):
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="what networks compute in; latents, means, densities and trained weights stay float32"
    )
    compile: bool = Field(False, description="torch.compile the denoising networks: minutes at start, on a GPU faster")


class Lora(Strict):
    rank: int = Field(0, ge=0, description="0 trains all weights")
    alpha: float | None = Field(None, gt=0, description="scale alpha / rank; None: alpha = rank")
    targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)


class Student(Strict):
    steps: Positive = Field(4, le=64, description="N: network calls of the deployed student")
    schedule: str = Field(
        "uniform_trailing", description="named schedule (redif_ray.diffusion.schedules), or a file of `redif search`"
    )
    levels: tuple[float, ...] | None = Field(
        None, description="explicit timesteps instead of a named schedule, noisiest first"
    )
    told: tuple[float, ...] | None = Field(
        None, description="timesteps that the network is told in place of `levels`'; None: those"
    )
    tilt: float = Field(0.0, description="a of z = a u + b u^2 on the schedule's log-SNR increments")
    bow: float = Field(0.0, description="b of the same")
    guidance: float = Field(1.0, ge=0, description="the same in rollout, update and deployment")
    lora: Lora = Lora()


class Exploration(Strict):
    kind: Literal["posterior", "cps"] = "posterior"
    eta: float = Field(0.25, ge=0, le=1, description="0 is deterministic; deployment always uses 0")
    last_step: bool = Field(False, description="explore at the last step too; False keeps it deterministic")
    antithetic: bool = Field(True, description="sibling 2k + 1 uses minus the noise of sibling 2k")


class Conditions(Strict):
    kind: Literal["auto", "none", "class", "text"] = Field("auto", description="auto: what the teacher is told")
    classes: tuple[int, ...] | None = Field(None, min_length=1, description="draw only these; None: all")
    source: str | None = Field(
        None,
        description="captions or labels: .txt, .jsonl, .parquet, folder, URI or shipped list; None: shipped prompts",
    )
    column: str | None = Field(None, description="column of the source; None: caption, text or prompt; label or class")
    held_out: Fraction = Field(0.1, description="share of the captions that only the final evaluation sees")
    pool: int | None = Field(None, gt=0, description="number of distinct training groups; None: never repeats")


class Workers(Strict):
    """What the roles have in common whose workers come and go."""

    workers: Positive = Field(1, description="as many as a run uses at most")
    least: Positive | None = Field(
        None, description="without which it neither starts nor goes on; the others join when there is room. None: all "
        "to start, one to go on"
    )
    threads: Positive = 1
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    resources: Resources = Field(default_factory=dict, description="custom resources of one worker, as {hand: 1}")
    labels: Labels = Field(default_factory=dict, description=LABELS)

    @property
    def first(self) -> int:
        """How many of them a run starts with."""
        return self.least or self.workers


class Rollout(Workers):
    groups: Positive = Field(4, description="G: groups a round of the policy phase")
    siblings: Positive = Field(16, description="K: trajectories a group")
    guided: int = Field(0, ge=0, description="siblings of each group that take the teacher's jump as their mean")
    shard_groups: Positive = Field(2, description="groups a shard; results do not depend on who does which")


class Term(Strict):
    weight: float = 1.0
    normalise: Literal["none", "std"] = Field(
        "none", description="std: divide by the round's centred std before weighting"
    )
    options: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the term")


LEARNED = "discriminator"  # the reward term that is trained in the course of a run


class RuntimeEnv(Strict):
    """What reward workers have beyond their node's environment."""

    pip: tuple[str, ...] = Field((), description="packages for them alone, on top of the node's, as pip takes them")
    py_modules: tuple[str, ...] = Field((), description="URIs of a .zip or .whl to import from, file:///shared/my.zip")
    env_vars: dict[str, str | None] = Field(
        default_factory=dict,
        description="a text is in the run's folder, MLflow and Ray's logs; null is the driver's own value, in none",
    )

    @field_validator("env_vars", mode="before")
    @classmethod
    def _no_secrets(cls, given: Any) -> Any:
        """Their values are not in the message either."""
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if value is not None and SECRET.search(str(name)):
                raise ValueError(
                    f"reward.runtime_env.env_vars.{name}: its name is that of a secret, and what stands here is "
                    f"logged; expected null, with {name} set in the environment of the driver"
                )
        return given


class Reward(Workers):
    terms: dict[str, Term] = Field(
        default_factory=lambda: {"mse": Term()}, min_length=1, description="by name; naming any replaces the default"
    )
    calibration: int = Field(64, gt=1, description="groups on which each term is calibrated at start")
    runtime_env: RuntimeEnv | None = Field(
        None, description="what reward workers have that others lack; if only by their nodes, {}. Terms are built there"
    )

    @property
    def fixed(self) -> dict[str, Term]:
        """The terms that mean the same throughout a run."""
        return {name: term for name, term in self.terms.items() if name != LEARNED}


class Regulariser(Strict):
    kind: Literal["none", "kl", "mse", "chi2", "renyi", "power", "js"] = "none"
    weight: float = Field(1.0, ge=0)
    order: float = Field(0.5, description="alpha of renyi, p of power; neither 0 nor 1")
    tempered: bool = Field(True, description="mean instead of sum over dimensions; the sum overflows float32 above 88")


class Anchor(Strict):
    weight: float = Field(0.0, ge=0, description="0 switches it off")
    substeps: Positive = Field(3, description="M: teacher steps a jump")
    loss: Literal["l1", "huber", "mse"] = "huber"
    delta: float = Field(0.1, gt=0, description="huber: where it turns linear")
    gated: bool = Field(False, description="only where the teacher's image scores higher than the student's (RATS)")


class WarmStart(Strict):
    rounds: int = Field(0, ge=0)
    groups: Positive = Field(48, description="trajectories a round, without siblings")
    lr: float = Field(2e-4, gt=0)
    minibatch: Positive = Field(192, description="(trajectory, step) pairs an optimiser step")
    substeps: Positive = 3
    loss: Literal["l1", "huber", "mse"] = "huber"
    delta: float = Field(0.1, gt=0)
    ema: float = Field(0.0, ge=0, lt=1)


class Draft(Strict):
    last_steps: Positive | None = Field(None, description="back-propagate through the last k steps; None: all")
    groups: Positive = Field(48, description="trajectories a round")
    minibatch: Positive = Field(48, description="trajectories an optimiser step")


class Pipeline(Strict):
    staleness: Literal[0, 1, 2] = Field(
        0, description="round r is rolled out with the weights after r - staleness rounds, while the learner updates"
    )
    timeout_s: float = Field(
        600, gt=0, description="a worker that takes longer for a shard is killed; the shard is done again"
    )


class Learner(Strict):
    workers: Positive = 1
    threads: Positive = 1
    rounds: int = Field(100, ge=0, description="rounds after the warm start")
    loss: Literal["ppo_clip", "reinforce", "grpo_guard"] = "ppo_clip"
    advantage: Literal["global_std", "group_std", "mean_only", "running", "batch"] = "global_std"
    advantage_clip: float = Field(5.0, gt=0)
    clip: float | None = Field(None, gt=0, description="None: 1e-4 sqrt(16384 / D)")
    step_weight: Literal["none", "std"] = Field("none", description="std: weight step k by S_k / mean(S)")
    inner_epochs: Positive = 1
    minibatch: Positive | None = Field(None, description="(trajectory, step) pairs an optimiser step; None: the round")
    lr: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged student; 0 deploys the raw weights")
    microbatch: Positive = Field(64, description="states a forward and backward pass: memory, not mathematics")
    checkpointing: bool = Field(False, description="compute activations again in the backward pass: memory for time")
    shard: bool = Field(
        False, description="a rank holds its share of weights, gradients and moments: for a student that fits no GPU"
    )
    regulariser: Regulariser = Regulariser()
    anchor: Anchor = Anchor()
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0, description="of one rank; several ranks need whole ones")
    resources: Resources = Field(default_factory=dict, description="custom resources of one rank, as {learner: 1}")
    labels: Labels = Field(default_factory=dict, description=LABELS)


class Validation(Strict):
    every: Positive = Field(10, description="rounds")
    groups: Positive = Field(64, description="noises, disjoint from training and held-out")


class Guard(Strict):
    ratio_tolerance: float = Field(
        1e-4, gt=0, description="|log ratio| allowed on a fresh round at the behaviour weights"
    )
    recall_floor: Fraction = Field(0.5, description="stop when validation recall falls below this share of the start's")


class Evaluation(Strict):
    held_out: Positive = 2000
    search: Positive = Field(256, description="noises on which the teacher's best schedule at N is chosen")
    batch: Positive = 50
    judge: str = Field(
        "fashion-mnist", description="a shipped judge or its folder; random-features asks for no data and no classes"
    )
    bootstrap: int = Field(500, ge=40, description="resamples of each interval")


class Descent(Strict):
    iterations: Positive = Field(80, description="optimiser steps (Adam)")
    batch: Positive = Field(32, description="noises a step")
    lr: float = Field(0.05, gt=0, description="of the logits of the increments, and of the shifts")
    told: bool = Field(False, description="also fit what the network is told at the levels; not for captions")


class Frechet(Strict):
    weight: float = Field(0.0, ge=0, description="of the Fréchet distance to the teacher's images of the bank")
    encoder: str = Field("random-features", description="its features: these, or a CLIP's folder or hub id")


class Adaptive(Strict):
    prices: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="an agent each: the distance that a network call must save; None: what the "
        "searched schedules save around each N that has two neighbours"
    )
    max_calls: int = Field(12, ge=2, le=64, description="network calls after which an image is finished")
    noises: Positive = Field(2048, description="that the agents are trained on, with the teacher's image of each")
    iterations: Positive = Field(60, description="of PPO")
    batch: int = Field(2048, ge=32, description="steps of episodes an iteration")
    envs: Positive = Field(64, description="images at once on each worker")
    lr: float = Field(1e-3, gt=0)


class Search(Strict):
    steps: tuple[Annotated[int, Field(ge=2, le=64)], ...] | None = Field(
        None, min_length=1, description="each N to find a schedule for; None: student.steps"
    )
    student: str | None = Field(None, description="a run or an exported student to find it for; None: the teacher")
    solver: Literal["euler", "heun", "dpmpp_2m"] = Field("euler", description="euler is how students are deployed")
    engine: Literal["tune", "gradient", "both"] = Field("tune", description="gradient: back-propagate to the levels")
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "gp"
    bases: tuple[str, ...] | None = Field(None, min_length=1, description="named schedules to warp; None: all")
    shape_trials: Positive = Field(40, description="trials of a base's tilt and bow, at each N")
    refine_trials: int = Field(60, ge=0, description="trials of single increments around the best, at each N")
    told_trials: int = Field(
        0, ge=0, description="trials of what the network is told at the levels found, at each N; not for captions"
    )
    rungs: tuple[Positive, ...] = Field((64, 256), min_length=1, description="noises a trial sees before each cut")
    reduction: float = Field(3.0, gt=1, description="a cut leaves the best 1 in so many")
    concurrent: Positive = Field(1, description="trials at once; one is spread over all workers, and knows all before")
    shard: Positive = Field(32, description="noises a piece of work")
    descent: Descent = Descent()
    frechet: Frechet = Frechet()
    adaptive: Adaptive = Adaptive()


class Sweep(Strict):
    space: dict[str, JsonValue] = Field(
        default_factory=dict, description="by dotted key: uniform|loguniform|integer(low, high), choice(a, b) or a list"
    )
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "gp"
    scheduler: Literal["none", "asha", "pbt"] = Field("none", description="pbt: sweep.trials members, settings move")
    trials: Positive = Field(16, description="runs beside the recipe as it is")
    metric: str = Field("validation/reward", description="or validation/recall, validation/TERM; higher is better")
    rungs: tuple[Positive, ...] = Field((), description="asha: rounds after which trials are cut")
    reduction: float = Field(3.0, gt=1, description="asha: a cut leaves the best 1 in so many")
    generations: Positive = Field(4, description="pbt: how often members are compared, the end included")
    concurrent: Positive = Field(1, description="trials at once, where the cluster has room")
    repeats: int = Field(3, ge=0, description="other seeds for the best settings and for the recipe, in the end")

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, space: Any) -> Any:
        """Nested keys, as dotted overrides give them, become dotted ones."""
        return dict(_dotted(space)) if isinstance(space, dict) else space


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Checkpoint(Strict):
    every: Positive = Field(20, description="rounds")
    keep: Positive = 3
    upload: str | None = Field(
        None, description="where distill copies checkpoints and results to: s3://bucket/folder, gs://, hdfs://, file://"
    )

    @field_validator("upload")
    @classmethod
    def _without_secrets(cls, uri: str | None) -> str | None:
        """It is written into logs, the run folder and MLflow; the message must not repeat it either."""
        if uri is not None:
            try:
                parts = urlsplit(uri)
            except ValueError as error:
                raise ValueError(f"checkpoint.upload is no URI: {error}") from error
            if not parts.scheme or "://" not in uri:
                raise ValueError("checkpoint.upload is no URI; expected one such as s3://bucket/folder or file:///disk")
            secrets = [key for key, _ in parse_qsl(parts.query) if SECRET.search(key)]
            if secrets or ":" in parts.netloc.rpartition("@")[0]:
                what = f"?{secrets[0]}=" if secrets else "a password"
                raise ValueError(
                    f"checkpoint.upload holds {what}; expected a URI without secrets: credentials come from the "
                    "environment, such as AWS_ACCESS_KEY_ID or GOOGLE_APPLICATION_CREDENTIALS"
                )
        return uri


class Tracking(Strict):
    uri: str | None = Field(None, description="None: SQLite at <root>/mlflow.db; off disables it")
    experiment: str = "redif"


class Config(Strict):
    method: Literal["redif", "sfd", "draft"] = "redif"
    run: Run = Run()
    ray: Ray = Ray()
    teacher: Teacher = Teacher()
    student: Student = Student()
    networks: Networks = Networks()
    conditions: Conditions = Conditions()
    exploration: Exploration = Exploration()
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    warm_start: WarmStart = WarmStart()
    learner: Learner = Learner()
    pipeline: Pipeline = Pipeline()
    draft: Draft = Draft()
    validation: Validation = Validation()
    guard: Guard = Guard()
    evaluation: Evaluation = Evaluation()
    search: Search = Search()
    sweep: Sweep = Sweep()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        for problem in conflicts(self):
            raise ValueError(problem)
        return self


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the tree, its sections too; `*` stands for the name of a mapping's entry."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        star = "" if isinstance(field.annotation, UnionType) else "*."
        kinds: list[tuple[Any, str]] = [(field.annotation, ""), *((kind, star) for kind in get_args(field.annotation))]
        for kind, star in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += known_keys(kind, f"{prefix}{name}.{star}")
    return keys


def parse_override(text: str) -> tuple[list[str], Any]:
    """`a.b=3` as (["a", "b"], 3); values are YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {text!r}: expected key=value, such as learner.lr=1e-5")
    try:
        return key.strip().split("."), yaml.load(value, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML ({error})") from error


def assign(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put `value` at a dotted key of a tree, in place."""
    node = tree
    for i, part in enumerate(path[:-1]):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            above = ".".join(path[: i + 1])
            raise ConfigError(f"override {'.'.join(path)}: {above}={child!r} is a value, it has no keys below it")
        node = child
    node[path[-1]] = value


def load(path: str | Path | None, overrides: Sequence[str] = (), model: type[BaseModel] = Config) -> Any:
    """Read a YAML file (a path, or the name of a shipped configuration), apply overrides, validate.

    Raises ConfigError.
    """
    tree = {} if path is None else read_yaml(resolve(path))
    for text in overrides:
        assign(tree, *parse_override(text))
    return validate(tree, model)


def resolve(path: str | Path) -> Path:
    """A configuration file: as given, or among those that ship with the package."""
    package = Path(__file__).parent
    shipped = next(f for f in (package / "configs", package.parent / "configs") if f.exists())  # a wheel, or a checkout
    name = Path(path).name if Path(path).parent == Path("configs") else path
    for candidate in (Path(path), shipped / name, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    available = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
    raise ConfigError(f"no configuration {path}; expected a YAML file, or one of the shipped ones: {available}")


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def validate(tree: Mapping[str, Any], model: type[BaseModel] = Config) -> Any:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, model) for e in error.errors())) from None


def _explain(error: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _named(known_keys(model), path)
        near = [k for k in known if k.endswith(f".{key}")] or difflib.get_close_matches(key, known, n=1, cutoff=0.3)
        return f"{key}: unknown key" + (f"; did you mean {' or '.join(near)}?" if near else "")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{key}: missing; set it in the file or with {key}=..."
    if error["type"] == "model_type":
        below = [k for k in _named(known_keys(model), path) if k.rpartition(".")[0] == key]
        return f"{key}={error['input']!r}: expected a section, with keys among {', '.join(below)}"
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _named(keys: Sequence[str], path: Sequence[str]) -> list[str]:
    """The keys with each `*` replaced by the name that stands there in `path`."""
    return [
        ".".join(path[i] if part == "*" and i < len(path) else part for i, part in enumerate(key.split(".")))
        for key in keys
    ]


def dump(config: BaseModel) -> str:
    """The resolved tree as YAML that `load` reads back to the same configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
