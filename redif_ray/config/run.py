"""Sections for a run's place, teacher, student, exploration, conditions, checkpoints and tracking."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from redif_ray.config.base import ON_EVALUATE, ON_RESUME, Count, Fraction, Location, Positive, Strict
from redif_ray.config.uris import ENV, Uri

Precision = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "4bit"]


class Run(Strict):
    """The name, place and seed of a run."""

    name: str = Field(
        "redif",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="Name of the run folder: letters, digits, dots, dashes and underscores. Change it for each new "
        "run.",
    )
    root: Location = Field(
        "runs",
        json_schema_extra=ON_RESUME,
        description="Folder of the run folders, which every worker must see at the same path.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of every random number of the run, from 0 to 2^63 - 1. Change it to repeat an experiment.",
    )


class Ray(Strict):
    """The Ray cluster that a run uses."""

    address: Uri = Field(
        Uri("local"),
        description="The cluster: local starts a private one, auto joins the one of this machine, and a URL joins "
        "that one; env:NAME takes it from the environment.",
    )
    object_store_mb: Positive | None = Field(
        None,
        description="Size of a private cluster's object store in MB, above 0. null lets it grow to 30 % of the memory "
        "that is free, at most. Set it to leave more memory to other programs.",
    )
    num_cpus: Positive | None = Field(
        None,
        description="Logical CPUs of a private cluster, at least 1. null takes what the machine has, or what the run "
        "needs if that is more.",
    )
    wait: bool = Field(
        False,
        description="Whether to wait for nodes of an autoscaler where a joined cluster has too few now. false is an "
        "error at once.",
    )


class Teacher(Strict):
    """The model that is distilled, and the sampling of its target images."""

    model: Location = Field(
        "fashion-mnist",
        description="A diffusers folder, a hub id, the name of a shipped teacher, or a checkpoint in one .safetensors "
        "file, as ComfyUI keeps it.",
    )
    base: Location | None = Field(
        None,
        description="The diffusers folder or hub id that gives what a teacher in one file lacks: configuration, "
        "tokenisers, scheduler, and networks that are not in it. null is the hub's model of the file's layout.",
    )
    family: Location | None = Field(
        None,
        description="Your own code that loads the teacher, as path/to/file.py:load or package.module:load. null takes "
        "the family that knows the pipeline's class.",
    )
    lora: dict[Location, float] = Field(
        default_factory=dict,
        description="LoRA files (diffusers, peft, kohya or ComfyUI keys) that are merged into the teacher, each with a "
        "weight, as {style.safetensors: 0.8}; a path alone has weight 1. Set it to distil a fine-tune.",
    )
    height: Positive | None = Field(
        None,
        description="Height of all images of the run in pixels, set together with teacher.width. null is the size that "
        "the network's config.json names. Set it to train at 512 what was made for 1024, or where no size is named.",
    )
    width: Positive | None = Field(
        None, description="Width of all images of the run in pixels, set together with teacher.height; see there."
    )
    solver: Literal["euler", "heun", "dpmpp_2m"] = Field(
        "dpmpp_2m",
        description="The solver of target images: euler, heun or dpmpp_2m. heun calls the network twice a level.",
    )
    steps: Positive = Field(
        20,
        description="Levels at which target images are sampled, at least 1. More steps give better targets and cost "
        "more calls.",
    )
    schedule: str = Field(
        "uniform_trailing", description="The named schedule of target images (`redif_ray.diffusion.schedules`)."
    )
    batch: Count = Field(
        8,
        description="Target images that are sampled at once for training, at least 1, in whole work units; later "
        "rounds find theirs ready. Raise it until a device is full, lower it where memory is short.",
    )
    guidance: float = Field(
        1.0, ge=0, description="Classifier-free guidance scale of target images, from 0; 1 is unguided."
    )
    store: Location | None = Field(
        None, description="Folder of teacher targets, which runs may share. null is <run.root>/.targets."
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _one_file(cls, lora: Any) -> Any:
        return {lora: 1.0} if isinstance(lora, str) else lora

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (height, width) of the images in pixels, or None for the network's own size."""
        return None if self.height is None or self.width is None else (self.height, self.width)


class Networks(Strict):
    """The precision, the quantization and the compilation of denoising networks."""

    precision: Precision = Field(
        "float32",
        json_schema_extra=ON_EVALUATE,
        description="Precision of the networks: float32, bfloat16 or float16. Use 16 bits on GPUs; latents, densities "
        "and trained weights stay float32.",
    )
    quantize: Quantization = Field(
        "none",
        description="4bit (NF4) quantizes the frozen base under the adapters in rollout workers and the learner, by "
        "the package bitsandbytes. Reward workers sample the teacher, and an export has its base, in whole precision.",
    )
    compile: bool = Field(
        False,
        description="Whether to compile the denoising networks with torch.compile: the blocks that a network repeats, "
        "each kind once, or all of it where it names none. First calls take longer, later ones are faster on GPUs.",
    )


class Lora(Strict):
    """Adapters (LoRA) that are trained in place of all weights."""

    rank: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Rank of the adapters, from 0; 0 trains all weights. Use 16 to 64 where all weights need too much "
        "memory.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="Scale of the adapters, above 0: their output is multiplied by alpha / rank. null is alpha = rank.",
    )
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="Names of the layers that get adapters, at least one. Change them for networks whose attention "
        "layers have other names.",
    )


class Student(Strict):
    """The few-step sampler that is trained."""

    steps: int = Field(
        4, gt=0, le=64, description="N, the network calls that the deployed student makes for an image, from 1 to 64."
    )
    init: Location | None = Field(
        None,
        description="A distilled model that the student starts as: a diffusers folder of the teacher's family, an "
        "exported student or a finished run. null starts as the teacher. Set it to go on from 8 steps to 4, or to "
        "train a model of few steps by a reward.",
    )
    schedule: Location = Field(
        "uniform_trailing",
        description="A named schedule (`redif_ray.diffusion.schedules`), a schedule.yaml of `redif search`, or init, "
        "the levels for which student.init was trained.",
    )
    levels: tuple[float, ...] | None = Field(
        None,
        description="Timesteps of the N levels, noisiest first, in place of a schedule. null uses student.schedule.",
    )
    network_timesteps: tuple[float, ...] | None = Field(
        None,
        description="Timesteps that the network is called with at the N levels of student.levels. null is the levels' "
        "own.",
    )
    tilt: float = Field(
        0.0,
        description="a of z = a u + b u^2, by which the schedule's log-SNR increments are reweighted, u from -1 to 1. "
        "0 leaves them.",
    )
    bow: float = Field(
        0.0,
        description="b of z = a u + b u^2, by which the schedule's log-SNR increments are reweighted, u from -1 to 1. "
        "0 leaves them.",
    )
    guidance: float = Field(
        1.0,
        ge=0,
        description="Classifier-free guidance scale of the student in rollout, update and deployment, from 0; 1 is "
        "unguided and halves the calls.",
    )
    lora: Lora = Lora()


class Exploration(Strict):
    """The noise of rollouts in the policy phase."""

    kind: Literal["posterior", "cps"] = Field(
        "posterior",
        description="The noise of a step: posterior (the teacher's ancestral noise) or cps (noise that preserves the "
        "level's coefficients).",
    )
    eta: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Scale of the noise of rollouts, from 0 (deterministic) to 1. Deployment always uses 0. Raise it "
        "where siblings look alike.",
    )
    one_step: bool = Field(
        False,
        description="Whether a round explores at one step alone, each in turn. Siblings then share the steps before, "
        "which costs fewer calls.",
    )
    last_step: bool = Field(
        False,
        description="Whether to explore at the last step too. Students of one step need it by "
        "the method redif, whose only step is the last.",
    )
    antithetic: bool = Field(
        True,
        description="Whether sibling 2k + 1 uses minus the noise of sibling 2k, which lowers the variance of the "
        "gradient.",
    )


class Conditions(Strict):
    """The classes or captions that images are drawn for."""

    kind: Literal["auto", "none", "class", "text"] = Field(
        "auto", description="Conditions of images: none, class or text. auto is the kind that the teacher takes."
    )
    classes: tuple[int, ...] | None = Field(
        None, min_length=1, description="Class numbers to draw, at least one. null draws all."
    )
    source: Uri | None = Field(
        None,
        description="Captions or labels: a file (.txt, .csv, .jsonl, .parquet or .tar), a folder of images with "
        "captions or of such files, a URI or a shipped list. null is the shipped prompts, or all classes. An editing "
        "teacher takes the pictures too: a folder of images with captions, or Parquet with source_image.",
    )
    column: str | None = Field(
        None, description="Column of the source. null looks for a usual name, such as caption, text, label or class."
    )
    metadata: tuple[str, ...] = Field(
        (),
        description="Further columns of the source, whose values the reward's own functions and services get with each "
        "caption, as [include, tag]. Set it for rewards that check what a caption asks for.",
    )
    held_out: Fraction = Field(
        0.1, description="Share of the captions that only the final evaluation sees, from 0 to 1."
    )
    pool: int | None = Field(
        None,
        gt=0,
        description="Number of different training groups, at least 1. null draws a new start latent for every group. "
        "Set it where targets are expensive.",
    )


class Checkpoint(Strict):
    """Intervals and number of checkpoints, and the place that they are copied to."""

    every: Positive = Field(
        20, description="Rounds between checkpoints, at least 1. Lower it where nodes are lost often."
    )
    keep: Positive = Field(3, description="Newest checkpoints that are kept, at least 1.")
    upload: Uri | None = Field(
        None,
        description="URI to which checkpoints and results are copied: s3://bucket/folder, gs://, hdfs:// or file://; "
        "env:NAME takes it from the environment. null copies nothing.",
    )

    @field_validator("upload")
    @classmethod
    def _names_a_file_system(cls, uri: Uri | None) -> Uri | None:
        if uri is not None and "://" not in uri and not uri.startswith(ENV):
            raise ValueError("checkpoint.upload is no URI; expected one such as s3://bucket/folder or file:///disk")
        return uri


class Tracking(Strict):
    """The MLflow store and experiment that record a run."""

    uri: Uri | None = Field(
        None,
        json_schema_extra=ON_RESUME,
        description="URI of the MLflow store; env:NAME takes it from the environment. null is MLFLOW_TRACKING_URI, or "
        "SQLite at <run.root>/mlflow.db where that is not set, and off disables tracking.",
    )
    experiment: str | None = Field(
        None,
        min_length=1,
        description="Name of the MLflow experiment. null is MLFLOW_EXPERIMENT_NAME, or redif where that is not set.",
    )
