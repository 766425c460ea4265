"""A quantized base under adapters: what it computes, what stays whole, and what cannot be combined with it.

Tests that compute with quantized weights need bitsandbytes, which is optional, and are skipped without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import normal
from tiny_pipelines import write_sd, write_sd3
from torch import Tensor
from torch.nn import Linear

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config, ConfigError, Lora, load
from redif_ray.job.export import export_weights
from redif_ray.job.launch import check
from redif_ray.loop import PlainLoop
from redif_ray.models import quantization
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.quantization import bitsandbytes, quantize, saved_bytes
from redif_ray.models.registry import load_model, load_teacher
from redif_ray.models.student import get_weights, make_student, merged, set_weights, trainable
from redif_ray.planning import factory
from redif_ray.planning.memory import footprints
from redif_ray.planning.weight_bytes import network_bytes

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="bitsandbytes, which is optional, is not installed")
LORA = Lora(rank=2, alpha=4, targets=("to_q", "to_v"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("quantized") / "sd3")


def quantized(folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    model = load_model(folder, dtype=dtype)
    quantize(model, "4bit")
    return model.to("cpu")


def whole_weights(layer: Any) -> Tensor:
    """Return the weights that a quantized layer stands for, by the package's own function."""
    made: Tensor = bitsandbytes("test").functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return made


def dequantized(model: DiffusionModel, folder: Path) -> DiffusionModel:
    """Return the model of `folder` with the weights for which the quantized ones stand."""
    other = load_model(folder, dtype=model.dtype)
    for name, layer in model.network.named_modules():
        if isinstance(layer, Linear) and not layer.weight.is_floating_point():
            other.network.get_submodule(name).weight.copy_(whole_weights(layer))
    return other


def predicted(model: DiffusionModel) -> Tensor:
    level = model.process.at(torch.tensor(500.0, dtype=torch.float64))
    return model.predict(normal(2, *model.latent_shape), level, model.encode(["a", "b"]), guidance=2.0).x0


@needs_package
@pytest.mark.parametrize(("write", "dtype"), [(write_sd3, torch.float32), (write_sd, torch.bfloat16)])
@torch.no_grad()
def test_four_bits_compute_as_the_weights_that_they_stand_for(
    write: Callable[[Path], Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = write(tmp_path / "teacher")
    model = quantized(folder, dtype)
    assert any(not p.is_floating_point() for p in model.network.parameters())
    assert torch.equal(predicted(model), predicted(dequantized(model, folder)))


@needs_package
def test_the_layers_of_blocks_are_quantized_and_their_bytes_counted(folder: Path) -> None:
    model, plain = quantized(folder), load_model(folder)
    integers = {name for name, p in model.network.named_parameters() if not p.is_floating_point()}
    linear = {f"{name}.weight" for name, m in plain.network.named_modules() if isinstance(m, Linear)}
    assert integers == {name for name in linear if name.startswith("transformer_blocks.")} < linear
    held = network_bytes(model.network)
    for layer in (model.network.get_submodule(name.removesuffix(".weight")) for name in integers):
        held += layer.weight.quant_state.absmax.nbytes
    assert network_bytes(plain.network) - saved_bytes(plain, "4bit") == held
    assert saved_bytes(plain, "none") == 0


@needs_package
def test_adapters_have_the_gradients_of_the_weights_below_them(folder: Path) -> None:
    model = quantized(folder)
    students = [make_student(each, LORA) for each in (model, dequantized(model, folder))]
    for student in students:
        set_weights(
            student, {k: 0.1 * normal(*v.shape, seed=i) for i, (k, v) in enumerate(get_weights(student).items())}
        )
        predicted(student).square().sum().backward()
    pairs = list(zip(*(trainable(student).items() for student in students), strict=True))
    assert len(pairs) == 2 * 2 * 2 and all(name == other for (name, _), (other, _) in pairs)
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for (_, p), _ in pairs)
    for (_, own), (_, other) in pairs:
        assert torch.allclose(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def recipe(folder: Path, root: Path, *overrides: str) -> Config:
    fixed = (f"run.root={root}", "tracking.uri=off", "evaluation.judge=random-features", "conditions.source=emoji")
    lora = "student.lora={rank: 2, alpha: 4, targets: [to_q, to_v]}"
    given = (f"teacher.model={folder}", lora, "reward.terms={mse: {}}", "warm_start.rounds=1", "learner.rounds=2")
    return load("smoke", [*fixed, *given, *overrides])


@needs_package
def test_a_student_holds_the_base_no_second_time(folder: Path) -> None:
    model = quantized(folder)
    student = make_student(model, LORA)
    kind = bitsandbytes("test").nn.Linear4bit
    layers = [module for module in student.network.modules() if isinstance(module, kind)]
    mine = {id(layer.weight) for layer in layers}
    assert mine and mine <= {id(p) for p in model.network.parameters()}
    assert all(layer.quant_state is None or layer.quant_state is layer.weight.quant_state for layer in layers)


@needs_package
@pytest.mark.slow
def test_a_run_trains_adapters_on_a_base_that_stays_what_it_is(folder: Path, tmp_path: Path) -> None:
    """Rollout and update see one base, so the ratios are 1; reward workers sample the teacher in whole precision."""
    both = "learner.regulariser={kind: mse, weight: 0.1}", "rollout.guided=1"  # the teacher beside the student
    config = recipe(folder, tmp_path, "networks.quantize=4bit", *both)
    loop = PlainLoop(config)
    base = {name: p.detach().clone() for name, p in loop.student.network.named_parameters() if not p.requires_grad}
    assert any(not p.is_floating_point() for p in base.values())
    assert all(p.is_floating_point() for p in loop.reward.teacher.network.parameters())
    loop.round(0)
    before = loop.checksum()
    found = [loop.round(round) for round in (1, 2)]
    ratios = [v for metrics in found for key, v in metrics.items() if "fresh_log_ratio" in key]
    assert ratios and max(ratios) < 1e-5
    assert loop.checksum() != before
    after = dict(loop.student.network.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())


@needs_package
def test_the_base_of_another_start_is_quantized_too(folder: Path, tmp_path: Path) -> None:
    config = recipe(folder, tmp_path, "networks.quantize=4bit", f"student.init={folder}")
    teacher = factory.frozen(config, "cpu")
    student = factory.student(config, teacher)
    name = "transformer_blocks.0.attn.to_k.weight"
    weights = [dict(model.network.named_parameters())[name] for model in (teacher, student)]
    assert weights[0] is not weights[1] and [w.dtype for w in weights] == [torch.uint8] * 2
    own, both = (
        footprints(recipe(folder, tmp_path, f"networks.quantize={kind}", f"student.init={folder}"), activations=False)
        for kind in ("4bit", "none")
    )
    saved = 2 * saved_bytes(load_model(folder), "4bit") / 1e6
    assert both.roles["learner"].weights - own.roles["learner"].weights == pytest.approx(saved)


@needs_package
def test_the_export_has_the_base_in_whole_precision(folder: Path, tmp_path: Path) -> None:
    config = recipe(folder, tmp_path, "networks.quantize=4bit")
    student = make_student(quantized(folder), config.student.lora)
    weights = {k: 0.1 * normal(*v.shape, seed=i) for i, (k, v) in enumerate(get_weights(student).items())}
    export_weights(load_teacher(config.teacher), config, weights, tmp_path / "out", None)
    expected = make_student(load_model(folder), config.student.lora)
    set_weights(expected, weights)
    exported = load_model(tmp_path / "out").network.state_dict()
    assert weights_sha256(exported) == weights_sha256(merged(expected).state_dict())


@pytest.mark.slow
def test_doctor_counts_the_bits_where_the_base_is(folder: Path, tmp_path: Path) -> None:
    whole, less = (
        footprints(recipe(folder, tmp_path, f"networks.quantize={each}"), activations=False).roles
        for each in ("none", "4bit")
    )
    saved = saved_bytes(load_model(folder), "4bit") / 1e6
    for role in ("rollout", "learner"):
        assert whole[role].weights - less[role].weights == pytest.approx(saved)
    assert whole["reward"] == less["reward"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student.lora.rank=0"], r"student\.lora\.rank=0 trains all weights"),
        (["learner.fsdp=true", "learner.workers=2"], r"learner\.fsdp=true cannot share quantized weights"),
        (["networks.compile=true"], r"networks\.compile=true is not supported"),
        (["pipeline.colocate=true"], r"pipeline\.colocate=true would move quantized weights"),
        (["method=distribution_matching"], "trains a second network whole"),
    ],
)
def test_what_cannot_be_quantized_is_refused(overrides: list[str], words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(folder, tmp_path, "networks.quantize=4bit", *overrides)


@pytest.mark.parametrize("asked", ["networks.quantize=4bit", "learner.optimizer=adamw_8bit"])
def test_a_missing_package_is_named_before_anything_starts(
    asked: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(ConfigError, match=rf"{asked}: needs no_such.*pip install 'no_such"):
        check(recipe(folder, tmp_path, asked), resume=False)
