"""A reward that fails on the workers alone, and the same command once it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke_runs import rounds, smoke, train

from redif_ray.rewards.base import RewardError
from redif_ray.runs.status import status

SCORE = """
import sys, time
def score(student, teacher, conditions):
    if len(student) > 3: {line}
    return -(student - teacher).square().mean((1, 2, 3))
"""


@pytest.mark.long
@pytest.mark.cluster
def test_a_mended_reward_starts_the_same_command_anew(cluster: None, tmp_path: Path) -> None:
    path, folder = tmp_path / "mine.py", tmp_path / "runs" / "run"
    term = f"reward.terms.mine.options.callable={path}:score"
    config = smoke(tmp_path / "runs", "run", term, "pipeline.timeout_s=30")
    for line, message in (
        ("sys.exit(0)", "failed: SystemExit: 0"),
        ("time.sleep(600)", "has not returned after 15 s, half of pipeline.timeout_s; .*"),
    ):
        path.write_text(SCORE.format(line=line))
        with pytest.raises(RewardError, match=rf"^reward term 'mine': .*mine.py:score {message}\n.*mine.py:4"):
            train(config, until=1)
        assert "it trained nothing, so the same command without --resume" in status(folder)[1]["state"]
    path.write_text(SCORE.format(line="pass"))
    train(config, until=1)
    assert rounds(folder) == 1 and status(folder)[1]["state"] == "stopped; continue with --resume"
