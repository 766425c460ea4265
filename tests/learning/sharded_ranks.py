"""Two processes that share out a tiny student, two that have it each, and one, doing the same updates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from learning_toy import ETA, play, schedule
from safetensors.torch import save_file
from tiny_models import normal
from torch import Tensor

from redif_ray.checkpoint import load_checkpoint, save_checkpoint
from redif_ray.config import Anchor, Learner, Lora, Regulariser
from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.transition import Prediction
from redif_ray.learner.ranks import Ranks
from redif_ray.learner.train_state import load_trained, trained
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.learning.update import Updater
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model
from redif_ray.models.sharding import local, shard, whole
from redif_ray.models.student import (
    enable_checkpointing,
    get_weights,
    make_student,
    set_weights,
    trainable,
    with_weights,
)

CASES = {"full": Lora(), "adapters": Lora(rank=2, targets=("to_q", "to_k"))}
HELD = (torch.tensor([0, 1, 6, 7, 4, 3]), torch.tensor([2, 5]))  # rows of each rank: one has thrice the other's
CONFIG = Learner(
    minibatch=7,
    inner_epochs=2,
    clip=0.1,
    microbatch=2,
    max_grad_norm=1e-4,
    anchor=Anchor(weight=0.5),
    regulariser=Regulariser(kind="kl", weight=0.3),
)
EMA = 0.9


class Policy:
    """A student as the toy's rounds take it."""

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model

    def predict(self, x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
        return self.model.predict(x, level, {"class_labels": encoded["label"]})


class Run:
    """Rounds whose weights are one round old when they are played, on one rank or several."""

    def __init__(self, folder: Path, case: str, rank: int = 0, world: int = 1, *, sharded: bool = True) -> None:
        teacher = load_model(folder)
        self.player = make_student(teacher, CASES[case])
        self.student = make_student(teacher, CASES[case])
        enable_checkpointing(self.student)
        self.rank, self.world = rank, world
        if sharded and world > 1:
            shard(self.student)
            shard(teacher)
        self.optimizer = torch.optim.AdamW(trainable(self.student).values(), lr=1e-3)
        self.average = ExponentialAverage(trainable(self.student), EMA)
        self.versions = [get_weights(self.student)]
        self.stds = schedule(3).stds(ETA, "posterior", False)
        self.updater = Updater(
            Policy(self.student).predict,
            self.optimizer,
            schedule(3),
            self.stds,
            CONFIG,
            ratio_tolerance=1e-3,
            reference=Policy(teacher).predict,
            rank=rank,
            world=world,
            sharded=sharded and world > 1,
            all_reduce=Ranks(rank, world).all_reduce,
        )

    def round(self, round: int) -> dict[str, float]:
        behaviour = self.versions[max(0, round - 1)]
        set_weights(self.player, behaviour)
        x = normal(8, 1, 8, 8, seed=50 + round)
        batch = play(Policy(self.player), x, self.stds, round=round, anchors=True)
        block = with_weights(self.student, behaviour) if round else None
        metrics = self.updater.run(self._mine(batch), round=round, seed=0, lr=1e-3, behaviour=block)
        self.average.update(trainable(self.student))
        self.versions.append(get_weights(self.student))
        return metrics

    def _mine(self, batch: RoundBatch) -> RoundBatch:
        rows = HELD[self.rank] if self.world > 1 else torch.arange(8)
        assert batch.anchors is not None
        return RoundBatch(
            rows=rows,
            total_rows=8,
            latents=batch.latents[:, rows],
            means=batch.means[:, rows],
            log_probs=batch.log_probs[:, rows],
            advantages=batch.advantages[rows],
            encoded={k: v[rows] for k, v in batch.encoded.items()},
            anchors=batch.anchors[:, rows],
        )

    def state(self) -> dict[str, Tensor]:
        return trained(self.student, self.optimizer, self.average)

    def load(self, folder: Path) -> None:
        load_trained(self.student, self.optimizer, self.average, load_checkpoint(folder)[0])
        self.versions = [get_weights(self.student)] * 3

    def part(self) -> float:
        """Bytes that this rank holds, of a whole student's: frozen and trained weights, moments and average."""
        moments = [v for s in self.optimizer.state.values() for v in s.values() if v.ndim]
        held = [*self.student.network.parameters(), *moments, *self.average.average.values()]
        return sum(local(t).untyped_storage().nbytes() for t in held) / sum(t.numel() * 4 for t in held)


def gradients(student: DiffusionModel, ranks: range) -> None:
    condition = "a caption" if student.takes_captions else 1 if student.num_classes else None
    for rank in ranks:
        x, encoded = normal(2, *student.latent_shape, seed=rank), student.encode([condition] * 2)
        student.predict(x, student.process.noisiest(), encoded).x0.square().mean().backward()


def family(folder: Path, rank: int) -> tuple[bool, float]:
    """Whether a sharded network answers what a whole one does, and how far its gradient is off, relative to it."""
    student = make_student(load_model(folder), Lora())
    enable_checkpointing(student)

    @torch.no_grad()
    def answer() -> Tensor:
        condition = "a caption" if student.takes_captions else 1 if student.num_classes else None
        encoded = student.encode([condition] * 2)
        return student.predict(normal(2, *student.latent_shape, seed=9), student.process.noisiest(), encoded).x0

    before = answer()
    gradients(student, range(2))
    expected = {n: p.grad.clone() for n, p in trainable(student).items() if p.grad is not None}
    student.network.zero_grad()
    shard(student)
    same = torch.equal(answer(), before)
    gradients(student, range(rank, rank + 1))
    found = whole({n: p.grad for n, p in trainable(student).items() if p.grad is not None})
    assert found.keys() == expected.keys()
    off = max(float((found[n] - g).norm()) for n, g in expected.items())
    return same, off / max(float(g.norm()) for g in expected.values())


def work(rank: int, root: Path, cases: list[str], teacher: Path, families: dict[str, Path]) -> None:
    """What a process does. Rank 0 leaves under `root` what it found."""
    torch.set_num_threads(1)
    meet = f"file://{root}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    leave: Callable[..., None] = save_checkpoint if rank == 0 else lambda *_: None
    for case in cases:
        for name, sharded in (("sharded", True), ("each", False)):
            run = Run(teacher, case, rank, 2, sharded=sharded)
            metrics = run.round(0) | run.round(1)
            parts = torch.zeros(2)
            parts[rank] = run.part()
            dist.all_reduce(parts)
            leave(root / f"{case}-{name}-2", run.state(), {"metrics": metrics, "part": parts.tolist()})
            run.round(2)
            leave(root / f"{case}-{name}-3", run.state(), {})
        other = Run(teacher, case, rank, 2)  # goes on from the checkpoint of one that was not sharded
        other.load(root / f"{case}-whole-2")
        leave(root / f"{case}-reloaded-2", other.state(), {})
        other.round(2)
        leave(root / f"{case}-reloaded-3", other.state(), {})
    found = {name: torch.tensor(family(folder, rank)) for name, folder in families.items()}
    if rank == 0:
        save_file(found, root / "families.safetensors")
    dist.barrier()
    dist.destroy_process_group()
