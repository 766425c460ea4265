"""Images of another size than the network's own: what diffusers' pipelines make with height= and width=."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline
from tiny_models import edit, normal, write_dit, write_unet
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from tiny_pixart import write_pixart
from tiny_sana import write_sana

from redif_ray.config import Config, ConfigError, Lora, load
from redif_ray.diffusion import schedules, solvers
from redif_ray.evaluation.compute import prediction_flops
from redif_ray.export import export_student
from redif_ray.export.sample import Student
from redif_ray.loop import PlainLoop
from redif_ray.models.folder import without_weights
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import fingerprint, load_model, load_teacher
from redif_ray.models.student import make_student
from redif_ray.planning import factory
from redif_ray.planning.memory import footprints
from redif_ray.search.search import _check_size

pytestmark = pytest.mark.slow

STEPS = 3
TEXT: dict[str, Callable[[Path], Path]] = {"sd": write_sd, "sdxl": write_sdxl, "sd3": write_sd3}
CAPTIONS = ["a cat", "dogs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sizes")
    return {name: write(root / name) for name, write in TEXT.items()}


def recipe(folder: Path, root: Path, *overrides: str) -> Config:
    fixed = (f"run.root={root}", f"teacher.model={folder}", "tracking.uri=off", "evaluation.judge=random-features")
    return load("smoke", [*fixed, "reward.terms={mse: {}}", *overrides])


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (8, 8)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", list(TEXT))
def test_the_image_is_the_pipelines_of_that_height_and_width(
    name: str, size: tuple[int, int], folders: dict[str, Path]
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folders[name], use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(folders[name], size=size)
    assert model.image_shape == (3, *size) and model.latent_shape[1:] == (size[0] // 2, size[1] // 2)
    schedule = schedules.build(model.process, STEPS, "uniform_trailing")
    unit = normal(2, *model.latent_shape)
    levels = {"sigmas": [1 - i / STEPS for i in range(STEPS)]} if name == "sd3" else {"num_inference_steps": STEPS}
    expected = pipeline(
        CAPTIONS,
        height=size[0],
        width=size[1],
        guidance_scale=2.5,
        latents=solvers.initial(schedule, unit),
        output_type="pt",
        **levels,
    ).images
    with torch.no_grad():
        predict = model.predictor(model.encode(CAPTIONS), 2.5)
        found = model.decode(solvers.sample("euler", predict, unit, schedule))
    assert found.shape == (2, 3, *size)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("write", [write_sd, write_sdxl])
def test_a_config_may_name_height_and_width(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """The image is that of the pipeline, which for SDXL has to be told the two edges; an export's card does so."""
    folder = write(tmp_path / "m")
    edit(folder / "unet" / "config.json", sample_size=[8, 12])
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(folder)
    assert (model.latent_shape, model.image_shape, model.size) == ((4, 8, 12), (3, 16, 24), None)
    schedule, unit = schedules.build(model.process, STEPS, "uniform_trailing"), normal(2, 4, 8, 12)
    latents = solvers.initial(schedule, unit)
    expected = pipeline(
        CAPTIONS,
        num_inference_steps=STEPS,
        guidance_scale=2.5,
        latents=latents,
        output_type="pt",
        **model.pipeline_options,
    ).images
    with torch.no_grad():
        found = model.decode(solvers.sample("euler", model.predictor(model.encode(CAPTIONS), 2.5), unit, schedule))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("write", [write_unet, write_edm])
def test_a_network_of_pixels_may_have_rectangles(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """The export's sampler draws them as this package does."""
    folder = write(tmp_path / "m")
    edit(folder / "unet" / "config.json", sample_size=[8, 16])
    model = load_model(folder)
    assert model.latent_shape == model.image_shape == (2, 8, 16)
    name = "karras" if write is write_edm else "uniform_trailing"
    schedule, unit = schedules.build(model.process, STEPS, name), normal(2, 2, 8, 16)
    export_student(
        make_student(model, Lora()), schedule, tmp_path / "s", name="s", guidance=1.0, teacher=folder, summary=None
    )
    conditions: list[Any] = [None if model.num_classes is None else i for i in range(2)]
    with torch.no_grad():
        predict = model.predictor(model.encode(conditions), 1.0)
        own = model.decode(solvers.sample("euler", predict, unit, schedule))
    sampler = Student(tmp_path / "s")
    assert sampler.shape == (2, 8, 16)
    labels = None if model.num_classes is None else torch.arange(2)
    torch.testing.assert_close(sampler(unit, labels), own, rtol=0, atol=1e-4)


@pytest.mark.parametrize("write", [write_dit, write_sd3, write_sana, write_pixart])
def test_a_transformer_of_diffusers_takes_one_edge(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    edit(folder / "transformer" / "config.json", sample_size=[8, 8])
    with pytest.raises(ModelError, match="transformer"):
        load_model(folder)


def test_the_size_is_one_of_the_conditions_of_sdxl(folders: dict[str, Path]) -> None:
    model = load_model(folders["sdxl"], size=(24, 32))
    assert model.encode(["a cat"])["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]]
    assert load_model(folders["sdxl"]).encode(["a cat"])["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    assert model.at_size(16, 16).encode(["a cat"])["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]


@pytest.mark.parametrize(
    ("write", "size", "message"),
    [
        (write_sd, (20, 32), "20 x 32 pixels: a StableDiffusion takes multiples of 8; .* 16 x 32 for instance"),
        (write_sdxl, (32, 2), "32 x 2 pixels: a StableDiffusionXL takes multiples of 8; .* 32 x 8 for instance"),
        (write_sd3, (18, 32), "a StableDiffusion3 takes multiples of 4; set teacher.height and teacher.width"),
        (write_sd3, (16, 36), r"\(pos_embed_max_size=8\) reach to 32 pixels; set teacher.height and teacher.width"),
        (write_dit, (16, 16), "this DiTTransformer2DModel makes images of 8 x 8 pixels only; leave out teacher.height"),
        (write_unet, (8, 16), "this UNet2DModel makes images of 8 x 8 pixels only"),
        (write_edm, (16, 8), "this UNet2DModel makes images of 8 x 8 pixels only"),
    ],
)
def test_a_size_that_the_network_does_not_take(
    write: Callable[[Path], Path], size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(write(tmp_path / "m"), size=size)
    assert load_model(tmp_path / "m", size=load_model(tmp_path / "m").image_shape[1:]).size is None  # type: ignore[arg-type]


def test_a_network_whose_config_names_no_size_needs_one(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "m")
    own = load_model(folder)
    edit(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(ModelError, match=r"config\.json has no sample_size; set teacher\.height and teacher\.width"):
        load_model(folder)
    model = load_model(folder, size=(16, 16))
    assert (model.latent_shape, model.image_shape) == (own.latent_shape, own.image_shape)
    shapes = {name: value.shape for name, value in model.encode(CAPTIONS).items()}
    assert {name: value.shape for name, value in load_model(folder, size=(16, 24)).blank(2).items()} == shapes


def test_stores_of_another_size_are_others_and_without_the_keys_the_same(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    names, encodings = {}, {}
    for size in (None, (16, 16), (24, 32), (32, 24)):
        keys = [] if size is None else [f"teacher.height={size[0]}", f"teacher.width={size[1]}"]
        config = recipe(folders["sdxl"], tmp_path, *keys)
        teacher: Any = factory.teacher(config, "cpu")
        names[size], encodings[size] = factory.target_store(config, teacher).folder, teacher.store.folder
    assert names[None] == names[16, 16] and encodings[None] == encodings[16, 16]
    assert len(set(names.values())) == len(set(encodings.values())) == 3
    assert fingerprint(load_teacher(config.teacher)) != fingerprint(load_model(folders["sdxl"]))


@pytest.mark.parametrize("name", mostly_long(TEXT, lambda name: name == "sd"))
def test_a_round_at_another_size(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Targets, trajectories, rewards and an update of images that are not square."""
    sizes = ("teacher.height=24", "teacher.width=32", "warm_start.rounds=0")
    loop = PlainLoop(recipe(folders[name], tmp_path, *sizes, "student.steps=2", "teacher.steps=2"))
    before = loop.checksum()
    loop.round(0)
    assert loop.checksum() != before
    shapes = {pq.read_schema(path).metadata[b"shape"] for path in loop.reward.store.folder.glob("*.parquet")}
    assert shapes == {b"[3, 24, 32]"}


def test_memory_and_flops_follow_the_size(folders: dict[str, Path], tmp_path: Path) -> None:
    small = recipe(folders["sd"], tmp_path)
    large = recipe(folders["sd"], tmp_path, "teacher.height=32", "teacher.width=48")
    before, after = footprints(small), footprints(large)
    assert (before.image, after.image) == (3 * 16 * 16, 3 * 32 * 48)
    assert after.roles["reward"].activations > 4 * before.roles["reward"].activations
    with without_weights():
        flops = [prediction_flops(load_teacher(config.teacher, device="meta")) for config in (small, large)]
    assert 5 < flops[1] / flops[0] < 7  # 6 times the pixels; the caption's part stays


def test_a_searched_student_has_the_teachers_size(folders: dict[str, Path], tmp_path: Path) -> None:
    student = load_model(folders["sd"], size=(24, 32))
    schedule = schedules.build(student.process, STEPS, "uniform_trailing")
    out = tmp_path / "student"
    export_student(student, schedule, out, name="wide", guidance=1.0, teacher=folders["sd"], summary=None)
    searched = f"search.student={out}"
    with pytest.raises(ConfigError, match=r"of \(3, 24, 32\), the teacher of \(3, 16, 16\); set teacher.height=24 tea"):
        _check_size(recipe(folders["sd"], tmp_path, searched))
    _check_size(recipe(folders["sd"], tmp_path, searched, "teacher.height=24", "teacher.width=32"))
    _check_size(recipe(folders["sd"], tmp_path))
