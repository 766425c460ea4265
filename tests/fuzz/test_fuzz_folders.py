"""Teacher folders that nobody meant: what passes the checks of a run works, and all else ends in one clear error."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import spoil
from model_folders import change_json, change_weights, copy_of, family, share_out, used
from outcomes import Given, Tally, of_command, tried

pytestmark = pytest.mark.long


def a_config(chance: random.Random, root: Path) -> Given:
    """A folder with changes in one or two of its JSON files."""
    write = family(chance)
    folder = copy_of(write, root)
    files = sorted(path for path in folder.rglob("*.json") if path.stat().st_size < 10_000)
    done = [write.__name__]
    for path in chance.sample(files, chance.choice((1, 1, 2))):
        done += [str(path.relative_to(folder)), change_json(path, chance)]
    return done, lambda: used(write, folder, root)


def some_weights(chance: random.Random, root: Path) -> Given:
    """A folder with changes in one of its weight files, whole or in shards."""
    write = family(chance)
    folder = copy_of(write, root)
    path = chance.choice(sorted(folder.rglob("*.safetensors")))
    change = chance.choice((change_weights, change_weights, change_weights, share_out))
    done = [write.__name__, str(path.relative_to(folder)), change(path, chance)]
    return done, lambda: used(write, folder, root)


def a_spoilt_folder(chance: random.Random, root: Path) -> Given:
    """A folder in whose files one to three things happened."""
    write = family(chance)
    folder = copy_of(write, root)
    done = [write.__name__, *(spoil(folder, chance) for _ in range(chance.randint(1, 3)))]
    return done, lambda: used(write, folder, root)


MAKERS: dict[Any, int] = {a_config: 600, some_weights: 450, a_spoilt_folder: 300}


@pytest.mark.parametrize("make_one", MAKERS, ids=lambda maker: maker.__name__)
def test_a_folder_that_nobody_meant_ends_clearly(make_one: Any, tmp_path: Path) -> None:
    tried(make_one, MAKERS[make_one], tmp_path)


def test_a_command_on_a_folder_that_nobody_meant_ends_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tally = Tally("commands on folders")
    for seed in range(120):
        root, chance = tmp_path / str(seed), random.Random(seed)
        root.mkdir()
        given, _ = chance.choice(list(MAKERS))(chance, root)
        folder = str(root / "model")
        words = chance.choice(
            (
                ["doctor", "smoke", f"teacher.model={folder}", f"run.root={root}"],
                ["sample", folder, "--steps", "2", "--count", "1", "--out", f"{root}/x.png"],
                ["sample", folder, "--steps", "2", "--count", "1", "--images", f"{root}/images", "--caption", "a"],
                ["check-family", folder],
                [chance.choice(("status", "evaluate")), folder],
                ["export", folder, f"{root}/out"],
            )
        )
        tally.add(f"seed {seed}: {given} {words}", of_command(*words), most_lines=3)
        shutil.rmtree(root)
    tally.check()
