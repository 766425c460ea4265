from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import normal, randomise, write_unet
from torch import Tensor

from redif_ray.config import Lora
from redif_ray.diffusion.transition import Prediction
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student, merged, set_weights, trainable

LORA = Lora(rank=2, alpha=6.0)


def predict(model: DiffusionModel) -> Prediction:
    """At two levels."""
    x = normal(2, *model.latent_shape)
    encoded = {} if model.num_classes is None else model.encode([1, 0])
    return model.predict(x, model.process.at(torch.tensor([900, 100])), encoded)


def perturb(student: DiffusionModel) -> dict[str, Tensor]:
    """Weights as after training: every trainable one differs from its start."""
    return {k: w + 0.1 * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}


@pytest.mark.parametrize("lora", [Lora(), LORA])
@pytest.mark.parametrize("family", ["dit", "unet"])
def test_the_student_starts_as_its_teacher_to_the_bit(family: str, lora: Lora, request: pytest.FixtureRequest) -> None:
    teacher = request.getfixturevalue(family)
    state = torch.get_rng_state()
    student = make_student(teacher, lora)
    assert torch.equal(torch.get_rng_state(), state)
    found, expected = predict(student), predict(teacher)
    assert torch.equal(found.x0, expected.x0) and torch.equal(found.eps, expected.eps)
    assert not student.network.training and not teacher.network.training


def test_training_the_student_leaves_the_teacher_alone(unet: DiffusionModel) -> None:
    student = make_student(unet, Lora())
    before = predict(unet)
    assert not any(p.requires_grad for p in unet.network.parameters())
    assert list(trainable(student)) == [name for name, _ in unet.network.named_parameters()]
    predict(student).x0.square().mean().backward()
    assert all(p.grad is not None for p in trainable(student).values())
    set_weights(student, perturb(student))
    assert torch.equal(predict(unet).x0, before.x0) and not torch.equal(predict(student).x0, before.x0)
    assert torch.equal(predict(make_student(unet, Lora())).x0, before.x0)


def test_lora_trains_both_factors_and_nothing_else(dit: DiffusionModel) -> None:
    """B = 0 makes the start the teacher's; A = 0 as well would never train."""
    student = make_student(dit, LORA)
    own = trainable(student)
    assert len(own) == 2 * 4 and all("lora_" in name for name in own)
    for name, p in own.items():
        assert bool((p == 0).all()) is ("lora_B" in name), name
    predict(student).x0.square().mean().backward()
    assert all(float(p.grad.abs().max()) > 0 for name, p in own.items() if "lora_B" in name)  # type: ignore[union-attr]
    set_weights(student, perturb(student))
    student.network.zero_grad()
    predict(student).x0.square().mean().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in own.values())  # type: ignore[union-attr]
    again = get_weights(make_student(dit, LORA))
    assert all(torch.equal(w, again[k]) for k, w in get_weights(make_student(dit, LORA)).items())


def test_adapters_lie_beside_the_teacher_s_own_tensors(dit: DiffusionModel) -> None:
    """No second copy of what is frozen; a student that trains all weights shares none of them."""
    own = {p.data_ptr() for p in dit.network.parameters()}
    adapted, full = make_student(dit, LORA), make_student(dit, Lora())
    frozen = [p for p in adapted.network.parameters() if not p.requires_grad]
    assert len(frozen) == len(own) and {p.data_ptr() for p in frozen} == own
    assert not {p.data_ptr() for p in full.network.parameters()} & own
    assert list(dit.network.state_dict()) == list(full.network.state_dict())  # no adapter was put into the teacher


@pytest.mark.parametrize("family", ["dit", "unet"])
def test_merged_adapters_are_the_formula(family: str, request: pytest.FixtureRequest) -> None:
    """W + (alpha / rank) B A, alpha != rank; and the merged plain network predicts what the adapted one does."""
    teacher = request.getfixturevalue(family)
    student = make_student(teacher, LORA)
    weights = perturb(student)
    set_weights(student, weights)
    network = merged(student)
    plain, original = dict(network.named_parameters()), dict(teacher.network.named_parameters())
    assert plain.keys() == original.keys() and type(network) is type(teacher.network)
    changed = 0
    for name, value in plain.items():
        layer = name.removesuffix(".weight")
        expected = original[name]
        if (b := weights.get(f"{layer}.lora_B.student.weight")) is not None:
            expected = expected + LORA.alpha / LORA.rank * b @ weights[f"{layer}.lora_A.student.weight"]  # type: ignore[operator]
            changed += 1
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    assert changed == 4
    adapted = predict(student)
    torch.testing.assert_close(predict(replace(student, network=network)).x0, adapted.x0, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted.x0, predict(teacher).x0, atol=0.01)
    assert trainable(student).keys() == weights.keys()  # merging left the student as it was


def test_alpha_defaults_to_the_rank(dit: DiffusionModel) -> None:
    pair = make_student(dit, Lora(rank=4)), make_student(dit, Lora(rank=4, alpha=4.0))
    weights = perturb(pair[0])
    for student in pair:
        set_weights(student, weights)
    assert torch.equal(predict(pair[0]).x0, predict(pair[1]).x0)


@pytest.mark.parametrize("lora", [Lora(), LORA])
def test_weights_carry_a_student_to_another_process(dit_folder: Path, lora: Lora) -> None:
    source, target = (make_student(load_model(dit_folder), lora) for _ in "ab")
    set_weights(source, perturb(source))
    sent = get_weights(source)
    set_weights(target, sent)
    assert torch.equal(predict(source).x0, predict(target).x0)
    randomise(source.network)
    assert all(torch.equal(w, trainable(target)[k]) for k, w in sent.items())  # what was sent is a copy


def test_weights_of_another_student_are_refused_whole(dit: DiffusionModel) -> None:
    student = make_student(dit, LORA)
    before, good = get_weights(student), perturb(student)
    name = next(iter(good))
    for wrong, message in (
        ({k: w for k, w in good.items() if k != name}, f"missing \\['{name}'\\]"),
        (good | {"head.weight": torch.zeros(1)}, r"unknown \['head.weight'\]"),
        (good | {name: torch.zeros(3, 16)}, rf"{name} has shape \[3, 16\]; expected \[2, 16\]"),
        (good | {name: torch.full((2, 16), float("nan"))}, f"{name} is not finite"),
        (get_weights(make_student(dit, Lora())), "weights of another student"),
    ):
        with pytest.raises(ModelError, match=message):
            set_weights(student, wrong)
    assert all(torch.equal(w, before[k]) for k, w in get_weights(student).items())


def test_targets_that_match_nothing_are_named(dit: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\['qkv'\] match no layer of DiTTransformer2DModel.*'to_out.0', 'to_q'"):
        make_student(dit, Lora(rank=2, targets=("to_q", "qkv")))
    without = load_model(write_unet(tmp_path / "m", network={"mid_block_type": None}))
    with pytest.raises(ModelError, match=r"'to_q', 'to_k', 'to_v', 'to_out\.0'"):
        make_student(without, LORA)
