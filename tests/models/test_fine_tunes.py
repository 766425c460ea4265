"""LoRA files of a fine-tune, merged into the teacher: the images are those of diffusers' own pipeline with the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_loras import write_lora
from tiny_models import normal, write_unet
from tiny_pipelines import write_sd, write_sd3, write_sdxl
from torch import Tensor

from redif_ray.config import Lora, Teacher, load
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.adapters import COMFYUI, FILE
from redif_ray.loop import PlainLoop
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import fingerprint, load_model, load_teacher, teacher_outline
from redif_ray.models.student import get_weights, make_student, set_weights
from redif_ray.planning import factory
from redif_ray.planning.disk import CHECKPOINT_BYTES, disk
from redif_ray.planning.paths import absolute

pytestmark = pytest.mark.slow

WRITERS: dict[str, Callable[..., Path]] = {"sd": write_sd, "sdxl": write_sdxl, "sd3": write_sd3}
CAPTIONS = ["a cat", "two red dogs"]
EXACT = 3e-4  # of a pixel's range: the sums of both are rounded in another order


def ours(model: DiffusionModel, schedule: Schedule | None = None, guidance: float = 2.0) -> Tensor:
    encoded, unit = model.encode(CAPTIONS), normal(2, *model.latent_shape, seed=5)
    schedule = schedule or schedules.build(model.process, 3, "uniform_trailing")
    with torch.no_grad():
        predict = model.predictor(encoded, guidance)
        return model.decode(solvers.sample("euler", predict, unit, schedule))


def theirs(folder: Path, model: DiffusionModel, files: dict[Path, float], guidance: float = 2.0) -> Tensor:
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for i, path in enumerate(files):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"file{i}")
    if files:
        pipe.set_adapters([f"file{i}" for i in range(len(files))], list(files.values()))
    options: dict[str, Any] = {}
    if model.prediction_type == "flow_prediction":
        options["sigmas"] = [1 - i / 3 for i in range(3)]  # the pipeline's own scheduler shifts them
    images: Tensor = pipe(
        CAPTIONS,
        num_inference_steps=3,
        guidance_scale=guidance,
        latents=normal(2, *model.latent_shape, seed=5),
        output_type="pt",
        **options,
    ).images
    return images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return the folder of a pipeline and its LoRA file, written once."""
    root, known = tmp_path_factory.mktemp("fine-tunes"), dict[str, tuple[Path, Path]]()

    def of(name: str) -> tuple[Path, Path]:
        if name not in known:
            folder = WRITERS[name](root / name)
            known[name] = folder, write_lora(folder, name, root / f"{name}-style")
        return known[name]

    return of


@pytest.mark.parametrize("name", WRITERS)
def test_the_images_are_those_of_the_pipeline_with_the_file(
    name: str, made: Callable[[str], tuple[Path, Path]]
) -> None:
    folder, file = made(name)
    teacher = load_teacher(Teacher(model=str(folder), lora={str(file): 0.7}))
    images, expected = ours(teacher), theirs(folder, teacher, {file: 0.7})
    assert float((images - expected).abs().max()) < EXACT
    assert float((ours(load_model(folder)) - expected).abs().max()) > 0.01
    assert not [key for key in teacher.network.state_dict() if "lora" in key]


def test_two_files_have_their_own_weights(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made("sd")
    other = write_lora(folder, "sd", tmp_path / "other", seed=50, encoders=False)
    teacher = load_teacher(Teacher(model=str(folder), lora={str(file): 0.7, str(other.parent): -0.4}))
    assert float((ours(teacher) - theirs(folder, teacher, {file: 0.7, other: -0.4})).abs().max()) < EXACT


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_file_with_the_keys_of_kohya_gives_the_same_images(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made(name)
    encoders = {"text_encoder.": "lora_te1_" if name == "sdxl" else "lora_te_", "text_encoder_2.": "lora_te2_"}
    kohya: dict[str, Tensor] = {}
    for key, value in load_file(file).items():
        layer, _, matrix = key.rpartition(".lora_")
        for prefix, short in ({"unet.": "lora_unet_"} | encoders).items():
            if layer.startswith(prefix):
                layer = short + layer.removeprefix(prefix).replace(".", "_")
        kohya[f"{layer}.lora_{'down' if matrix == 'A.weight' else 'up'}.weight"] = value
        kohya[f"{layer}.alpha"] = torch.tensor(3.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    teachers = [
        load_teacher(Teacher(model=str(folder), lora={str(f): 0.7})) for f in (file, tmp_path / "kohya.safetensors")
    ]
    assert float((ours(teachers[0]) - ours(teachers[1])).abs().max()) < EXACT
    expected = theirs(folder, teachers[1], {tmp_path / "kohya.safetensors": 0.7})
    assert float((ours(teachers[1]) - expected).abs().max()) < EXACT


def test_16_bit_weights_are_those_that_diffusers_fuses(made: Callable[[str], tuple[Path, Path]]) -> None:
    folder, file = made("sd3")
    before = load_model(folder, dtype=torch.bfloat16).network.state_dict()
    after = load_teacher(Teacher(model=str(folder), lora={str(file): 0.7}), dtype=torch.bfloat16).network.state_dict()
    pipe: Any = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipe.load_lora_weights(str(file.parent))
    pipe.fuse_lora(lora_scale=0.7, safe_fusing=True)
    pipe.unload_lora_weights()
    fused = pipe.transformer.state_dict()
    assert fused.keys() == after.keys()
    factors = [key.removeprefix("transformer.") for key in load_file(file) if key.startswith("transformer.")]
    layers = {key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight")}
    for key, value in after.items():
        assert torch.equal(value, fused[key]), key
        assert torch.equal(value, before[key]) is (key.removesuffix(".weight") not in layers or key.endswith("bias"))


def test_what_a_file_changes_is_part_of_the_fingerprint_and_of_captions(
    made: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, file = made("sdxl")
    models = [load_teacher(Teacher(model=str(folder), lora={str(file): w} if w else {})) for w in (0.0, 0.7, 0.8)]
    assert len({fingerprint(model) for model in models}) == 3
    states = [model.encode(["a cat"])["encoder_hidden_states"] for model in models]
    assert not torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])


def test_an_outline_checks_the_file_and_stays_without_data(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made("sdxl")
    outline = teacher_outline(Teacher(model=str(folder), lora={str(file): 0.7}), check=True)
    assert all(p.is_meta for p in outline.network.parameters()) and outline.blank(2)
    other = write_lora(made("sd3")[0], "sd3", tmp_path / "other", encoders=False)
    with pytest.raises(ModelError, match=r"holds layers of transformer; expected layers of text_encoder"):
        teacher_outline(Teacher(model=str(folder), lora={str(other): 1.0}))


def test_every_worker_of_a_run_has_the_change(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made("sd")
    fixed = (f"run.root={tmp_path}", "tracking.uri=off", "evaluation.judge=random-features", "conditions.source=emoji")
    given = (f"teacher.model={folder}", "reward.terms={mse: {}}", "student.lora={rank: 2}", "learner.rounds=1")
    config = absolute(load("smoke", [*fixed, *given, f"teacher.lora={file}"]))
    loop = PlainLoop(config)
    expected = fingerprint(load_teacher(config.teacher))
    assert fingerprint(load_model(folder)) != expected
    for model in (factory.teacher(config, "cpu"), loop.rollout.teacher, loop.reward.teacher):
        assert fingerprint(model) == expected
    assert expected in (loop.reward.store.folder / "about.json").read_text()
    encoded = [model.encode(["a cat"])["encoder_hidden_states"] for model in (loop.student, load_model(folder))]
    assert not torch.equal(*encoded)
    start = {name: value.clone() for name, value in loop.student.network.named_parameters() if "base_layer" in name}
    name = next(name for name in start if "to_v" in name)
    assert torch.equal(
        start[name], dict(load_teacher(config.teacher).network.named_parameters())[name.replace("base_layer.", "")]
    )


def test_the_disk_counts_the_text_encoders_that_an_export_writes(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made("sdxl")
    fixed = (f"run.root={tmp_path}", "tracking.uri=off", "evaluation.judge=random-features", "conditions.source=emoji")
    config = load("smoke", [*fixed, f"teacher.model={folder}", "reward.terms={mse: {}}", f"teacher.lora={file}"])
    counted = disk(config, teacher_outline(config.teacher)).run
    without = config.model_copy(update={"teacher": Teacher(model=str(folder))})
    rest = disk(without, teacher_outline(without.teacher)).run
    assert counted == pytest.approx(rest, rel=0.02)  # in float32, as the files of this folder are
    student = make_student(load_teacher(config.teacher), Lora())
    schedule = schedules.build(student.process, 2, "uniform_trailing")
    export_student(student, schedule, tmp_path / "out", name="few", guidance=1.0, teacher=folder, summary=None)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors"))
    weights = sum(w.numel() for w in get_weights(student).values())
    checkpoints = (config.checkpoint.keep + 3) * CHECKPOINT_BYTES * weights
    assert counted - checkpoints == pytest.approx(written, rel=0.05)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_alphas_beside_keys_of_peft_count(name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made(name)
    factors = load_file(file)
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(3.0) for key in factors if "lora_A" in key}
    save_file(factors | alphas, tmp_path / "alphas.safetensors")  # without the metadata, which says alpha = 3 too
    teachers = [
        load_teacher(Teacher(model=str(folder), lora={str(f): 0.7})) for f in (file, tmp_path / "alphas.safetensors")
    ]
    assert float((ours(teachers[0]) - ours(teachers[1])).abs().max()) < EXACT


def broken(file: Path, out: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    save_file(edit(load_file(file)), out)
    return out


def renamed(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("to_v", "to_w"): value for key, value in factors.items()}


def dora(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    key = next(key for key in factors if "lora_A" in key)
    return factors | {key.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(4)}


def wider(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.cat([value, value], 1) if "lora_A" in key else value for key, value in factors.items()}


def foreign(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    return factors | {"unet.conv_in.bias": torch.ones(8)}


def biases(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    return factors | {"unet.conv_in.diff_b": torch.ones(8)}


def mixed(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    return factors | {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed, "it was made for another model|does not fit unet"),
        (dora, "holds DoRA"),
        (wider, "does not fit unet"),
        (foreign, "which is no factor of a LoRA layer"),
        (biases, "holds whole changes of weights or biases"),
        (mixed, "holds keys of kohya and of diffusers"),
    ],
)
def test_a_file_that_cannot_be_merged_whole_is_refused(
    edit: Callable[[Any], Any],
    message: str,
    made: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, file = made("sd")
    wrong = broken(file, tmp_path / "wrong.safetensors", edit)
    capsys.readouterr()
    with pytest.raises(ModelError, match=message) as error:
        load_teacher(Teacher(model=str(folder), lora={str(wrong): 1.0}))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000 and not any(capsys.readouterr())


def test_other_files_and_other_teachers_are_refused(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, file = made("sd")
    (tmp_path / "style.ckpt").write_bytes(b"pickle")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for path, message in (
        (tmp_path / "style.ckpt", r"is no \.safetensors file"),
        (tmp_path / "absent.safetensors", r"is no \.safetensors file"),
        (tmp_path / "text.safetensors", "is no safetensors file"),
    ):
        with pytest.raises(ModelError, match=message):
            load_teacher(Teacher(model=str(folder), lora={str(path): 1.0}))
    with pytest.raises(ModelError, match="is no text-to-image pipeline"):
        load_teacher(Teacher(model=str(write_unet(tmp_path / "unet")), lora={str(file): 1.0}))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_student_of_a_fine_tune_is_exported_whole_and_as_adapters_beside_the_file(
    name: str, made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = made(name)
    teacher = load_teacher(Teacher(model=str(folder), lora={str(file): 1.0}))
    student = make_student(teacher, Lora(rank=2, alpha=5.0, targets=("to_q", "to_v")))
    randomise_adapters(student)
    schedule = schedules.build(student.process, 3, "uniform_trailing")
    export_student(student, schedule, tmp_path / "out", name="few", guidance=2.0, teacher=folder, summary=None)
    expected = ours(student)
    assert (
        float((ours(load_model(tmp_path / "out"), schedule) - expected).abs().max()) < EXACT
    )  # encoders with the file's change
    assert float((ours(teacher) - expected).abs().max()) > 0.01
    for own in (FILE, COMFYUI):  # alpha is not the rank; one file says so in its metadata, the other has it in B
        both = theirs(folder, student, {file: 1.0, tmp_path / "out" / own: 1.0})
        assert float((both - expected).abs().max()) < EXACT, own


def randomise_adapters(student: DiffusionModel) -> None:
    set_weights(student, {k: 0.5 * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())})


def test_a_path_alone_has_weight_1() -> None:
    assert Teacher.model_validate({"lora": "style.safetensors"}).lora == {"style.safetensors": 1.0}
