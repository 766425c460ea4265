"""Where a run lives, what it distils, into what, and what it draws."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from redif_ray.config.base import ON_RESUME, Fraction, Positive, Strict
from redif_ray.config.uris import check_public

UPLOAD_CREDENTIALS = (
    "credentials come from the environment, such as AWS_ACCESS_KEY_ID or GOOGLE_APPLICATION_CREDENTIALS"
)
TRACKING_CREDENTIALS = (
    "a server's credentials come from the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN), a database's from its client's own file or environment (PGPASSWORD or ~/.pgpass for "
    "PostgreSQL); `mlflow server` in front of a database needs neither"
)


class Run(Strict):
    name: str = Field("redif", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder's name")
    root: str = Field(
        "runs", description="where run folders live; a path that every worker sees", json_schema_extra=ON_RESUME
    )
    seed: int = Field(0, ge=0, lt=2**63, description="every random number of the run is a function of it")


class Ray(Strict):
    address: str = Field("local", description="local starts a private cluster, auto joins the one here, or a URL")
    object_store_mb: Positive = Field(300, description="object store of a private cluster")
    num_cpus: Positive | None = Field(None, description="logical CPUs of a private cluster; None asks the machine")
    wait: bool = Field(False, description="wait for nodes that an autoscaler brings, where the cluster has too few now")


class Teacher(Strict):
    model: str = Field("fashion-mnist", description="a diffusers folder, or the name of a shipped teacher")
    family: str | None = Field(
        None, description="own code that loads it and its students: path/to/file.py:load or package.module:load; None: "
        "what knows the pipeline's class"
    )
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
    network_timesteps: tuple[float, ...] | None = Field(
        None, description="timesteps that the network is called with in place of `levels`; None: those"
    )
    tilt: float = Field(0.0, description="a of z = a u + b u^2 on the schedule's log-SNR increments")
    bow: float = Field(0.0, description="b of the same")
    guidance: float = Field(1.0, ge=0, description="the same in rollout, update and deployment")
    lora: Lora = Lora()


class Exploration(Strict):
    kind: Literal["posterior", "cps"] = "posterior"
    eta: float = Field(0.25, ge=0, le=1, description="0 is deterministic; deployment always uses 0")
    one_step: bool = Field(
        False, description="a round explores at one of the steps alone, in turn: siblings are one until there, and the "
        "update sees one state a group"
    )
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


class Checkpoint(Strict):
    every: Positive = Field(20, description="rounds")
    keep: Positive = 3
    upload: str | None = Field(
        None, description="where distill copies checkpoints and results to: s3://bucket/folder, gs://, hdfs://, file://"
    )

    @field_validator("upload")
    @classmethod
    def _without_secrets(cls, uri: str | None) -> str | None:
        if uri is not None:
            if "://" not in uri:
                raise ValueError("checkpoint.upload is no URI; expected one such as s3://bucket/folder or file:///disk")
            check_public("checkpoint.upload", uri, UPLOAD_CREDENTIALS)
        return uri


class Tracking(Strict):
    uri: str | None = Field(
        None, description="the MLflow store, without credentials; None: SQLite at <root>/mlflow.db; off disables it",
        json_schema_extra=ON_RESUME,
    )
    experiment: str = "redif"

    @field_validator("uri")
    @classmethod
    def _without_secrets(cls, uri: str | None) -> str | None:
        return uri if uri is None else check_public("tracking.uri", uri, TRACKING_CREDENTIALS)
