"""Encoders of the hub: their commit is fixed once, and read by all; the hub here is a cache without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_encoders import write_clip

from redif_ray.config import load
from redif_ray.planning import paths
from redif_ray.planning.paths import absolute
from redif_ray.rewards.term import RewardError

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the commit OLD of org/clip, which `main` means."""
    model = tmp_path / "hub" / "models--org--clip"
    write_clip(model / "snapshots" / OLD)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(OLD)
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(model.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return model


def options(*overrides: str) -> dict[str, object]:
    return absolute(load("smoke", list(overrides))).reward.terms["clip"].options


@pytest.mark.slow
def test_a_run_keeps_the_commit_that_it_began_with(hub: Path, build, pair) -> None:
    model = options("reward.terms.clip.options.model=org/clip")["model"]
    assert model == f"org/clip@{OLD}"
    inputs = pair(shape=(2, 3, 16, 16), dtype=torch.float32)
    before = build(terms={"clip": {"model": model}}, shape=(3, 16, 16))(inputs)["clip"]
    shutil.copytree(hub / "snapshots" / OLD, hub / "snapshots" / NEW)
    (hub / "snapshots" / NEW / "model.safetensors").unlink()
    (hub / "refs" / "main").write_text(NEW)
    assert options("reward.terms.clip.options.model=org/clip")["model"] == f"org/clip@{NEW}"
    assert torch.equal(build(terms={"clip": {"model": model}}, shape=(3, 16, 16))(inputs)["clip"], before)
    build(terms={"text_image": {"model": model}, "clip": {"model": model}}, shape=(3, 16, 16), captions=True)
    assert options(f"reward.terms.clip.options.model=org/clip@{OLD}")["model"] == f"org/clip@{OLD}"


def test_the_default_and_the_judge_are_fixed_too(hub: Path) -> None:
    clip = hub.rename(hub.with_name("models--openai--clip-vit-large-patch14"))
    assert clip.is_dir()
    config = absolute(load("smoke", ["reward.terms.clip.weight=0.1", "evaluation.judge=openai/clip-vit-large-patch14"]))
    pinned = f"openai/clip-vit-large-patch14@{OLD}"
    assert config.reward.terms["clip"].options["model"] == config.evaluation.judge == pinned


def test_weights_alone_and_their_base_are_fixed_too(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = hub.with_name("models--RE-N-Y--hpsv21")
    shutil.copytree(hub, weights)
    for file in (weights / "snapshots" / OLD).iterdir():
        if file.name != "model.safetensors":
            file.unlink()
    monkeypatch.chdir(weights / "snapshots" / OLD)
    given = ["reward.terms.hps.weight=1", "reward.terms.hps.options.base=org/clip"]
    options = absolute(load("smoke", given)).reward.terms["hps"].options
    assert options == {"model": f"RE-N-Y/hpsv21@{OLD}", "base": f"org/clip@{OLD}"}
    given.append("reward.terms.hps.options.model=model.safetensors")
    options = absolute(load("smoke", given)).reward.terms["hps"].options
    assert options == {"model": str(Path("model.safetensors").resolve()), "base": f"org/clip@{OLD}"}


def test_an_encoder_that_is_not_to_be_had_is_told_by_the_term(hub: Path) -> None:
    assert options("reward.terms.clip.options.model=org/none")["model"] == "org/none"
    assert options("reward.terms.clip.options.model=/no/such/folder")["model"] == "/no/such/folder"


def test_the_encoder_of_a_search_is_fixed_too(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert absolute(load("smoke", ["search.frechet.encoder=org/clip"])).search.frechet.encoder == f"org/clip@{OLD}"
    monkeypatch.chdir(hub / "snapshots")
    assert absolute(load("smoke", [f"search.frechet.encoder={OLD}"])).search.frechet.encoder == str(Path(OLD).resolve())


def test_a_model_that_is_no_text_is_told_by_the_term(build) -> None:
    options = absolute(load("smoke", ["reward.terms={clip: {options: {model: 5}}}"])).reward.terms["clip"].options
    with pytest.raises(RewardError, match=r"reward\.terms\.clip\.options\.model=5"):
        build(terms={"clip": options}, shape=(3, 16, 16))


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def away(model: str) -> str:
        asked.append(model)
        raise RewardError("no answer")

    monkeypatch.setattr(paths, "pinned_encoder", away)
    terms = "reward.terms={clip: {options: {model: a/b}}, dino: {options: {model: c/d}}}"
    config = absolute(load("smoke", [terms, "evaluation.judge=e/f"]))
    assert len(asked) == 1 and config.reward.terms["dino"].options["model"] == "c/d"
