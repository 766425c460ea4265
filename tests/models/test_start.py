"""`student.init`: a student that starts as a distilled model, with the noise process and the parts of its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_flux import write_flux
from tiny_models import normal, randomise, write_dit, write_unet
from tiny_pipelines import write_sd, write_sd3
from typer.testing import CliRunner

from redif_ray.cli import app
from redif_ray.config import Config, ConfigError, Lora, Teacher, load
from redif_ray.diffusion import schedules
from redif_ray.diffusion.levels import Level
from redif_ray.export import export_student
from redif_ray.job.export import export_weights
from redif_ray.job.preflight import preflight
from redif_ray.loop import PlainLoop
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model, load_teacher, teacher_outline
from redif_ray.models.start import starting_model
from redif_ray.models.student import initial_weights, make_student, set_weights
from redif_ray.planning.factory import student_schedule
from redif_ray.planning.memory import footprints
from redif_ray.planning.paths import absolute

TIMES = [999, 400]


def other_network(teacher: Path, out: Path, guidance: float = 1.0) -> Path:
    """Export a student of `teacher` whose weights are others."""
    student = make_student(load_model(teacher), Lora())
    randomise(student.network, 0.3)
    schedule = schedules.explicit(student.process, TIMES)
    export_student(student, schedule, out, name="few", guidance=guidance, teacher=teacher, summary=None)
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("start")
    teacher = write_sd(root / "teacher")
    return teacher, other_network(teacher, root / "few", guidance=2.0)


def predicted(model: DiffusionModel, captions: list[str]) -> torch.Tensor:
    level: Level = model.process.at(torch.tensor(400))
    with torch.no_grad():
        return model.predict(normal(2, *model.latent_shape), level, model.encode(captions)).x0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_the_student_predicts_as_the_other_model_does(rank: int, pair: tuple[Path, Path]) -> None:
    teacher, few = (load_model(folder) for folder in pair)
    start = starting_model(teacher, Teacher(model=str(pair[0])), str(pair[1]))
    student = make_student(start, Lora(rank=rank), in_place=True)
    captions = ["a cat", "two dogs"]
    assert torch.equal(predicted(student, captions), predicted(few, captions))
    assert not torch.equal(predicted(student, captions), predicted(teacher, captions))
    assert student.part("text_encoder") is teacher.part("text_encoder")
    assert student.process is teacher.process
    again = make_student(starting_model(teacher, Teacher(model=str(pair[0])), str(pair[1])), Lora(rank=rank))
    set_weights(again, initial_weights(starting_model(teacher, Teacher(), str(pair[1])), Lora(rank=rank)))
    assert torch.equal(predicted(again, captions), predicted(few, captions))


@pytest.mark.slow
def test_without_init_the_student_starts_as_its_teacher(pair: tuple[Path, Path]) -> None:
    teacher = load_model(pair[0])
    assert starting_model(teacher, Teacher(model=str(pair[0])), None) is teacher


def test_a_network_that_predicts_v_starts_the_student_of_one_that_predicts_epsilon(tmp_path: Path) -> None:
    teacher, v = write_unet(tmp_path / "teacher"), write_unet(tmp_path / "v", prediction_type="v_prediction")
    start = starting_model(load_model(teacher), Teacher(model=str(teacher)), str(v))
    assert start.prediction_type == "v_prediction"
    assert torch.equal(predicted_alone(start), predicted_alone(load_model(v)))


def predicted_alone(model: DiffusionModel) -> torch.Tensor:
    with torch.no_grad():
        return model.predict(normal(2, *model.latent_shape), model.process.at(torch.tensor(400)), {}).x0


@pytest.mark.slow
def test_models_that_start_no_student_of_this_teacher_are_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    unet = write_unet(tmp_path / "unet")
    others = {
        "expected a PixelUNet like the teacher|its (num_classes|component|latent_shape)": write_dit(tmp_path / "dit"),
        "with another noise process": write_unet(tmp_path / "cosine", beta_schedule="squaredcos_cap_v2"),
        "its latent_shape": write_unet(tmp_path / "large", network={"sample_size": 16}),
        "is a run without a student": tmp_path / "run",
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("run: {name: run}")
    for message, folder in others.items():
        with pytest.raises(ModelError, match=message):
            starting_model(load_model(unet), Teacher(model=str(unet)), str(folder))
        with pytest.raises(ModelError, match=message):
            starting_model(teacher_outline(Teacher(model=str(unet))), Teacher(model=str(unet)), str(folder))
    with pytest.raises(ModelError, match="expected the teacher's"):
        starting_model(load_model(pair[0]), Teacher(), str(write_sd3(tmp_path / "sd3", with_t5=False)))
    broken = load_model(unet)
    with torch.no_grad():
        next(broken.network.parameters()).fill_(torch.nan)
    broken.network.save_pretrained(tmp_path / "nan" / "unet")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (tmp_path / "nan" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "nan" / name).write_bytes((unet / name).read_bytes())
    with pytest.raises(ModelError, match=r"of student\.init is not finite"):
        starting_model(load_model(unet), Teacher(model=str(unet)), str(tmp_path / "nan"))


@pytest.mark.slow
def test_a_family_from_a_file_starts_as_another_model_of_that_family(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Its class is made anew at each load."""
    file = tmp_path / "mine.py"
    body = "from redif_ray.models.stable_diffusion import StableDiffusion\n\n\nclass Mine(StableDiffusion):\n    pass\n"
    file.write_text(f"{body}\n\nload = Mine.load\n")
    settings = Teacher(model=str(pair[0]), family=f"{file}:load")
    start = starting_model(load_teacher(settings), settings, str(pair[1]))
    assert type(start).__name__ == "Mine" and torch.equal(
        predicted(start, ["a cat", "dogs"]), predicted(load_model(pair[1]), ["a cat", "dogs"])
    )


@pytest.mark.slow
def test_a_model_that_reads_captions_otherwise_is_refused(tmp_path: Path) -> None:
    dev, schnell = write_flux(tmp_path / "dev"), write_flux(tmp_path / "schnell", dev=False)
    size = {"height": 32, "width": 32}
    with pytest.raises(ModelError, match=r"its embeds_guidance is False, the teacher's is True"):
        starting_model(load_teacher(Teacher(model=str(dev), **size)), Teacher(model=str(dev), **size), str(schnell))


@pytest.mark.slow
def test_adapters_on_another_network_are_not_written_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = absolute(recipe(pair, tmp_path, "student.lora.rank=2"))
    start = starting_model(load_model(pair[0]), config.teacher, config.student.init)
    weights = initial_weights(start, config.student.lora)
    export_weights(load_teacher(config.teacher), config, weights, tmp_path / "out", None)
    assert (
        not list((tmp_path / "out").glob("*lora*"))
        and "load_lora_weights" not in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.slow
def test_doctor_reads_the_levels_of_the_other_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fixed = [
        "smoke",
        f"run.root={tmp_path}",
        "tracking.uri=off",
        "evaluation.judge=random-features",
        "conditions.source=emoji",
    ]
    given = [f"teacher.model={pair[0]}", f"student.init={pair[1]}", "student.schedule=init", "reward.terms={mse: {}}"]
    result = CliRunner().invoke(app, ["doctor", *fixed, *given])
    assert result.exit_code == 0, result.output


def recipe(pair: tuple[Path, Path], root: Path, *overrides: str) -> Config:
    fixed = (f"run.root={root}", "tracking.uri=off", "evaluation.judge=random-features", "conditions.source=emoji")
    given = (f"teacher.model={pair[0]}", f"student.init={pair[1]}", "reward.terms={mse: {}}", *overrides)
    return load("smoke", [*fixed, *given])


def test_the_levels_of_the_other_model_are_kept_by_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = absolute(recipe(pair, tmp_path, "student.schedule=init"))
    assert config.student.levels == tuple(TIMES) and config.student.schedule == "uniform_trailing"
    assert student_schedule(load_model(pair[0]), config.student).times.levels == (999, 400)
    for wrong, message in (
        ("student.steps=4", r"has 2 steps, student\.steps=4"),
        (f"student.init={pair[0]}", "does not say its levels"),
        ("student.init=null", r"expected student\.init"),
        ("student.tilt=0.5", "without student"),
    ):
        with pytest.raises(ConfigError, match=message):
            absolute(recipe(pair, tmp_path, "student.schedule=init", wrong))


@pytest.mark.slow
def test_preflight_reads_the_other_model_and_warns_of_its_guidance(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preflight(absolute(recipe(pair, tmp_path)))
    assert "was trained to be sampled with 2; set student.guidance=2" in caplog.text
    caplog.clear()
    preflight(absolute(recipe(pair, tmp_path, "student.guidance=2")))
    assert "was trained to be sampled" not in caplog.text
    with pytest.raises(ModelError, match="no model"):
        preflight(absolute(recipe(pair, tmp_path, "student.init=nowhere")))


@pytest.mark.slow
def test_a_student_with_adapters_holds_the_other_network_beside_the_teachers(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lora = "student.lora.rank=2"
    own, alone = (
        footprints(recipe(pair, tmp_path, *more), activations=False).roles["rollout"].weights
        for more in ((lora,), (lora, "student.init=null"))
    )
    numbers = sum(p.numel() for p in load_model(pair[0]).network.parameters())
    assert own - alone == pytest.approx(4 * numbers / 1e6, rel=0.02)


@pytest.mark.slow
def test_rounds_go_on_from_the_other_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The first round is fresh, so its ratio is 1, and its weights are the other model's before the update."""
    loop = PlainLoop(absolute(recipe(pair, tmp_path, "warm_start.rounds=0", "learner.rounds=2")))
    few = load_model(pair[1])
    assert torch.equal(predicted(loop.student, ["a cat", "dogs"]), predicted(few, ["a cat", "dogs"]))
    rows = [loop.round(i) for i in range(2)]
    assert all(abs(value) < 1e-4 for row in rows for name, value in row.items() if "fresh_log_ratio" in name)
    assert not torch.equal(predicted(loop.student, ["a cat", "dogs"]), predicted(few, ["a cat", "dogs"]))
