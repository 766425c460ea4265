"""The students of the scenes: arms of equal cost, and what is measured of their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.grid import cost
from benchmarks.in_process import Kept
from benchmarks.scenes import proxy
from benchmarks.scenes.arms import ARMS, CALLS, FITTED, RECIPE, TAUGHT, settings
from benchmarks.scenes.checker import verdict
from benchmarks.scenes.measure import bits, by_held_out, variety
from benchmarks.scenes.pictures import captions, drawn, pictures
from benchmarks.scenes.scenes import Scene, every_scene
from benchmarks.scenes.students import Students, table
from redif_ray.config import load


@pytest.mark.parametrize("name", list(ARMS))
def test_all_candidates_of_all_arms_take_the_same_calls(name: str, tmp_path: Path) -> None:
    for candidate, calls in ((ARMS[name].candidates[0], CALLS // 4), (ARMS[name].candidates[-1], CALLS)):
        network = tmp_path / "network.py" if name == "network" else None
        config = load(RECIPE, settings(name, candidate, calls, tmp_path / "before", network))
        fitted = 4 * FITTED * calls / CALLS if network else 0
        assert 0.9 * calls < cost(config) + fitted <= calls
        assert (config.conditions.pool is not None) == (name in TAUGHT)
        assert config.student.init == str(tmp_path / "before")


def test_shares_by_what_is_held_out() -> None:
    trained, held = captions(held_out=False)[:4], captions(held_out=True)
    scenes = [*[s for s in held if s.never_asked][:3], *[s for s in held if not s.never_asked][:1]]
    found = by_held_out(np.array([True, False, False, True]), scenes)
    assert found | {"held out whole": 50.0, "asked whole": 100.0, "never asked whole": pytest.approx(100 / 3)} == found
    texts = ("one blue triangle", "two red triangles", "one red circle above two green squares")
    scenes = [Scene.of(text) for text in (*texts, "one blue triangle left of two red triangles")]
    found = by_held_out(np.array([True, False, True, True]), scenes)
    groups = {"blue triangle whole": 100.0, "two red triangles whole": 0.0, "two green squares whole": 100.0}
    assert {name: found[name] for name in found if name.split()[-2] not in ("out", "asked")} == groups
    assert by_held_out(np.array([True, False, True, True]), trained) == {"trained whole": 75.0}


def test_entropy_of_counts() -> None:
    """The estimate for uniform draws from eight cells is 3 bits, where the plain one is .03 too low."""
    draws = np.random.default_rng(0)
    counts = [np.bincount(draws.integers(8, size=160)) for _ in range(200)]
    found = [bits(each.tolist()) for each in counts]
    assert abs(np.mean(found) - 3) < 3 * np.std(found) / len(found) ** 0.5
    assert bits([7]) == 0


def test_pictures_of_one_scene_vary_as_they_are_drawn() -> None:
    scenes = [scene for scene in drawn(captions(held_out=True), 40, seed=0) for _ in range(8)]
    own = pictures(scenes, seed=0).astype(np.float32) / 255
    free = variety(own, scenes)
    again = variety(own.reshape(40, 8, 3, 32, 32)[:, :1].repeat(8, 1).reshape(-1, 3, 32, 32), scenes)
    assert free["distance"] > 0.01 and abs(again["distance"]) < 1e-6
    assert free["entropy"] > again["entropy"] + 0.3
    assert 2 < free["entropy"] < 4


def test_each_caption_has_a_description_of_its_own() -> None:
    every = every_scene()
    found = torch.stack([proxy.described(str(scene)) for scene in every])
    assert found.shape == (len(every), proxy.FEATURES) and len(found.unique(dim=0)) == len(every)


def test_a_fitted_network_gives_the_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network tells pictures of two captions apart, half of which are told the other one, and has a gradient."""
    monkeypatch.setattr(proxy, "STEPS", 60)
    monkeypatch.setattr(proxy, "BATCH", 48)
    monkeypatch.setattr(proxy, "CHECKED", 100)
    two = [Scene.of(caption) for caption in ("one red circle", "one blue circle")]
    draws = np.random.default_rng(0).integers(2, size=(500, 2))
    scenes, told = ([two[i] for i in column] for column in draws.T)
    own = pictures(scenes, seed=0).astype(np.float32) / 255
    ranked = proxy.fit(own, [str(scene) for scene in told], tmp_path / "network.safetensors")
    assert ranked > 0.95
    network = proxy.Verdicts.read(tmp_path / "network.safetensors")
    images = torch.from_numpy(own[:100]).requires_grad_()
    logits = network(images, images, [str(scene) for scene in told[:100]])
    right = torch.tensor([verdict(p, s)["whole"] for p, s in zip(own[:100], told[:100], strict=True)])
    assert ((logits > 0) == right).float().mean() > 0.95
    logits.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_two_processes_may_keep_runs_in_one_file(tmp_path: Path) -> None:
    first, second = (Kept(tmp_path / "kept.json", tmp_path) for _ in range(2))
    first.keep("a", [{"x": 1.0}])
    second.keep("b", [{"x": 2.0}])
    assert first.point("b", dict) == {"x": 2.0} and second.point("a", dict) == {"x": 1.0}


def test_the_page_has_the_kept_figures(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    page = (folder / "scenes" / "README.md").read_text().splitlines()
    made = table(Students(Kept(folder / "results" / "scenes.json", tmp_path)), ["verdict"], [1, 2, 3])
    rows = made.splitlines()[2:]
    assert len(rows) == 4 and {*rows} <= {*page}
