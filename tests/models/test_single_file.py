"""Checkpoints in one file: the model is that of the folder from which the file was made, image for image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from tiny_models import edit, normal
from tiny_pipelines import write_sd, write_sd3, write_sdxl
from tiny_single_files import (
    original,
    original_encoders,
    original_sd3,
    original_unet,
    original_vae,
    original_z_image,
    write_single,
)
from tiny_z_image import write_z_image
from torch import Tensor

from redif_ray.config import ConfigError, Lora, Teacher, load
from redif_ray.diffusion import schedules, solvers
from redif_ray.export import export_student
from redif_ray.models import registry, single_file
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model, load_teacher, model_folder, teacher_folder, teacher_outline
from redif_ray.models.start import starting_model
from redif_ray.models.student import make_student
from redif_ray.planning.paths import absolute
from redif_ray.sample import sample

WRITERS: dict[str, Callable[[Path], Path]] = {"sd": write_sd, "sdxl": lambda folder: write_sdxl(folder, width_2=24)}
CAPTIONS = ["a cat", "two red dogs"]


def image(model: DiffusionModel) -> Tensor:
    schedule, unit = schedules.build(model.process, 3, "uniform_trailing"), normal(2, *model.latent_shape, seed=5)
    with torch.no_grad():
        return model.decode(solvers.sample("euler", model.predictor(model.encode(CAPTIONS), 2.0), unit, schedule))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return a pipeline's folder and the same weights in one file, written once."""
    root, known = tmp_path_factory.mktemp("single"), dict[str, tuple[Path, Path]]()

    def of(name: str) -> tuple[Path, Path]:
        if name not in known:
            folder = WRITERS[name](root / name)
            known[name] = folder, write_single(original(folder), root / f"{name}.safetensors")
        return known[name]

    return of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(single_file, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def without_weights(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_whole_file_needs_only_the_configuration_of_its_base(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made(name)
    base = without_weights(folder, tmp_path / "base")
    teacher = Teacher(model=str(file), base=str(base))
    assert torch.equal(image(load_teacher(teacher)), image(load_model(folder)))
    assert all(p.is_meta for p in teacher_outline(teacher, check=True).network.parameters())


@pytest.mark.slow
def test_the_image_is_that_of_diffusers_from_single_file(
    made: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, file = made("sdxl")
    pipe: Any = StableDiffusionXLPipeline.from_single_file(str(file), config=str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    model = load_model(model_folder(file, folder))
    theirs = pipe(
        CAPTIONS, num_inference_steps=3, guidance_scale=2.0, latents=normal(2, 4, 8, 8, seed=5), output_type="pt"
    ).images
    assert torch.allclose(image(model), theirs, atol=3e-4)  # the sums of both are rounded in another order


@pytest.mark.slow
def test_it_is_converted_once_and_again_where_file_or_base_changed(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = made("sd")
    base, file = without_weights(folder, tmp_path / "base"), Path(shutil.copy(whole, tmp_path / "my.safetensors"))
    first = model_folder(file, base)
    assert first.parent == cache and first.name.startswith("my-")
    monkeypatch.chdir(tmp_path)
    assert model_folder("my.safetensors", "base") == first
    when = (first / "unet").stat().st_mtime_ns
    assert model_folder(file, base) == first and (first / "unet").stat().st_mtime_ns == when
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    second = model_folder(file, base)
    assert second != first and load_model(second).prediction_type == "v_prediction"
    write_single({name: 2 * value for name, value in load_file(file).items()}, file)
    assert model_folder(file, base) not in (first, second)


@pytest.mark.slow
def test_weights_keep_their_precision(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """A file may have each network in a precision of its own, and 8 bits fit into bfloat16."""
    folder, whole = made("sd")
    kinds = {"model.": torch.float8_e4m3fn, "cond_stage_model.": torch.float16}
    state = {
        name: value.to(next((kind for begin, kind in kinds.items() if name.startswith(begin)), torch.float32))
        for name, value in load_file(whole).items()
    }
    out = model_folder(write_single(state, tmp_path / "mixed.safetensors"), folder)
    held = {
        part: {value.dtype for value in load_file(next((out / part).glob("*.safetensors"))).values()}
        for part in ("unet", "text_encoder", "vae")
    }
    assert held == {"unet": {torch.bfloat16}, "text_encoder": {torch.float16}, "vae": {torch.float32}}
    weight = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(weight.float(), state["model.diffusion_model.input_blocks.0.0.weight"].float())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_what_a_file_lacks_is_its_base_s(layout: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, _ = made("sd")
    network = load_model(folder).network
    with torch.no_grad():
        network.conv_in.weight.mul_(1.5)  # the fine-tune
    state = original_unet(network) if layout == "original" else network.state_dict()
    file = write_single(state, tmp_path / "unet.safetensors")
    own = load_model(folder)
    own.network.load_state_dict(network.state_dict())
    assert torch.equal(image(load_model(model_folder(file, folder))), image(own))


@pytest.mark.slow
def test_stable_diffusion_3_with_its_three_encoders(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "sd3", widths=(12, 20))
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(folder)
    with torch.no_grad():
        pipe.text_encoder.text_projection.weight.copy_(torch.eye(12))  # diffusers takes it for this, the file has none
    pipe.save_pretrained(folder)
    state = original_sd3(pipe.transformer) | original_vae(pipe.vae) | original_encoders(pipe)
    file = write_single(state, tmp_path / "sd3.safetensors")
    base = without_weights(folder, tmp_path / "base")
    assert torch.equal(image(load_teacher(Teacher(model=str(file), base=str(base)))), image(load_model(folder)))


@pytest.mark.slow
def test_a_transformer_of_z_image_alone(tmp_path: Path) -> None:
    """Fine-tunes for ComfyUI are such files; it keeps the text encoder and the VAE in files of their own."""
    folder = write_z_image(tmp_path / "z")
    file = write_single(original_z_image(load_model(folder, size=(16, 16)).network), tmp_path / "z.safetensors")
    settings = Teacher(model=str(file), base=str(folder), height=16, width=16)
    assert torch.equal(image(load_teacher(settings)), image(load_model(folder, size=(16, 16))))


def at_hub(patch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, str | None]]:
    """Make the hub's client find every model in `folder`, without its weights; the names and revisions asked for."""
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert "*.safetensors" not in allow_patterns and "*.json" in allow_patterns
        asked.append((name, revision))
        return str(folder)

    patch.setattr(registry, "snapshot_download", download)
    return asked


@pytest.mark.slow
def test_the_base_is_the_hub_s_model_of_the_layout_at_one_commit(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = made("sdxl")
    commit = "a" * 40
    (tmp_path / "snapshots").mkdir()
    base = without_weights(folder, tmp_path / "snapshots" / commit)
    asked = at_hub(monkeypatch, base)
    state = load_file(file) | {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.ones(1)}
    monkeypatch.chdir(tmp_path)
    write_single(state, tmp_path / "xl.safetensors")
    config = absolute(load("smoke", ["teacher.model=xl.safetensors"]))
    assert config.teacher.base == f"stabilityai/stable-diffusion-xl-base-1.0@{commit}"
    assert config.teacher.model == str(tmp_path / "xl.safetensors") and absolute(config).teacher == config.teacher
    assert asked == [
        ("stabilityai/stable-diffusion-xl-base-1.0", None),
        ("stabilityai/stable-diffusion-xl-base-1.0", commit),
    ]
    assert torch.equal(image(load_teacher(config.teacher)), image(load_model(folder)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"joint": torch.ones(2)}, "cannot be loaded as a unet"),
        ({"model.diffusion_model.scaled_fp8": torch.ones(1)}, "not quantized"),
        ({"first_stage_model.conv.weight": torch.ones(1, dtype=torch.int8)}, "not quantized"),
        ({"cond_stage_model.model.transformer.x": torch.ones(1)}, "holds no unet"),
    ],
)
def test_a_file_of_something_else_is_refused(
    state: dict[str, Tensor], words: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, _ = made("sd")
    with pytest.raises(ModelError, match=words):
        model_folder(write_single(state, tmp_path / "other.safetensors"), folder)


@pytest.mark.slow
def test_a_file_of_another_network_is_refused(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """diffusers only warns of weights that it leaves out, and leaves weights that are absent without values."""
    folder, file = made("sd")
    state = load_file(file)
    more = state | {"model.diffusion_model.output_blocks.4.0.in_layers.0.weight": torch.ones(8)}
    with pytest.raises(ModelError, match="were not used"):
        model_folder(write_single(more, tmp_path / "deeper.safetensors"), folder)
    for name in ("model.diffusion_model.out.2.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias"):
        less = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ModelError):
            model_folder(write_single(less, tmp_path / "less.safetensors"), folder)
    other, _ = made("sdxl")
    with pytest.raises(ModelError):
        model_folder(file, other)


@pytest.mark.parametrize("name", ["my.ckpt", "my.pt", "my.gguf"])
def test_other_formats_are_never_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"may run code.*expected \.safetensors"):
        model_folder(tmp_path / name)


@pytest.mark.slow
def test_a_file_may_say_that_it_predicts_v(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made("sd")
    state, ones = load_file(file), torch.ones(1)
    said = model_folder(write_single(state, tmp_path / "a.safetensors", **{"modelspec.predict_key": "v"}), folder)
    marked = model_folder(write_single(state | {"v_pred": ones, "ztsnr": ones}, tmp_path / "b.safetensors"), folder)
    assert load_model(said).prediction_type == "v_prediction" == load_model(marked).prediction_type
    settings = [json.loads((each / "scheduler" / "scheduler_config.json").read_text()) for each in (said, marked)]
    assert [each["rescale_betas_zero_snr"] for each in settings] == [False, True]


def test_stable_diffusion_2_needs_a_base(tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    file = write_single({name: torch.ones(2, 1024)}, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match=r"does not say whether it predicts v or epsilon; set teacher\.base"):
        model_folder(file)


def test_without_the_hub_the_error_says_what_to_give(
    made: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(registry, "snapshot_download", offline)
    with pytest.raises(
        ModelError, match=r"needs the configuration .* set teacher\.base \(--base\) to a diffusers folder"
    ):
        model_folder(made("sd")[1])


def test_networks_are_never_guessed(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made("sd")
    at_hub(monkeypatch, folder)
    file = write_single(load_model(folder).network.state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match=r"holds no vae, text_encoder; set teacher\.base"):
        model_folder(file)


@pytest.mark.slow
def test_a_student_starts_as_a_file_with_the_teacher_s_other_parts(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, _ = made("sd")
    network = load_model(folder).network
    with torch.no_grad():
        network.conv_in.weight.mul_(1.5)
    file = write_single(network.state_dict(), tmp_path / "few_steps_unet.safetensors")
    settings = Teacher(model=str(folder))
    start = starting_model(load_teacher(settings), settings, str(file))
    assert torch.equal(start.network.conv_in.weight, network.conv_in.weight)


@pytest.mark.slow
def test_it_is_sampled_and_exported_as_a_folder_is(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made("sdxl")
    (folder / "LICENSE").write_text("of the base")
    assert sample(str(file), tmp_path / "one.png", base=str(folder), count=1, seed=0, caption="a cat", steps=2) == 1
    settings = Teacher(model=str(file), base=str(folder))
    teacher = load_teacher(settings)
    schedule = schedules.build(teacher.process, 3, "uniform_trailing")
    student, where = make_student(teacher, Lora()), teacher_folder(settings)
    export_student(student, schedule, tmp_path / "out", name="few", guidance=1.0, teacher=where, summary=None)
    assert torch.equal(image(load_model(tmp_path / "out")), image(teacher))
    assert (tmp_path / "out" / "LICENSE").read_text() == "of the base"


def test_a_base_is_for_a_file_alone(made: Callable[[str], tuple[Path, Path]]) -> None:
    with pytest.raises(ModelError, match=r"--base x: .* is whole without it"):
        model_folder(made("sd")[0], "x")
    with pytest.raises(ConfigError, match=r"teacher\.base=x: teacher\.model=emoji is whole without it"):
        load("emoji_4step", ["teacher.model=emoji", "teacher.base=x"])


@pytest.mark.slow
def test_a_file_that_holds_more_is_read_and_says_so(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, file = made("sd")
    more = load_file(file) | {"model_ema.decay.weight": torch.ones(1)}
    model_folder(write_single(more, tmp_path / "more.safetensors"), folder)
    assert "also holds model_ema.decay, which is not read" in caplog.text
