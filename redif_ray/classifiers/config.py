"""The configuration of `redif train-judge`, which is read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from redif_ray.config import Location, Strict
from redif_ray.errors import UserError


class JudgeTrainingError(UserError, ValueError):
    """A classifier cannot be trained as configured; the message says what to do."""


class ClassifierConfig(Strict):
    """The configuration of `redif train-judge`. The defaults are those of the shipped classifiers."""

    data: Location = Field(
        description="Labelled images: a folder of class folders or with a metadata table, Parquet, tar shards, npz or "
        "IDX files. Of data with a test split, that one is the test; of others, a seeded tenth is held out for it."
    )
    out: Location = Field(description="The folder to write, which must not exist.")
    name: str = Field("judge", description="Its name in reports.")
    size: int | None = Field(
        None, gt=0, description="Edge in pixels, to which images are cropped and resized. null: the images' own."
    )
    label: str | None = Field(
        None, description="Column of a table that holds the labels. null: the one of a usual name."
    )
    background: str = Field("white", description="Colour behind transparent pixels: a name, or #rrggbb.")
    kind: Literal["conv", "residual"] = Field("conv", description="Plain convolutions, or a residual network.")
    half: Literal["first", "second"] = Field(
        "first", description="The half of the images to train on; a reward's encoder and a judge must not share one."
    )
    split_seed: int = Field(20170825, ge=0, lt=2**63, description="Seed of the split, the same for both halves.")
    epochs: int = Field(10, gt=0, description="Passes over the half.")
    batch: int = Field(128, gt=1, description="Images of a step.")
    lr: float = Field(3e-3, gt=0, description="Peak of the learning rate: a linear warm-up, then a cosine to zero.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay of AdamW.")
    shift: int = Field(2, ge=0, description="Pixels by which images are shifted at most, padded with zeros.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of weights and of the order of images.")
    threads: int = Field(1, gt=0, description="CPU threads.")
