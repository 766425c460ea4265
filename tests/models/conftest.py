from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_dit, write_unet

from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dit(tmp_path_factory.mktemp("models") / "dit")


@pytest.fixture(scope="session")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unet(tmp_path_factory.mktemp("models") / "unet")


@pytest.fixture
def dit(dit_folder: Path) -> DiffusionModel:
    return load_model(dit_folder)


@pytest.fixture
def unet(unet_folder: Path) -> DiffusionModel:
    return load_model(unet_folder)
