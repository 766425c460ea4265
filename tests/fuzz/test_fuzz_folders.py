"""Teacher folders that nobody meant: what passes the checks of a run works, and all else ends in one clear error."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from damage import spoil
from model_folders import change_json, change_weights, copy_of, family, share_out, used
from outcomes import Given, tried

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


MAKERS: dict[Any, int] = {a_config: 700, some_weights: 500, a_spoilt_folder: 400}


@pytest.mark.parametrize("make_one", MAKERS, ids=lambda maker: maker.__name__)
def test_a_folder_that_nobody_meant_ends_clearly(make_one: Any, tmp_path: Path) -> None:
    tried(make_one, MAKERS[make_one], tmp_path)
