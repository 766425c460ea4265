from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import normal, write_dit, write_unet
from torch import Tensor

from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.levels import FlowMatching, Level, VariancePreserving, like
from redif_ray.models.prediction import to_prediction
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model

KINDS = ["epsilon", "v_prediction", "sample"]


def level(model: DiffusionModel, t: int) -> Level:
    return model.process.at(torch.tensor(t))


def ddim(model: DiffusionModel, **options: object) -> DDIMScheduler:
    return DDIMScheduler.from_config(model.scheduler.config, **options)


def raw(model: DiffusionModel, x: Tensor, t: int, **labels: Tensor) -> Tensor:
    """The network as diffusers' users call it, on its own."""
    with torch.no_grad():
        return model.network(x, torch.full((len(x),), t), **labels).sample[:, : x.shape[1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0, 400, 999])
def test_true_outputs_give_back_x0_and_eps(kind: str, t: int) -> None:
    process = VariancePreserving(DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod)
    at = process.at(torch.tensor([t, 500]))
    x0, eps = normal(2, 3, 4, 4, seed=1).double(), normal(2, 3, 4, 4, seed=2).double()
    alpha, sigma = like(at.alpha, x0), like(at.sigma, x0)
    output = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]
    found = to_prediction(kind, output, alpha * x0 + sigma * eps, at)
    torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [1.0, 0.6, 0.01])
def test_a_true_flow_velocity_gives_back_x0_and_eps(sigma: float) -> None:
    at = FlowMatching(scale=1000).at(torch.tensor(1000 * sigma, dtype=torch.float64))
    x0, eps = normal(2, 3, 4, 4, seed=1).double(), normal(2, 3, 4, 4, seed=2).double()
    found = to_prediction("flow_prediction", eps - x0, (1 - sigma) * x0 + sigma * eps, at)
    torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "clip"), [*((kind, None) for kind in KINDS), ("epsilon", 0.5), ("v_prediction", 0.5), ("sample", 0.05)]
)
def test_a_step_is_diffusers_ddim(tmp_path: Path, kind: str, clip: float | None) -> None:
    """The same x0, clipped alike, and the same x_s: eps follows the clipped x0."""
    options = {} if clip is None else {"clip_sample": True, "clip_sample_range": clip}
    model = load_model(write_unet(tmp_path / "m", prediction_type=kind, **options))
    assert model.clip == clip
    oracle = ddim(model)
    oracle.set_timesteps(4)
    x, t = 1.5 * normal(3, 2, 8, 8), 500
    step = oracle.step(raw(model, x, t), t, x, use_clipped_model_output=True)
    found = model.predict(x, level(model, t), {})
    torch.testing.assert_close(found.x0, step.pred_original_sample, rtol=1e-5, atol=2e-6)
    if clip is not None:
        assert 0.05 < float((found.x0.abs() == clip).float().mean()) < 0.95
    s = level(model, 250)
    after = like(s.alpha, x) * found.x0 + like(s.sigma, x) * found.eps
    torch.testing.assert_close(after, step.prev_sample, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_sampling_is_a_plain_diffusers_loop(tmp_path: Path, set_alpha_to_one: bool) -> None:
    model = load_model(write_dit(tmp_path / "m", set_alpha_to_one=set_alpha_to_one, beta_schedule="scaled_linear"))
    labels = torch.tensor([2, 0])
    oracle = ddim(model, timestep_spacing="trailing")
    oracle.set_timesteps(5)
    schedule = schedules.build(model.process, 5, "uniform_trailing")
    unit = normal(2, *model.latent_shape)
    x = unit * float(schedule[0].sigma)
    for t in oracle.timesteps:
        x = oracle.step(raw(model, x, int(t), class_labels=labels), int(t), x).prev_sample
    encoded = model.encode([2, 0])
    found = solvers.sample("euler", lambda x, at: model.predict(x, at, encoded), unit, schedule)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.decode(found), (x / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_rows_at_their_own_levels_equal_scalar_calls(dit: DiffusionModel) -> None:
    x, encoded = normal(3, 1, 8, 8), dit.encode([0, 1, 2])
    times = [999, 500, 3]
    together = dit.predict(x, dit.process.at(torch.tensor(times)), encoded, guidance=1.7)
    for i, t in enumerate(times):
        alone = dit.predict(x[i : i + 1], level(dit, t), dit.encode([i]), guidance=1.7)
        torch.testing.assert_close(together.x0[i], alone.x0[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.eps[i], alone.eps[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_guidance_is_two_calls_in_one(dit: DiffusionModel, w: float) -> None:
    """uncond + w (cond - uncond), the label after the last class standing for none; one call of twice the rows."""
    x, labels, t = normal(3, 1, 8, 8), torch.tensor([0, 2, 1]), 700
    cond, uncond = (raw(dit, x, t, class_labels=c) for c in (labels, torch.full((3,), 3)))
    assert float((cond - uncond).abs().max()) > 0.05
    expected = to_prediction("v_prediction", w * cond + (1 - w) * uncond, x, level(dit, t))
    rows: list[int] = []
    handle = dit.network.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    found = dit.predict(x, level(dit, t), dit.encode([0, 2, 1]), guidance=w)
    dit.predict(x, level(dit, t), dit.encode([0, 2, 1]))
    handle.remove()
    assert rows == [6, 3] == [3 * dit.calls_per_step(w), 3 * dit.calls_per_step(1.0)]
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-5, atol=1e-5)


def test_nothing_draws_from_the_global_generator(dit: DiffusionModel, unet: DiffusionModel) -> None:
    """In train mode DiT drops labels and the UNet drops units at random."""
    before = torch.get_rng_state()
    for model, conditions, guidance in ((dit, [0, 1], 2.0), (unet, [None, None], 1.0)):
        x = normal(2, *model.latent_shape)
        first, second = (model.predict(x, level(model, 600), model.encode(conditions), guidance=guidance) for _ in "ab")
        assert torch.equal(first.x0, second.x0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("write", [write_dit, write_unet])
def test_a_learned_variance_is_left_out(tmp_path: Path, write: object) -> None:
    channels = 2 if write is write_unet else 1
    model = load_model(write(tmp_path / "m", out_channels=2 * channels))  # type: ignore[operator]
    x, labels = normal(2, channels, 8, 8), {} if write is write_unet else {"class_labels": torch.tensor([0, 1])}
    with torch.no_grad():
        both = model.network(x, torch.full((2,), 300), **labels).sample
    assert both.shape[1] == 2 * channels
    expected = to_prediction(model.prediction_type, both[:, :channels], x, level(model, 300))
    assert torch.equal(model.predict(x, level(model, 300), labels).x0, expected.x0)


def test_a_class_conditional_unet_has_classes_but_nothing_to_guide_by(tmp_path: Path) -> None:
    model = load_model(write_unet(tmp_path / "m", classes=4))
    assert model.num_classes == 4
    x, labels = normal(2, 2, 8, 8), torch.tensor([3, 1])
    expected = to_prediction("epsilon", raw(model, x, 200, class_labels=labels), x, level(model, 200))
    assert torch.equal(model.predict(x, level(model, 200), model.encode([3, 1])).x0, expected.x0)
    with pytest.raises(ModelError, match="no label that means no class"):
        model.predict(x, level(model, 200), model.encode([3, 1]), guidance=2.0)


def test_conditions_that_do_not_fit_are_named(dit: DiffusionModel, unet: DiffusionModel) -> None:
    assert dit.encode([1, None])["class_labels"].tolist() == [1, 3] and unet.encode([None]) == {}
    for model, condition, message in (
        (dit, 3, r"condition 3: .*0\.\.2"),
        (dit, "cat", "'cat'"),
        (dit, -1, "-1"),
        (unet, 0, "unconditional"),
    ):
        with pytest.raises(ModelError, match=message):
            model.encode([condition])
    with pytest.raises(ModelError, match="nothing to guide by"):
        unet.predict(normal(1, 2, 8, 8), level(unet, 5), {}, guidance=1.5)


def test_shapes_that_do_not_fit_are_named(dit: DiffusionModel) -> None:
    x = normal(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\[2, 1, 8, 4\]; expected \[B, 1, 8, 8\]"):
        dit.predict(x[..., :4], level(dit, 5), dit.encode([0, 0]))
    with pytest.raises(ValueError, match="class_labels has 1 rows, x has 2"):
        dit.predict(x, level(dit, 5), dit.encode([0]))
    with pytest.raises(ValueError, match="level has 3 rows"):
        dit.predict(x, dit.process.at(torch.tensor([1, 2, 3])), dit.encode([0, 0]))
