"""The command line as a user meets it: its output and its exit codes, of real processes for one of each kind."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from commands import here, one_line
from ray.exceptions import RayError
from tiny_pipelines import write_sd

from redif_ray import __version__
from redif_ray.cli import main
from redif_ray.config import ConfigError, dump, load
from redif_ray.job.launch import check
from redif_ray.planning.paths import absolute
from redif_ray.rewards.base import TERMS
from redif_ray.rewards.names import NAMES
from redif_ray.runs.folder import RunFinished

pytestmark = pytest.mark.slow


def redif(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "redif_ray.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lrr=1", "learner.lrr: unknown key; did you mean learner.lr?"),
        ("rollout.max_workers=many", "rollout.max_workers='many': input should be a valid integer"),
        ("exploration.eta=0", "exploration.eta=0: a policy gradient needs exploration; expected a value in (0, 1]"),
    ],
)
def test_a_bad_configuration_is_one_clear_error_before_ray_starts(override: str, message: str, tmp_path: Path) -> None:
    done = redif("distill", "smoke", override, f"run.root={tmp_path}/runs")
    assert done.returncode == 2
    assert message in one_line(done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_print_config_prints_what_load_reads_back(tmp_path: Path) -> None:
    done = redif("distill", "smoke", "learner.lr=3e-5", "--print-config")
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["learner"]["lr"] == 3e-5
    (tmp_path / "again.yaml").write_text(done.stdout)
    assert redif("distill", str(tmp_path / "again.yaml"), "--print-config").stdout == done.stdout


def test_help_shows_commands_in_groups_and_the_version_option() -> None:
    shown = here("--help")
    groups = [line.split("─")[1].strip() for line in shown.stdout.splitlines() if line.startswith("╭")]
    assert shown.returncode == 0 and groups == ["Options", "Runs", "Students", "Search", "Your own models"]
    assert "--version" in shown.stdout
    assert (here("--version").returncode, here("--version").stdout) == (0, f"{__version__}\n")


def test_a_missing_teacher_and_a_missing_run_are_errors(tmp_path: Path) -> None:
    done = here("distill", "smoke", "teacher.model=nowhere", f"run.root={tmp_path}", "tracking.uri=off")
    assert done.returncode == 2 and "no model 'nowhere'" in done.stderr and "fashion-mnist" in done.stderr
    done = here("distill", "smoke", f"run.root={tmp_path}", "run.name=never", "--resume")
    assert done.returncode == 2 and "holds no run to resume" in one_line(done.stderr)
    done = here("evaluate", str(tmp_path / "never"))
    assert done.returncode == 2 and "is not a run folder" in one_line(done.stderr)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_half_a_size_is_an_error(command: str, tmp_path: Path) -> None:
    done = here(command, str(tmp_path), "--height", "512")
    assert done.returncode == 2 and "--height and --width: give both, or neither" in one_line(done.stderr)


def test_sample_draws_the_shipped_teacher(tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "samples.png"
    done = here("sample", "fashion-mnist", "--count", "4", "--steps", "2", "--label", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (2 * 84, 2 * 84)
    done = here("sample", "fashion-mnist", "--label", "10", "--out", str(out))
    assert done.returncode == 2 and "classes 0 to 9" in one_line(done.stderr)


def test_sample_draws_what_a_caption_says(tmp_path: Path) -> None:
    from PIL import Image

    model, out = write_sd(tmp_path / "model"), tmp_path / "samples.png"
    options = ("--count", "2", "--steps", "2", "--out", str(out))
    drawn = []
    for caption, guidance in (("a cat", "3"), ("a dog", "3"), ("a cat", "1")):
        done = here("sample", str(model), *options, "--caption", caption, "--guidance", guidance)
        assert done.returncode == 0, done.stderr
        drawn.append(Image.open(out).tobytes())
    assert len(set(drawn)) == 3
    done = here("sample", "fashion-mnist", *options, "--caption", "a boot")
    assert done.returncode == 2 and "error: caption 'a boot': fashion-mnist takes no captions" in one_line(done.stderr)


def test_doctor_reports() -> None:
    done = here("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("torch", "CUDA", "Ray", "MLflow", "fashion-mnist", "classifier-a", "random-features"):
        assert word in done.stdout


def test_doctor_looks_at_mlflow_s_own_store_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?token=hush-9")
    done = here("doctor")
    assert done.returncode == 0 and "is not there yet" in one_line(done.stdout) and "hush-9" not in done.stdout
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "cannot be used" in here("doctor").stdout
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI are not set" in one_line(here("doctor").stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_said_to_be_finished_only_of_its_own_settings(tmp_path: Path) -> None:
    given = [f"run.root={tmp_path}", "run.name=done", "learner.microbatch=null"]
    (tmp_path / "done").mkdir()
    chosen = absolute(load("smoke", [*given, "learner.microbatch=5", "learner.activation_checkpointing=true"]))
    (tmp_path / "done" / "config.yaml").write_text(dump(chosen))
    (tmp_path / "done" / "summary.json").write_text("{}")
    with pytest.raises(RunFinished, match="is finished; its results are in"):
        check(load("smoke", given), resume=True)
    with pytest.raises(ConfigError, match=r"another run.name\s+learner.lr: 0.0001 then, 0.0003 now"):
        check(load("smoke", [*given, "learner.lr=3e-4"]), resume=True)


def test_what_is_wrong_is_known_before_torch_and_ray_are_there(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (["reward.terms.mes.weight=1"], False, "unknown reward term 'mes' (did you mean 'mse'?)"),
        (["reward.terms.mine.options.callable=no.py:f"], False, "cannot import no.py: FileNotFoundError: no such file"),
        ([f"teacher.model={empty}"], False, "is not a diffusers pipeline: it has no model_index.json"),
        (["teacher.lora=no.safetensors"], False, "teacher.lora=no.safetensors: no such file"),
        (["tracking.uri=env:NO_SUCH"], False, "the environment variable NO_SUCH is not set; set it"),
        (["checkpoint.upload=s3://***@bucket/x"], False, "the secret in place of *** is kept nowhere; give it again"),
        (["run.name=never"], True, "holds no run to resume"),
    ]
    script = f"""
import sys
from redif_ray.config import load
from redif_ray.errors import Notice, UserError
from redif_ray.job.launch import check
for overrides, resume, expected in {cases!r}:
    try:
        check(load("smoke", ["run.root={tmp_path}", *overrides]), resume=resume)
    except (Notice, UserError) as error:
        assert expected in str(error), error
    else:
        raise AssertionError(expected)
assert not {{"torch", "diffusers", "mlflow"}} & set(sys.modules)
import ray
assert not ray.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=60)


def test_the_names_of_terms_are_those_that_can_be_built() -> None:
    assert set(NAMES) == set(TERMS)


def test_errors_of_the_disk_and_of_ray_end_in_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code, words in (
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "'/x'; free space, and run the command again"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "'/x'; give yourself access to it, and run the"),
        (RayError("score was lost 5 times"), 3, "lost what is needed to go on: score was lost 5 times; run the"),
    ):
        monkeypatch.setattr("redif_ray.cli.app", Mock(side_effect=error))
        with pytest.raises(SystemExit) as told:
            main()
        assert told.value.code == code and words in capsys.readouterr().err
    monkeypatch.setattr("redif_ray.cli.app", Mock(side_effect=ZeroDivisionError("a fault of ours")))
    with pytest.raises(SystemExit) as told:
        main()
    assert told.value.code == 1 and "Traceback" in capsys.readouterr().err
