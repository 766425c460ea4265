"""Small students and rounds for the tests of learning: everything real but the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from redif_ray.config import Learner
from redif_ray.diffusion import noise
from redif_ray.diffusion.levels import Level, VariancePreserving, like
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.rollout import rollout
from redif_ray.diffusion.schedules import Schedule, build
from redif_ray.diffusion.transition import Prediction
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.update import Updater

ETA = 0.6
FULL = 1e9  # a gradient norm that is never reached


def process() -> VariancePreserving:
    return VariancePreserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))


def schedule(steps: int = 3) -> Schedule:
    return build(process(), steps, "uniform_trailing")


def values(count: int, group: int = 0) -> Tensor:
    """Fixed normals, for weights and data."""
    return torch.from_numpy(noise.normal(count, Stream.CALIBRATION, seed=11, group=group))


def from_x0(x: Tensor, x0: Tensor, level: Level) -> Prediction:
    return Prediction(x0, (x - like(level.alpha, x) * x0) / like(level.sigma, x))


class Affine(nn.Module):
    """x0_hat = w x + b: all of its trajectories are Gaussian."""

    def __init__(self, w: float = 0.4, b: float = 0.3) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))

    def predict(self, x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
        return from_x0(x, self.w * x + self.b, level)


class Tiny(nn.Module):
    """A conditional two-layer network on latents [B, 2, 3]."""

    def __init__(self, group: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.first, self.second, self.label = nn.Linear(7, 8), nn.Linear(8, 6), nn.Embedding(3, 8)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.3 * values(p.numel(), group=100 * group + i).reshape(p.shape))

    def predict(self, x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
        time = (level.timestep / 1000).to(x.dtype).expand(len(x)).unsqueeze(1)
        hidden = torch.tanh(self.first(torch.cat([x.flatten(1), time], 1)) + self.label(encoded["label"]))
        return from_x0(x, self.second(hidden).reshape(x.shape), level)


def play(
    model: Affine | Tiny,
    x: Tensor,
    stds: Tensor,
    *,
    round: int = 0,
    anchors: bool = False,
    labels: Tensor | None = None,
) -> RoundBatch:
    """A round of R rows from x_T = x [R, ...] with random advantages, at the model's present weights."""
    rows, steps = len(x), len(stds)
    encoded = {"label": torch.arange(rows) % 3 if labels is None else labels}

    def draw(k: int) -> Tensor:
        z = noise.normal(x.numel(), Stream.EXPLORATION, seed=3, round=round, step=k)
        return torch.from_numpy(z).reshape(x.shape)

    episode = rollout(lambda x, level: model.predict(x, level, encoded), x, schedule(steps), stds, draw)
    shift = values(episode.means.numel(), group=7).reshape(episode.means.shape)
    return RoundBatch(
        rows=torch.arange(rows),
        total_rows=rows,
        latents=episode.latents,
        means=episode.means,
        log_probs=episode.log_probs,
        advantages=values(rows, group=9),
        encoded=encoded,
        anchors=episode.means + 0.2 * shift if anchors else None,
    )


def tiny_round(
    model: Tiny, *, rows: int = 8, steps: int = 3, round: int = 0, anchors: bool = False, last_step: bool = False
) -> tuple[RoundBatch, Tensor]:
    stds = schedule(steps).stds(ETA, "posterior", last_step)
    x = values(rows * 6, group=50 + round).reshape(rows, 2, 3)
    return play(model, x, stds, round=round, anchors=anchors), stds


def updater(model: Affine | Tiny, stds: Tensor, config: Learner, **options: Any) -> Updater:
    """Plain gradient descent, so that a change of weights is lr times the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Updater(model.predict, optimizer, schedule(len(stds)), stds, config, **{"ratio_tolerance": 1e-4} | options)


def flat(model: Affine | Tiny) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def change(model: Affine | Tiny, batch: RoundBatch, stds: Tensor, config: Learner, **options: Any) -> Tensor:
    """Minus the gradient, where there is one optimiser step."""
    before = flat(model)
    updater(model, stds, config, **options).run(batch, round=0, seed=0, lr=1.0)
    return flat(model) - before
