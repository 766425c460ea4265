"""What a role puts aside while others have the GPU: everything, and nothing of it changes."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import second_device
import torch
from ray.exceptions import RayActorError
from smoke_runs import last_weights, smoke, train
from torch import Tensor
from torch.nn import Module

from redif_ray.adaptive.worker import AdaptiveActor
from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config, Lora, load
from redif_ray.coordinator.pool import Pool
from redif_ray.diffusion.noise import Stream
from redif_ray.faults import Stopping
from redif_ray.learner.learner import Learner
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student, trainable
from redif_ray.planning import factory
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.timeline import SPANS
from redif_ray.search.evaluator import SearchActor
from redif_ray.types import WorkUnit
from redif_ray.workers import actors
from redif_ray.workers.offload import Belonging, Offload, move


def trained(rank: int, device: str = "cpu") -> tuple[list[Module], torch.optim.Optimizer, ExponentialAverage]:
    """Networks of a learner after a step of Adam, the optimiser and the average."""
    teacher = load_model("fashion-mnist", device=device)
    student = make_student(teacher, Lora(rank=rank))
    parameters = trainable(student)
    optimizer = torch.optim.AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()
    return [student.network, teacher.network], optimizer, ExponentialAverage(parameters, 0.9)


def tensors(networks: list[Module], optimizer: torch.optim.Optimizer, average: ExponentialAverage) -> list[Tensor]:
    moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    return [*(t for n in networks for t in (*n.parameters(), *n.buffers())), *moments, *average.average.values()]


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_nothing_stays(rank: int) -> None:
    """The device "meta" stands for the host: what went there can be told from what did not."""
    networks, optimizer, average = trained(rank)
    assert not any(t.is_meta for t in tensors(networks, optimizer, average))
    move([*networks, optimizer, average.average], "meta")
    assert all(t.is_meta for t in tensors(networks, optimizer, average))
    assert not any(p.grad is not None for n in networks for p in n.parameters())
    assert all(state["step"].device.type == "cpu" for state in optimizer.state.values())


@pytest.mark.slow
@pytest.mark.parametrize("device", second_device.DEVICES)
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_all_comes_back_to_a_device_as_it_was(rank: int, device: str) -> None:
    networks, optimizer, average = trained(rank, device)
    held: list[Belonging] = [*networks, optimizer, average.average]
    before = [t.cpu() for t in tensors(networks, optimizer, average)]
    known = [id(p) for group in optimizer.param_groups for p in group["params"]]
    offload = Offload(device, lambda: held, taken=True)
    with offload.resting():
        assert {t.device.type for t in tensors(networks, optimizer, average)} == {"cpu"}
        assert device != "cuda" or torch.cuda.memory_allocated() < 1e6
    after = tensors(networks, optimizer, average)
    assert {t.device.type for t in after} == {device}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(after, before, strict=True))
    assert known == [id(p) for group in optimizer.param_groups for p in group["params"]]
    if device == "cuda":  # of the stand-in's tensors, which are of a class of their own, torch makes new parameters
        assert known == [id(p) for p in networks[0].parameters() if p.requires_grad]


@pytest.mark.slow
def test_the_networks_of_all_terms_are_found_once() -> None:
    emoji = load("emoji_4step", ["reward.terms.discriminator={normalise: std}"])
    teacher = load_model("emoji")
    rewards = factory.rewards(emoji, teacher, "cpu")
    found = [type(network).__name__ for network in rewards.networks()]
    assert sorted(found) == ["CLIPTextModelWithProjection", "CLIPVisionModelWithProjection", "Discriminator"]
    fashion = load("fashion_mnist", ["reward.terms={feature_cosine: {}, classifier: {}, mse: {}}"])
    assert {type(n).__name__ for n in factory.rewards(fashion, load_model("fashion-mnist"), "cpu").networks()} == {
        "Classifier"
    }


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return smoke(tmp_path, "aside", "pipeline.colocate=true")


def test_a_worker_is_on_its_device_from_a_call_to_the_next_rest(config: Config, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    worker = actors.RewardActor("reward-0", config, token)
    offload: Offload = worker._resting.offload
    where = [offload.awake]
    unit = WorkUnit(0, 0, "deploy", Stream.VALIDATION, (0,), (0,))
    worker.targets(unit)
    where.append(offload.awake)
    worker.rest()
    where.append(offload.awake)
    assert where == [False, True, False]
    rollout = actors.RolloutActor("rollout-0", config, token)
    assert not rollout._resting.offload.awake
    assert rollout._worker is rollout._resting and rollout._resting.offload.awake


CALLS = [
    (kind, name)
    for kind in (actors.RolloutActor, actors.RewardActor, SearchActor, AdaptiveActor)
    for name in vars(kind)
    if not name.startswith("_") and name != "source"
]


@pytest.mark.parametrize(("kind", "name"), CALLS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_every_call_wakes_its_worker(kind: type[actors.Actor], name: str) -> None:
    woken: list[str] = []
    asked = "sent_targets" if (kind, name) == (actors.RewardActor, "targets") else name
    actor = kind.__new__(kind)
    actor._resting = SimpleNamespace(
        offload=SimpleNamespace(wake=lambda: woken.append("wake")), **{asked: lambda: woken.append("call")}
    )
    getattr(actor, name)()
    assert woken == ["wake", "call"]


class Resting:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.rested = error, 0
        self.rest = SimpleNamespace(remote=self._rest)

    async def _rest(self) -> None:
        self.rested += 1
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, RayActorError(), RuntimeError("full")], ids=["here", "gone", "broken"])
def test_a_pool_rests_whoever_is_there(error: Exception | None) -> None:
    workers = [Resting(error), Resting(), Resting()]
    pool = Pool("rollout", workers, print)
    pool.here = dict.fromkeys(workers[:2], ("name", 0.0))
    with pytest.raises(RuntimeError, match="full") if isinstance(error, RuntimeError) else nullcontext():
        asyncio.run(pool.rest())
    assert [worker.rested for worker in workers] == [1, 1, 0]


@pytest.mark.cluster
def test_taking_turns_changes_nothing(first: Path, plain: str) -> None:
    assert last_weights(first) == plain
    rows = [row for row in read_rows(first / "metrics.jsonl") if row["round"] >= 0]
    assert rows and all("seconds/offload" in row for row in rows)
    assert weights_sha256(get_weights(make_student(load_model("fashion-mnist"), Lora()))) != plain


class Noted:
    """What a rank does, in order, in place of the ranks, the networks and the coordinator of a learner."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def note(self, event: str) -> Any:
        return lambda *_: self.events.append(event)


@pytest.mark.parametrize("taken", [True, False])
def test_ranks_leave_and_take_their_devices_together(taken: bool) -> None:
    """No rank asks for workers' images before all have left, and none comes back before all have their data."""
    noted = Noted()
    learner = Learner.__new__(Learner)
    learner.ranks = SimpleNamespace(wait=noted.note("meet"))
    learner.offload = Offload("meta", list, taken=taken)
    learner.offload._move = noted.note("move")
    with pytest.raises(Stopping), learner._workers_turn():
        noted.events.append("ask")
        raise Stopping
    assert noted.events == (["move", "meet", "ask", "meet", "move"] if taken else ["ask"])


@pytest.mark.cluster
@pytest.mark.long
def test_two_ranks_take_turns_with_the_workers(root: Path) -> None:
    """Their weights are those of ranks that have devices of their own, and no worker computes while one updates."""
    two = ("learner.workers=2", "rollout.max_workers=2", "reward.max_workers=2")
    apart = train(smoke(root, "apart", *two))
    turns = train(smoke(root, "turns", *two, "pipeline.colocate=true"))
    assert last_weights(turns) == last_weights(apart)
    spans = read_rows(turns / SPANS)
    updates = [span for span in spans if span["stage"] == "update"]
    work = [span for span in spans if span["row"].startswith(("rollout", "reward"))]
    assert {span["row"] for span in updates} == {"learner-0", "learner-1"} and len(work) > 8
    for update in updates:
        ends = update["start"] + update["seconds"]
        assert not [w for w in work if w["start"] < ends and update["start"] < w["start"] + w["seconds"]]
