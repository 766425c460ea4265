"""The configuration of `redif train-teacher`, which is read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from redif_ray.config import Location, Strict
from redif_ray.errors import UserError


class TeacherError(UserError, RuntimeError):
    """A teacher cannot be trained as configured; the message says what to do."""


class TeacherConfig(Strict):
    """The configuration of `redif train-teacher`. The defaults are those of the shipped Fashion-MNIST teacher."""

    data: Location = Field(
        description="Images: a folder (with class folders or a metadata table), Parquet, tar shards, npz or IDX files."
    )
    out: Location = Field(description="The diffusers folder to write, which must not exist.")
    size: int | None = Field(
        None, gt=0, description="Edge in pixels, to which images are cropped and resized. null: the images' own."
    )
    label: str | None = Field(
        None, description="Column of a table that holds the labels; none goes without. null: the one of a usual name."
    )
    background: str = Field("white", description="Colour behind transparent pixels: a name, or #rrggbb.")
    patch: int = Field(4, gt=0, description="Edge of a patch in pixels, which must divide the image's.")
    layers: int = Field(6, gt=0, description="Blocks of the network.")
    heads: int = Field(3, gt=0, description="Attention heads of a block.")
    head_dim: int = Field(32, gt=0, description="Width of a head; the network is heads x head_dim wide.")
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of the images that are shown without their label, which guidance needs."
    )
    steps: int = Field(6500, gt=0, description="Optimiser steps.")
    batch: int = Field(128, gt=0, description="Images of a step.")
    lr: float = Field(1e-3, gt=0, description="Peak of the learning rate.")
    warmup: int = Field(200, ge=0, description="Steps of linear warm-up; a cosine to zero follows.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    ema: float = Field(0.9995, ge=0, lt=1, description="Decay of the average of the weights, which is what is saved.")
    checkpoint_every: int = Field(500, gt=0, description="Steps between two checkpoints, each with a grid of samples.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random number.")
    device: str = Field("cpu", description="Where to train: cpu, cuda, cuda:1 or mps.")
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch's default.")
    parameterization: Literal["v_prediction", "epsilon"] = Field(
        "v_prediction", description="What the network predicts."
    )
