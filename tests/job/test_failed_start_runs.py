"""A reward that fails on the workers alone, and the same command once it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke_runs import rounds, smoke, train

from redif_ray.rewards.base import RewardError
from redif_ray.runs.status import status

SCORE = """
import sys
def score(student, teacher, conditions):
    if len(student) > 3: {line}
    return -(student - teacher).square().mean((1, 2, 3))
"""


@pytest.mark.long
@pytest.mark.cluster
def test_a_mended_reward_starts_the_same_command_anew(cluster: None, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SCORE.format(line="sys.exit(0)"))
    config = smoke(tmp_path / "runs", "run", f"reward.terms.mine.options.callable={path}:score")
    with pytest.raises(RewardError, match=r"^reward term 'mine': .*mine.py:score failed: SystemExit: 0\n.*mine.py:4"):
        train(config, until=1)
    folder = tmp_path / "runs" / "run"
    assert "it trained nothing, so the same command without --resume starts it anew" in status(folder)[1]["state"]
    path.write_text(SCORE.format(line="pass"))
    train(config, until=1)
    assert rounds(folder) == 1 and status(folder)[1]["state"] == "stopped; continue with --resume"
