"""Regression on two steps: which steps are trained, where they end, and the earlier student's state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_pipelines import write_sd
from torch import Tensor

from redif_ray.config import load
from redif_ray.diffusion.levels import FlowMatching, Level, NoiseProcess, VarianceExploding, VariancePreserving, like
from redif_ray.diffusion.schedules import Schedule, build
from redif_ray.diffusion.transition import DETERMINISTIC, Prediction, transition_mean
from redif_ray.learning.earlier import EarlierStudent
from redif_ray.learning.policy import Predict
from redif_ray.learning.round_update import Round
from redif_ray.learning.two_steps import Steps, Taught, drawn, endpoint, halved_steps, segment_steps
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import get_weights, trainable
from redif_ray.planning import factory

PROCESSES: dict[str, tuple[NoiseProcess, str]] = {
    "vp": (VariancePreserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)), "karras"),
    "ve": (VarianceExploding(), "karras"),
    "flow": (FlowMatching(), "uniform_trailing"),
}
SHAPE = (3, 2, 2)


def case(name: str) -> tuple[NoiseProcess, Schedule]:
    process, schedule = PROCESSES[name]
    return process, build(process, 3, schedule)


def sigmas(level: Level) -> list[float]:
    return [round(value, 9) for value in (level.sigma / level.alpha.clamp(min=1e-12)).tolist()]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_stage_takes_in_one_step_what_the_stage_before_took_in_two(name: str) -> None:
    process, schedule = case(name)
    coarse, fine = (halved_steps(process, schedule, parts) for parts in (2, 4))
    assert len(coarse) == 6 and len(fine) == 12
    halves = [value for pair in zip(sigmas(coarse.u), sigmas(coarse.s), strict=True) for value in pair]
    assert halves == sigmas(fine.s)
    assert sigmas(fine.t)[::2] == sigmas(coarse.t)
    last = halved_steps(process, schedule, 1)
    assert sigmas(last.t) == sigmas(schedule.levels)[:-1] and sigmas(last.s) == sigmas(schedule.levels)[1:]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_cleaner_than_those_of_a_network_are_divided_too(shift: float) -> None:
    """The last intervals of a long flow schedule lie below the least sigma at which a network is called."""
    process = FlowMatching(shift=shift)
    steps = halved_steps(process, build(process, 16, "log_snr_linear"), 4)
    t, u, s = (torch.tensor(sigmas(level)) for level in (steps.t, steps.u, steps.s))
    assert len(steps) == 64 and bool((t > u).all()) and bool((u > s).all())


@pytest.mark.parametrize("name", PROCESSES)
def test_a_segment_ends_where_the_student_s_step_does(name: str) -> None:
    process, schedule = case(name)
    steps, ends = segment_steps(process, schedule, 4), sigmas(schedule.levels)
    assert len(steps) == 12
    assert sigmas(steps.s) == [end for end in ends[1:] for _ in range(4)]
    assert sigmas(steps.t)[::4] == ends[:-1]
    assert sigmas(steps.u) == [*sigmas(steps.t)[1:], ends[-1]]


def test_a_student_s_step_is_called_with_its_own_timestep() -> None:
    process, plain = case("vp")
    schedule = Schedule(plain.levels, "told", plain.levels.timestep[:-1] - 5)
    for steps in (halved_steps(process, schedule, 2), segment_steps(process, schedule, 2)):
        moved = steps.t.timestep - steps.called.timestep
        assert moved.tolist() == [5.0, 0.0] * 3
        assert torch.equal(steps.t.sigma, steps.called.sigma)


def one_image(clean: Tensor) -> Predict:
    """Return a denoiser that always answers `clean` [*SHAPE]."""

    def predict(x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
        x0 = clean.expand_as(x)
        return Prediction(x0, (x - like(level.alpha, x) * x0) / like(level.sigma, x))

    return predict


@pytest.mark.parametrize("name", PROCESSES)
def test_two_steps_of_an_exact_denoiser_stay_on_their_line(name: str) -> None:
    process, schedule = case(name)
    clean = torch.linspace(-1, 1, 12).reshape(SHAPE)
    for steps in (halved_steps(process, schedule, 2), segment_steps(process, schedule, 3)):
        eps, at = torch.randn(len(steps), *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(len(steps))
        x = like(steps.t.alpha, eps) * clean + like(steps.t.sigma, eps) * eps
        taught = Taught(one_image(clean), one_image(clean), steps.t, (1.0, 1.0))
        found = endpoint(taught, x, steps, at, {})
        expected = like(steps.s.alpha, eps) * clean + like(steps.s.sigma, eps) * eps
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_the_second_network_takes_the_second_step_alone() -> None:
    process, schedule = case("flow")
    steps: Steps = segment_steps(process, schedule, 2)
    at = torch.arange(len(steps))
    x = torch.randn(len(steps), *SHAPE, generator=torch.Generator().manual_seed(1))
    near, far = one_image(torch.zeros(SHAPE)), one_image(torch.ones(SHAPE))
    one, other = (Taught(near, second, steps.t, (2.0, 1.0)) for second in (near, far))
    alone, mixed = (endpoint(taught, x, steps, at, {}) for taught in (one, other))
    differ = (alone - mixed).abs().flatten(1).amax(1) > 1e-6
    assert differ.tolist() == [True, False] * 3
    assert one.calls(steps, at) == 2 * 6 + 3


@pytest.mark.slow
def test_the_first_level_shows_no_image() -> None:
    """Sampling starts there from noise alone; at Stable Diffusion's levels .07 of the image would show through."""
    loop = PlainLoop(load("smoke", ["method=consistency", "consistency={groups: 16, draws: 1}", "warm_start.rounds=0"]))
    seen: list[tuple[Tensor, Tensor]] = []
    loop.trainee.start(loop.plan.phase(0))
    student, predict = loop.student, loop.student.predict

    def noted(x: Tensor, level: Level, encoded: dict[str, Tensor], *, guidance: float = 1.0) -> Prediction:
        seen.append((x.detach(), level.timestep))
        return predict(x, level, encoded, guidance=guidance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "predict", noted)
        played = {unit.index: loop.play(unit, {}, "policy-0") for unit in loop.plan.units(0)}
        metas, parts = [metas for metas, _ in played.values()], {i: data for i, (_, data) in played.items()}
        loop.trainee.update(Round(0, metas, parts))
    x, times = torch.cat([x for x, _ in seen]), torch.cat([t for _, t in seen])
    first = times == times.max()
    eps, at = drawn(range(16), 2 * 8, student.latent_shape, seed=0, round=0, draw=0)
    sigma = loop.trainee.learning.schedule.levels.sigma[0]
    assert bool(first.any()) and int(first.sum()) == int((at == 0).sum())
    torch.testing.assert_close(x[first], like(sigma, eps) * eps[at == 0])


def test_draws_depend_on_ids_alone() -> None:
    ids = {"seed": 3, "round": 5, "draw": 1}
    eps, at = drawn(range(400), 12, SHAPE, **ids)
    again, same = drawn(range(399, 199, -1), 12, SHAPE, **ids)
    assert torch.equal(eps[200:].flip(0), again) and torch.equal(at[200:].flip(0), same)
    other, elsewhere = drawn(range(400), 12, SHAPE, **{**ids, "draw": 2})
    assert not torch.equal(eps, other) and not torch.equal(at, elsewhere)
    assert torch.bincount(at, minlength=12).min() > 15 and len(torch.bincount(at)) == 12
    assert abs(float(eps.mean())) < 0.05 and abs(float(eps.std()) - 1) < 0.05


def test_an_earlier_student_is_in_place_for_a_block() -> None:
    config = load("smoke")
    student = factory.student(config, load_teacher(config.teacher))
    earlier, start = EarlierStudent(student, 0.0), get_weights(student)
    with torch.no_grad():
        for parameter in trainable(student).values():
            parameter.add_(1)
    moved = get_weights(student)
    with earlier.in_place():
        assert all(torch.equal(value, start[name]) for name, value in get_weights(student).items())
    assert all(torch.equal(value, moved[name]) for name, value in get_weights(student).items())
    earlier.follow()
    again = EarlierStudent(student, 0.0)
    again.load({name: value.clone() for name, value in earlier.state().items()})
    with again.in_place():
        assert all(torch.equal(value, moved[name]) for name, value in get_weights(student).items())
    with pytest.raises(KeyError), earlier.in_place():
        raise KeyError
    assert all(torch.equal(value, moved[name]) for name, value in get_weights(student).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["consistency={groups: 4, draws: 2}", "progressive={groups: 4, draws: 2, halvings: 2}"]
)
def test_a_restored_phase_goes_on_as_the_first(method: str, tmp_path: Path) -> None:
    """The student's weights and moments, and the earlier student, are the whole of its state."""
    name = method.split("=")[0]
    given = (f"method={name}", method, "warm_start.rounds=0", "learner={rounds: 4, microbatch: 3, ema: 0.5}")
    config = load("smoke", [*given, f"run.root={tmp_path}"])
    loop, again = PlainLoop(config), PlainLoop(config)
    for round in range(3):
        loop.round(round)
    kept = {key: value.clone() for key, value in loop.trainee.state().items()}
    metrics = loop.round(3)
    assert metrics["update/loss"] > 0
    again.phase = again.plan.phase(3)
    again.trainee.start(again.phase)
    again.trainee.load(kept)
    assert again.round(3)["update/loss"] == metrics["update/loss"]
    assert again.checksum() == loop.checksum()


@pytest.mark.slow
def test_a_latent_model_is_noised_in_the_latents_of_its_vae(tmp_path: Path) -> None:
    """The loss is that of the latents by diffusers' own encoder, at the noise and steps of the draw."""
    folder = write_sd(tmp_path / "teacher")
    method = ("method=consistency", "consistency={groups: 2, draws: 1, substeps: 2}", "warm_start.rounds=0")
    loop = PlainLoop(load("smoke", [f"teacher.model={folder}", *method, f"run.root={tmp_path}", "learner.rounds=1"]))
    student = loop.student
    (unit,) = loop.plan.units(0)
    _, images = loop.reward.targets(unit)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        mean = vae.encode(2 * torch.from_numpy(images) - 1).latent_dist.mean
    clean = mean * vae.config.scaling_factor
    torch.testing.assert_close(student.encode_images(torch.from_numpy(images)), clean, rtol=1e-4, atol=1e-5)
    steps = segment_steps(student.process, factory.student_schedule(student, loop.config.student), 2)
    eps, at = drawn(unit.groups, len(steps), student.latent_shape, seed=0, round=0, draw=0)
    t, s = steps.t[at], steps.s[at]
    x, encoded = like(t.alpha * (at > 0), clean) * clean + like(t.sigma, clean) * eps, student.encode(unit.conditions)
    taught = Taught(student.predict, student.predict, steps.t, (1.0, 1.0))  # the student starts as the teacher
    with torch.no_grad():
        end = endpoint(taught, x, steps, at, encoded)
        mean = transition_mean(student.predict(x, t, encoded), s, DETERMINISTIC)
    assert loop.round(0)["update/loss"] == pytest.approx(float((mean - end).square().mean()), rel=1e-3)


@pytest.mark.slow
def test_the_average_begins_anew_in_each_stage() -> None:
    """It holds nothing of the students that were trained for finer steps."""
    given = ("learner={rounds: 4, ema: 0.9}", "progressive={groups: 4, draws: 1, halvings: 2}", "warm_start.rounds=0")
    loop = PlainLoop(load("smoke", ["method=progressive", *given]))
    updates = []
    for round in range(4):
        loop.round(round)
        assert loop.trainee.average is not None
        updates.append(loop.trainee.average.updates)
    assert updates == [1, 2, 1, 2]
    average = loop.trainee.average
    average.restart(loop.trainee.parameters)
    assert all(torch.equal(average.average[name], value) for name, value in loop.trainee.parameters.items())
