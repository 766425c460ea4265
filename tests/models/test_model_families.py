"""Every family against diffusers' own sampling: the same noise, levels, guidance and caption give the same image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline
from tiny_models import edit, normal, write_dit, write_unet
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from torch import Tensor

from redif_ray.config import Lora
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import log_prob, transition_mean
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import fingerprint, load_model
from redif_ray.models.student import (
    autocast_weights,
    enable_checkpointing,
    get_weights,
    make_student,
    set_weights,
    trainable,
)
from redif_ray.models.text import TextModel

pytestmark = pytest.mark.slow
CAPTIONS = ["a cat", "a very long caption about dogs"]
STEPS = 4
NAMES = ("sd", "sdxl", "sd3", "edm")
HALVES = (torch.bfloat16, torch.float16)
ADAPTERS = Lora(rank=2, alpha=6.0, targets=("to_q", "to_v"))
TEXT: dict[str, Callable[..., Path]] = {
    "sd": write_sd,
    "sd, v": lambda folder: write_sd(folder, prediction_type="v_prediction"),
    "sd, v, zero terminal SNR": lambda folder: write_sd(
        folder, prediction_type="v_prediction", rescale_betas_zero_snr=True
    ),
    "sdxl": write_sdxl,
    "sdxl, empty caption": lambda folder: write_sdxl(folder, zeros=False),
    "sd3": write_sd3,
    "sd3, no T5": lambda folder: write_sd3(folder, with_t5=False, shift=1.0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: write(root / str(i)) for i, (name, write) in enumerate(TEXT.items())} | {"edm": write_edm(root / "e")}


def grid(model: DiffusionModel) -> Schedule:
    return schedules.build(model.process, STEPS, "karras" if model.prediction_type == "sample" else "uniform_trailing")


def sampled(model: DiffusionModel, conditions: list[Any], unit: Tensor, schedule: Schedule, guidance: float) -> Tensor:
    encoded = model.encode(conditions)
    with torch.no_grad():
        return model.decode(
            solvers.sample("euler", lambda x, at: model.predict(x, at, encoded, guidance=guidance), unit, schedule)
        )


@pytest.mark.parametrize(
    ("name", "guidance"), mostly_long(product(TEXT, (1.0, 3.0)), lambda name, guidance: guidance > 1 or name == "sd")
)
def test_the_image_is_the_pipeline_s(name: str, guidance: float, folders: dict[str, Path]) -> None:
    """Within 1e-4 of a pixel's range: both round in float32, guided predictions are differences."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "no T5" in name else {}
    pipeline = DiffusionPipeline.from_pretrained(folders[name], use_safetensors=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(folders[name])
    unit, schedule = normal(2, *model.latent_shape), grid(model)
    levels = {"sigmas": [1 - i / STEPS for i in range(STEPS)]} if "sd3" in name else {"num_inference_steps": STEPS}
    expected = pipeline(
        CAPTIONS, guidance_scale=guidance, latents=solvers.initial(schedule, unit), output_type="pt", **levels
    ).images
    found = sampled(model, list(CAPTIONS), unit, schedule, guidance)
    assert found.shape == (2, *model.image_shape)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.1  # the oracle says something
    assert float((found[0] - found[1]).abs().max()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("classes", [3, None])
def test_edm_is_diffusers_euler_with_preconditioning(tmp_path: Path, classes: int | None) -> None:
    model = load_model(write_edm(tmp_path / "m", classes=classes))
    oracle = model.scheduler
    oracle.set_timesteps(STEPS)
    unit = normal(2, *model.latent_shape)
    schedule = schedules.explicit(model.process, oracle.sigmas[:-1].tolist())
    conditions = [2, 0] if classes else [None, None]
    x = unit * oracle.sigmas[0]
    for t in oracle.timesteps:
        with torch.no_grad():
            raw = model.network(oracle.scale_model_input(x, t), t.expand(2), **model.encode(conditions)).sample
        x = oracle.step(raw, t, x).prev_sample
    found = sampled(model, conditions, unit, schedule, 1.0)
    torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert float(found.std()) > 0.05


@pytest.mark.parametrize(
    ("name", "lora", "dtype"),
    mostly_long(
        product(NAMES, (Lora(), ADAPTERS), (torch.float32, torch.bfloat16, torch.float16)),
        lambda name, lora, dtype: lora is ADAPTERS if dtype is torch.bfloat16 else name == "sd" and not lora.rank,
    ),
)
def test_the_ratio_of_a_fresh_rollout_is_one(
    name: str, lora: Lora, dtype: torch.dtype, folders: dict[str, Path]
) -> None:
    """The density of an action, computed again in another batch and at rows' own levels, under guidance and LoRA."""
    teacher = load_model(folders[name], dtype=dtype)
    if name == "edm" and lora.rank:
        lora = Lora(rank=2, targets=("conv1",))
    student = make_student(teacher, lora)
    weights = {k: w + 0.05 * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
    set_weights(student, weights)
    conditions: list[Any] = [0, 1, 2] if name == "edm" else ["cat", "dog", None]
    guidance = 1.0 if name == "edm" else 2.5
    schedule = grid(student)
    stds = schedule.stds(0.4, "posterior", last_step=False)
    x = solvers.initial(schedule, normal(3, *student.latent_shape))
    states, actions, densities = [], [], []
    with torch.no_grad():
        for k in range(STEPS - 1):
            mean = transition_mean(
                student.predict(x, schedule[k], student.encode(conditions), guidance=guidance), schedule[k + 1], stds[k]
            )
            action = mean + float(stds[k]) * normal(*x.shape, seed=7 + k)
            states.append(x), actions.append(action), densities.append(log_prob(action, mean, stds[k]))
            x = action
        for row in range(3):
            steps = torch.arange(STEPS - 1)
            encoded = student.encode([conditions[row]] * len(steps))
            at = torch.stack([s[row] for s in states])
            mean = transition_mean(
                student.predict(at, schedule[steps], encoded, guidance=guidance),
                schedule[steps + 1],
                stds[steps],
            )
            again = log_prob(torch.stack([a[row] for a in actions]), mean, stds[steps])
            torch.testing.assert_close(again, torch.stack([d[row] for d in densities]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_long(product((*NAMES, "dit", "unet"), HALVES), lambda name, dtype: dtype is torch.bfloat16 or name == "dit"),
)
def test_weights_that_travel_in_16_bits_give_the_rollout_of_float32(
    name: str, dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Bit for bit. To round every weight would not: norms and embeddings are used in float32."""
    own = {"dit": write_dit, "unet": lambda folder: write_unet(folder, classes=3)}
    folder = folders[name] if name in folders else own[name](tmp_path / name)
    student = make_student(load_model(folder, dtype=dtype), Lora())
    sent = {k: w + 0.05 * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
    conditions: list[Any] = [0, 1] if name in ("edm", "dit", "unet") else ["cat", "dog"]
    unit, schedule, rounded = normal(2, *student.latent_shape), grid(student), autocast_weights(student)
    images = []
    for names in ([], rounded, list(sent)):
        set_weights(student, {k: w.to(dtype) if k in names else w for k, w in sent.items()})
        images.append(sampled(student, conditions, unit, schedule, 1.0))
    assert float(images[0].std()) > 0.01
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2]) == (len(rounded) == len(sent))  # the tiny sd3 has nothing else
    assert sum(sent[k].numel() for k in rounded) > 0.5 * sum(w.numel() for w in sent.values())


@pytest.mark.parametrize("lora", [Lora(rank=2, targets=("to_q",)), Lora()])
def test_weights_that_are_used_in_float32_travel_so(lora: Lora, folders: dict[str, Path]) -> None:
    dtype = torch.bfloat16 if lora.rank else torch.float32
    assert autocast_weights(make_student(load_model(folders["sd"], dtype=dtype), lora)) == []


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_caption_s_encoding_does_not_depend_on_its_company(name: str, folders: dict[str, Path]) -> None:
    first, second = load_model(folders[name]), load_model(folders[name])
    alone, among = first.encode(["a cat"]), second.encode(["a dog", None, "a cat", "a cat"])
    for key, value in alone.items():
        assert len(among[key]) == 4
        assert torch.equal(among[key][2:3], value) and torch.equal(among[key][3:4], value)
        assert torch.equal(among[key][1:2], second.null_conditions(1)[key])
    with pytest.raises(ModelError, match="condition 3: expected a caption"):
        first.encode([3])


@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_long(product(NAMES, HALVES), lambda name, dtype: dtype is torch.bfloat16 or name == "edm"),
)
def test_networks_of_sixteen_bits_predict_in_float32(name: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    """To 16 bits' rounding what float32 predicts: the teacher, a student with float32 weights, one with adapters."""
    whole, half = load_model(folders[name]), load_model(folders[name], dtype=dtype)
    assert {p.dtype for p in half.network.parameters()} == {dtype}
    if isinstance(half, TextModel):
        of_vae = torch.float32 if dtype == torch.float16 else dtype  # some overflow in float16
        assert {p.dtype for p in half.part("vae").parameters()} == {of_vae}
        assert {p.dtype for p in half.part("text_encoder").parameters()} == {dtype}
    adapted = make_student(half, Lora(rank=2, targets=("conv1",) if name == "edm" else ("to_q", "to_v")))
    full = make_student(half, Lora())
    assert {p.dtype for student in (adapted, full) for p in trainable(student).values()} == {torch.float32}
    conditions: list[Any] = [0, 1] if name == "edm" else ["cat", None]
    x, level = normal(2, *whole.latent_shape), grid(whole)[1]

    def prediction(model: DiffusionModel) -> Tensor:
        with torch.no_grad():
            return model.predict(x, level, model.encode(conditions), guidance=1.0 if name == "edm" else 2.0).eps

    expected = prediction(whole)
    for model in (half, adapted, full):
        found = prediction(model)
        assert found.dtype == torch.float32
        assert (
            1e-6
            < float((found - expected).abs().max())
            < (0.05 if dtype == torch.bfloat16 else 0.01) * float(expected.abs().max())
        )
    assert torch.equal(prediction(half), prediction(adapted))


def test_a_level_is_told_in_all_its_digits(folders: dict[str, Path]) -> None:
    """999 in bfloat16 is 1000."""
    model, told = load_model(folders["sd"], dtype=torch.bfloat16), []
    model.network.register_forward_pre_hook(lambda _, args, named: told.append(named["timestep"]), with_kwargs=True)
    x = normal(1, *model.latent_shape)
    model.predict(x, model.process.at(torch.tensor(999)), model.encode(["cat"]))
    assert told[0].tolist() == [999.0] and told[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "edm"])
def test_checkpointing_changes_no_gradient(name: str, folders: dict[str, Path]) -> None:
    teacher = load_model(folders[name])
    calls = []

    def gradients(student: DiffusionModel) -> dict[str, Tensor]:
        handles = [m.register_forward_hook(lambda *_: calls.append(1)) for m in student.network.modules()]
        x, conditions = normal(2, *student.latent_shape), [0, 1] if name == "edm" else ["cat", "dog"]
        student.predict(x, grid(student)[1], student.encode(conditions)).eps.square().mean().backward()
        for handle in handles:
            handle.remove()
        return {k: p.grad for k, p in trainable(student).items() if p.grad is not None}

    plain, saving = make_student(teacher, Lora()), make_student(teacher, Lora())
    expected = gradients(plain)
    once = len(calls)
    enable_checkpointing(saving)
    found = gradients(saving)
    assert len(calls) - once > once  # some modules ran twice
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_caption_is_encoded_by_one_process_alone(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose text encoders are loaded for it; the other reads the store. Another encoder's captions are not taken."""
    first, second, half = (load_model(folders[name], dtype=d) for d in (torch.float32, torch.float32, torch.float16))
    other = load_model(changed(folders[name], tmp_path / "other", "text_encoder/model.safetensors"))
    expected = load_model(folders[name]).encode(["a cat", None])
    for model in (first, second, half, other):
        assert isinstance(model, TextModel)
        model.keep_encodings(tmp_path / "store")
        assert not model.parts
    first.encode(["a cat", None])
    encoders = {part for part in first.index if part.startswith("text_encoder")}
    assert first.parts.keys() == encoders
    encoded = []
    monkeypatch.setattr(type(second), "encode_prompt", lambda self, caption: encoded.append(caption) or expected)
    found = second.encode(["a cat", None])
    assert not encoded and not second.parts
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    other.encode(["a cat"]), half.encode([None])
    assert encoded == ["a cat", None]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "sd3, no T5", "edm"])
def test_a_blank_encoding_has_the_shapes_of_a_real_one(name: str, folders: dict[str, Path]) -> None:
    """And no part is loaded for it, nor to decide what guidance does, nor for the latents' shape."""
    model = load_model(folders[name])
    blank = model.blank(2)
    if isinstance(model, TextModel):
        model.check_guidance()
    assert not model.parts
    real = model.encode([1, 2] if name == "edm" else ["a cat", None])
    assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {k: (v.shape, v.dtype) for k, v in real.items()}


@pytest.mark.parametrize("name", TEXT)
def test_a_caption_is_cut_short_where_no_tokeniser_takes_it_whole(name: str, folders: dict[str, Path]) -> None:
    model = load_model(folders[name])
    long = "dogs " * 100
    expected = [long] if name == "sd3" else [CAPTIONS[1], long]  # T5 takes more than CLIP
    assert model.cut_short([*CAPTIONS, long]) == expected
    assert model.cut_short([]) == []


def test_decoding_takes_the_vae_alone(folders: dict[str, Path]) -> None:
    model = make_student(load_model(folders["sd"]), Lora())
    model.decode(normal(1, *model.latent_shape))
    assert list(model.parts) == ["vae"]


def test_few_captions_are_remembered(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = load_model(folders["sd"])
    before = model.encode(["a"])
    monkeypatch.setattr("redif_ray.models.text.REMEMBERED", 3 * before["encoder_hidden_states"].nbytes)
    for caption in "bcdea":
        model.encode([caption])
    assert list(model.known) == ["d", "e", "a"]
    monkeypatch.setattr("redif_ray.models.text.REMEMBERED", 1)
    model.encode(["b"])
    assert list(model.known) == ["b"]
    assert torch.equal(model.encode(["a"])["encoder_hidden_states"], before["encoder_hidden_states"])


def test_gradients_reach_the_student_through_the_vae(folders: dict[str, Path]) -> None:
    """And nothing else: text encoders and VAE are frozen."""
    student = make_student(load_model(folders["sd"]), Lora())
    x = student.predict(normal(1, *student.latent_shape), student.process.noisiest(), student.encode(["cat"])).x0
    (0.05 * student.decode(0.05 * x)).mean().backward()
    assert all(p.grad is not None for p in student.network.parameters())
    assert not any(p.requires_grad for part in student.parts.values() for p in part.parameters())
    assert not any(part.training for part in student.parts.values())


def changed(folder: Path, other: Path, file: str) -> Path:
    """A copy of a pipeline whose weights in `file` have another last bit."""
    shutil.copytree(folder, other)
    data = bytearray((other / file).read_bytes())
    data[-4] ^= 1
    (other / file).write_bytes(data)
    return other


def test_the_fingerprint_covers_text_encoders_and_vae(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of their files: no part is loaded, and where the folder lies says nothing."""
    model = load_model(folders["sd"])
    shutil.copytree(folders["sd"], tmp_path / "copy")
    assert fingerprint(load_model(tmp_path / "copy")) == fingerprint(model) and not model.parts
    for file in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        other = changed(folders["sd"], tmp_path / file.partition("/")[0], file)
        assert fingerprint(load_model(other)) != fingerprint(model)
    for file in ("vae/config.json", "tokenizer/tokenizer_config.json"):
        other = tmp_path / f"other-{file.partition('/')[0]}"
        shutil.copytree(folders["sd"], other)
        edit(other / file, note=1)
        assert fingerprint(load_model(other)) != fingerprint(model)


def test_weights_in_several_files_are_named_by_all_of_them(folders: dict[str, Path], tmp_path: Path) -> None:
    """As large text encoders come."""
    encoder = load_model(folders["sd3"]).part("text_encoder_3")  # type: ignore[attr-defined]
    shutil.copytree(folders["sd3"], tmp_path / "m")
    (tmp_path / "m" / "text_encoder_3" / "model.safetensors").unlink()
    encoder.save_pretrained(tmp_path / "m" / "text_encoder_3", max_shard_size="10KB")
    model: Any = load_model(tmp_path / "m")
    shards = sorted((tmp_path / "m" / "text_encoder_3").glob("*.safetensors"))
    named = {f"text_encoder_3/{path.name}" for path in (*shards, Path("config.json"))}
    assert len(shards) > 1 and set(model.frozen.files(["text_encoder_3"], str)) == named
    for key, value in load_model(folders["sd3"]).encode(["a cat"]).items():
        assert torch.equal(model.encode(["a cat"])[key], value)
    shards[-1].unlink()
    with pytest.raises(ModelError, match="text_encoder_3 cannot be loaded as a T5EncoderModel"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("write", "file", "changes", "message"),
    [
        (write_sd, "model_index.json", {"text_encoder": ["mycode", "Encoder"]}, r"text_encoder is \[mycode, Encoder\]"),
        (write_sd, "model_index.json", {"vae": [None, None]}, "has no vae"),
        (write_sd, "unet/config.json", {"sample_size": None}, "has no sample_size; set teacher.height and teacher.wid"),
        (write_sd, "vae/config.json", {"scaling_factor": 0.5, "latent_channels": 3}, "vae"),
        (write_sd3, "scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        (write_sd3, "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "the scheduler is a DDIM"),
        (
            write_sd,
            "scheduler/scheduler_config.json",
            {"prediction_type": "flow_prediction"},
            "expected one of epsilon",
        ),
        (
            write_edm,
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "EDMEulerScheduler with eps",
        ),
        (
            write_edm,
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIMScheduler"},
            "DDIM.*; expected an EDMEuler",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    write: Callable[[Path], Path], file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "m")
    edit(folder / file, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_that_was_cut_short_is_named(part: str, tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "m")
    path = next((folder / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"{part} cannot be loaded as a .* from safetensors: .*copy the folder once"):
        load_model(folder)


def test_a_missing_tokeniser_and_foreign_text_weights_are_named(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "m")
    (folder / "tokenizer").rename(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"tokenizer cannot be loaded as a CLIPTokenizer: it has none of .*vocab.json"):
        load_model(folder)
    (tmp_path / "tokenizer").rename(folder / "tokenizer")
    (folder / "text_encoder" / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(ModelError, match="text_encoder cannot be loaded as a CLIPTextModel from safetensors"):
        load_model(folder)
    edit(folder / "text_encoder" / "config.json", num_hidden_layers=4)
    (tmp_path / "away").rename(folder / "text_encoder" / "model.safetensors")
    with pytest.raises(ModelError, match=r"text_encoder: the weights are not those of its config.json: .*missing_keys"):
        load_model(folder)
