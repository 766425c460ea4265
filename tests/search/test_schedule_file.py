from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from redif_ray.config import ConfigError, dump, load
from redif_ray.data.schedule_file import Found, ScheduleFile, read_schedule
from redif_ray.models.locate import TEACHERS
from redif_ray.models.registry import load_model, model_folder
from redif_ray.models.sketch import found_for
from redif_ray.planning import factory
from redif_ray.planning.paths import absolute
from redif_ray.search.search import searched

FOUND = Found(name="searched", timesteps=(999.0, 700.0, 350.0), half_log_snr=(None, -1.0, 1.0), distance=0.1)


def written(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "schedule.yaml"
    fields = {"teacher": "t", "student": None, "solver": "euler", "guidance": 1.0, "schedules": {3: FOUND}, **values}
    path.write_text(dump(ScheduleFile.model_validate(fields)))
    return path


def test_a_run_takes_the_levels_of_its_number_of_steps(tmp_path: Path) -> None:
    path = written(tmp_path)
    config = absolute(load("smoke", [f"student.schedule={path}", "student.steps=3"]))
    assert config.student.levels == FOUND.timesteps
    assert absolute(config) == config  # the run keeps the levels themselves: the file may change or go


def test_a_run_takes_what_the_network_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, schedules={3: FOUND.model_copy(update={"network_timesteps": (960.0, 720.0, 350.0)})})
    config = absolute(load("smoke", [f"student.schedule={path}", "student.steps=3"]))
    teacher = load_model(config.teacher.model)
    schedule = factory.student_schedule(teacher, config.student)
    assert [float(schedule[k].timestep) for k in range(3)] == [960, 720, 350]
    assert schedule.levels.timestep.tolist()[:3] == [999, 700, 350]
    with pytest.raises(ConfigError, match="network_timesteps has 3 entries; expected one for each of"):
        load("smoke", ["student.network_timesteps=[960,720,350]"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.steps=4"], "has schedules of 3 steps, none of 4"),
        (["student.steps=3", "student.tilt=0.1"], "leave out levels, tilt, bow"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        absolute(load("smoke", [f"student.schedule={written(tmp_path)}", *overrides]))


def test_a_schedule_of_something_else_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The teacher's folder may have another name; its weights, noise, size and guidance count."""
    copied, other = tmp_path / "copied", tmp_path / "other"
    for folder in (copied, other):
        shutil.copytree(TEACHERS / "fashion-mnist", folder)
    weights = other / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")  # one weight, the last, is 1
    scheduler = other / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("v_prediction", "epsilon"))
    path = written(tmp_path, teacher="then", found_for=found_for(model_folder("fashion-mnist"), None, {}))

    def said(*overrides: str) -> str:
        caplog.clear()
        config = absolute(load("smoke", [f"student.schedule={path}", "student.steps=3", *overrides]))
        assert config.student.levels == FOUND.timesteps
        return caplog.text

    assert said() == said(f"teacher.model={copied}") == ""
    text = said(f"teacher.model={other}")
    assert "found for something else: other weights, those of then; another noise process, prediction" in text
    assert "guidance 1, and here it is 2" in said("student.guidance=2")
    assert "images of the model's own size, and here they have 32x64" in said("teacher.height=32", "teacher.width=64")
    path = written(tmp_path)
    assert "an earlier version wrote the file, and it does not say for which model" in said()


def test_students_are_sampled_by_euler(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was found for heun"):
        read_schedule(written(tmp_path, solver="heun"), 3)


def test_what_is_no_name_and_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is unknown; expected one of uniform_trailing"):
        absolute(load("smoke", ["student.schedule=uniform_tailing"]))
    other = tmp_path / "other.yaml"
    other.write_text("steps: 4\n")
    with pytest.raises(ConfigError, match="is not a file of `redif search`"):
        read_schedule(other, 4)


def test_a_recipe_may_name_the_file_that_its_search_is_to_write(tmp_path: Path) -> None:
    config = load("smoke", [f"student.schedule={tmp_path / 'later.yaml'}", f"run.root={tmp_path}"])
    assert searched(config) == searched(load("smoke", [f"run.root={tmp_path}"]))
    with pytest.raises(ConfigError, match="is unknown"):
        absolute(config)


def test_a_recipe_whose_learner_is_shared_out_can_be_searched() -> None:
    shared = load("smoke", ["learner.workers=2", "learner.fsdp=true"])
    assert searched(shared).learner.fsdp is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search={network_timestep_trials: 5, engine: gradient}", "engine=gradient has no trials"),
        ("search.rungs=[64,32]", "rising multiples"),
        ("search.rungs=[50,100]", r"multiples of search.unit_noises=32"),
        ("search.steps=[1,2]", "search.steps.0=1"),
        ("search.steps=[2,2]", "each number once"),
        ("search.sampler=bayes", "search.sampler='bayes'"),
        ("search.descent.batch=1000", "search.descent.batch=1000"),
        ("search.frechet={weight: 1, encoder: fashion-mnist}", "a judge must not choose the schedule"),
    ],
)
def test_an_invalid_space_is_one_clear_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load("smoke", [override])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("changes", [{"timesteps": (999.0,)}, {"network_timesteps": (999.0, 1.0)}])
def test_a_file_without_a_timestep_for_each_step_is_named(changes: dict[str, object], tmp_path: Path) -> None:
    path = written(tmp_path, schedules={3: FOUND.model_copy(update=changes)})
    with pytest.raises(ConfigError, match=r"schedule\.yaml: its schedule of 3 steps has \d timesteps; search again"):
        absolute(load("smoke", [f"student.schedule={path}", "student.steps=3"]))
