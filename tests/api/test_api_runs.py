"""The page docs/python.md as a notebook, on a real Ray cluster, and a run that is interrupted in one."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import run_cell

import redif_ray
from redif_ray.checkpoint import load_checkpoint
from redif_ray.loop import PlainLoop
from redif_ray.planning.paths import absolute

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SMALL = {'"fashion_mnist_output",': '"smoke", "tracking.uri=off",', "10000": "50"}  # what takes minutes becomes seconds


@pytest.fixture(scope="module")
def notebook(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's blocks leave, run in its order in a folder of its own."""
    text = PAGE.read_text()
    for word, other in SMALL.items():
        assert word in text
        text = text.replace(word, other)
    names = run_cell("")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("notebook"))
        threads = torch.get_num_threads()
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            run_cell(block, names)
        assert torch.get_num_threads() == threads
    return names


def test_the_page_says_what_happens(notebook: dict[str, Any]) -> None:
    run, rewards = notebook["run"], notebook["rewards"]
    assert [row["arm"] for row in run.arms] == ["teacher_full", "teacher_best", "teacher_few", "warm_start", "student"]
    validated = [row["validation/reward"] for row in run.rounds if "validation/reward" in row]
    assert rewards[-1] == validated[-1] and {*rewards} <= {*validated}
    assert run.rounds.to_pandas()["round"].tolist() == [-1, 0, 1, 2, 3]
    assert {"mse", "coarse"} == {*run.summary["calibration"]}
    assert (run.folder / "evaluation-50.json").exists() and run.picture.size[0] > 100
    exported = redif_ray.load_student(run.folder.parents[1] / "coarse_student")
    drawn, again = (s.sample(label=7, count=3, seed=1) for s in (exported, notebook["student"]))
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in again]


@pytest.mark.long
def test_an_interrupted_cell_is_gone_on_with(tmp_path: Path) -> None:
    """SIGINT is what a notebook sends; the same function from another session is the same file."""
    source = re.findall(r"```python\n(.*?)\nrewards = ", PAGE.read_text(), re.DOTALL)[0]
    rounds: list[int] = []

    def interrupt(report: redif_ray.RoundReport) -> None:
        rounds.append(report.done)
        if len(rounds) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    def config() -> redif_ray.Config:
        terms = {"mse": {"weight": 0.5}, "coarse": run_cell(source)["coarse"]}
        place = {"run": {"name": "stopped", "root": str(tmp_path)}, "tracking": {"uri": "off"}}
        return redif_ray.load_config("smoke", "learner.rounds=20", **place, reward={"terms": terms})

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(redif_ray.Interrupted, match=r"stopped after round \d+ of 21; continue with"):
        redif_ray.distill(config(), on_round=interrupt)
    assert signal.getsignal(signal.SIGINT) is before and len(rounds) < 21
    run = redif_ray.distill(config(), resume=True, on_round=interrupt)
    assert rounds == [*range(1, 22)]  # each round once, over both starts
    loop = PlainLoop(absolute(config()))
    for round in range(21):
        loop.round(round)
    last = sorted((run.folder / "checkpoints").glob("round-*"))[-1]
    assert load_checkpoint(last)[1]["weights_sha256"] == loop.checksum()
    assert redif_ray.distill(config(), resume=True).summary == run.summary
