"""The user's code is tried before anything starts, and whatever it does to its process is one error that names it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from redif_ray.cli import main
from redif_ray.config import Config, load
from redif_ray.job import launch, rehearsal
from redif_ray.job.rehearsal import rehearse
from redif_ray.job.rehearsal_process import Rehearsal
from redif_ray.planning.paths import absolute
from redif_ray.rewards.base import RewardError
from redif_ray.user_code.errors import UserCodeError

SCORE = "def score(student, teacher, conditions):\n    "
GOOD = "return student.mean((1, 2, 3))\n"
TERM = "reward.terms.mine.options.callable={file}:score"


def configured(folder: Path, code: str, *overrides: str, name: str = "mine.py") -> Config:
    """A configuration whose overrides name a file with this code as {file}."""
    path = folder / name
    path.write_text(code)
    texts = [text.replace("{file}", str(path)) for text in overrides or (TERM,)]
    found: Config = load("smoke", [f"run.root={folder}/runs", *texts])
    return found


def here(config: Config, folder: Path) -> None:
    """Run a rehearsal in this process."""
    with (folder / "stack").open("w") as stack:
        Rehearsal(config, folder, 60.0, stack).run()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (SCORE + GOOD, None),
        (SCORE + "import torch; return torch.ones(3)", r"returned shape \[3\]; expected \[1\], one value an image"),
        (SCORE + "return 'good'", "returned str"),
        (SCORE + "return student.sum() * float('nan') + student.mean((1, 2, 3))", "is nan at row 0"),
        (SCORE + "assert len(student) > 1; " + GOOD, "score failed: AssertionError"),
        (SCORE + "assert student.min() >= 0 and student.max() <= 1 and student.dtype.itemsize == 4; " + GOOD, None),
        (SCORE + "assert all(0 <= c < 4 for c in conditions); " + GOOD, None),
    ],
)
def test_a_reward_is_called_on_three_images_and_on_one(code: str, message: str | None, tmp_path: Path) -> None:
    config = configured(tmp_path, code)
    if message is None:
        here(config, tmp_path)
        return
    with pytest.raises(RewardError, match=f"^reward term 'mine'.*{message}"):
        here(config, tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("student.mean((1, 2, 3))", None),
        ("student.detach().mean((1, 2, 3))", "carries no gradient"),
        ("(student - student).sqrt().mean((1, 2, 3))", "carries a gradient that is not finite"),
        ("student.detach().mean((1, 2, 3)).requires_grad_()", "carries no gradient"),
    ],
)
def test_the_gradient_of_a_differentiable_reward_is_tried(value: str, message: str | None, tmp_path: Path) -> None:
    config = configured(tmp_path, SCORE + f"return {value}\n", TERM, "reward.terms.mine.options.differentiable=true")
    if message is None:
        here(config, tmp_path)
        return
    with pytest.raises(RewardError, match=f"'mine' declares itself differentiable, but its value {message}"):
        here(config, tmp_path)


@pytest.mark.parametrize(
    "key", ["method", "learner.loss", "learner.advantage", "learner.regulariser.kind", "teacher.family"]
)
def test_every_kind_of_code_is_imported(key: str, tmp_path: Path) -> None:
    config = configured(tmp_path, "import sys\nsys.exit(0)\n", f"{key}={{file}}:name")
    with pytest.raises((UserCodeError, RuntimeError, ValueError), match=rf"{key}=.*cannot import .*SystemExit: 0"):
        here(config, tmp_path)


@pytest.mark.long
def test_a_crash_is_named_with_the_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a module beside a notebook, too, where "" in `sys.path` stands for the working directory."""
    code = "import os; print('last words', flush=True); os.abort()\n"
    (tmp_path / "beside_me.py").write_text(SCORE + code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    crashed = r"^reward\.terms\.mine \(beside_me:score\): its code ended the process, with signal 6 \(Aborted\)"
    with pytest.raises(UserCodeError, match=crashed + "; it wrote last:\n(.*\n)*last words"):
        rehearse(load("smoke", ["reward.terms.mine.options.callable=beside_me:score"]))


@pytest.mark.long
def test_a_hang_that_no_signal_interrupts_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rehearsal, "NOTICE_SECONDS", 1.0)
    late = r"it has not returned after 0\.5 s, half of pipeline\.timeout_s;.*\n  .*mine.py:2, in score$"
    with pytest.raises(UserCodeError, match=rf"^reward\.terms\.mine \(.*mine.py:score\): {late}"):
        rehearse(configured(tmp_path, SCORE + "sum(range(10**15))\n", TERM, "pipeline.timeout_s=1"))
    assert "still trying reward.terms.mine (" in caplog.text


@pytest.mark.slow
def test_the_command_says_so_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launch, "started", started.append)
    path = tmp_path / "mine.py"
    path.write_text("import os\nos._exit(0)\ndef load(folder, dtype): ...\n")
    words = ["redif", "distill", "smoke", f"run.root={tmp_path}/runs", f"teacher.family={path}:load"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    error = capfd.readouterr().err
    assert end.value.code == 2 and not started and not (tmp_path / "runs").exists()
    assert f"error: teacher.family={path}:load: its code ended the process, with exit code 0" in error


def test_code_is_tried_once_a_process_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def run(folder: Path, *_: Any) -> int:
        tried.append(folder)
        (folder / rehearsal.RESULT).write_text("{}")
        return 0

    monkeypatch.setattr(rehearsal, "_run", run)
    config = configured(tmp_path, SCORE + GOOD)
    for _ in range(2):
        rehearse(config)
    assert len(tried) == 1
    rehearse(configured(tmp_path, SCORE + GOOD + "# mended\n"))
    rehearse(load("smoke", []))
    rehearse(configured(tmp_path, "", TERM, "reward.runtime_env={}"))  # only reward workers can build the terms
    assert len(tried) == 2


def test_a_sys_exit_of_user_code_ends_no_command_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever calls it: here the library that draws."""
    from redif_ray import sample

    monkeypatch.setattr(sample, "sample", lambda *_, **__: sys.exit(0), raising=False)
    monkeypatch.setattr(sys, "argv", ["redif", "sample", "fashion-mnist", "--out", str(tmp_path / "x.png")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "code of your own ended the process: SystemExit: 0" in capsys.readouterr().err


def test_a_file_below_the_home_folder_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = configured(tmp_path, SCORE + GOOD, "reward.terms.mine.options.callable=~/mine.py:score")
    assert rehearsal._own_code(found) == rehearsal._own_code(absolute(found))
