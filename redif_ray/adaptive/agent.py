"""Training of an agent by RLlib's PPO (Schulman et al., arXiv 1707.06347), on environments that batch network calls.

Episodes are a few steps long and most of their reward comes at their end, so an advantage is the whole return minus
the critic's value (gamma = lambda = 1). The critic also observes the agreement so far; deployment does not need it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
from torch import Tensor

from redif_ray.adaptive import denoising
from redif_ray.adaptive.critic import Critic
from redif_ray.adaptive.env import DenoisingScheduleVectorEnv
from redif_ray.adaptive.policy import Policy, static_table
from redif_ray.adaptive.tasks import Goal, make_task
from redif_ray.config import Config
from redif_ray.diffusion import schedules
from redif_ray.diffusion.levels import NoiseProcess
from redif_ray.types import Condition

ENV = "DenoisingScheduleVectorEnv"
EPOCHS, MINIBATCHES = 8, 8


class ScheduleModule(TorchRLModule, ValueFunctionAPI):
    """RLlib's module around a `Policy` and a `Critic`.

    model_config: `table`, the policy's static table, [max_calls][2] floats; `steps`, N of the initial static schedule.
    """

    def setup(self) -> None:
        size, table = self.observation_space.shape[0] - 1, torch.tensor(self.model_config["table"])
        self.policy, self.critic = Policy(size, table), Critic(size, self.model_config["steps"], len(table))
        self.action_dist_cls = TorchDiagGaussian

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        mean = self.policy(batch[Columns.OBS][:, :-1])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, self.policy.spread.log().expand_as(mean)], 1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        return self.critic(batch[Columns.OBS])


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that an environment needs to train one agent.

    weights: by name, the weight of each reward term; conditions: one for each training noise; targets: a Ray reference
    to the teacher's images of these noises, float32 [M, C, H, W] in [0, 1].
    """

    config: Config
    goal: Goal
    weights: dict[str, float]
    conditions: tuple[Condition, ...]
    targets: Any


def make_env(context: Any) -> DenoisingScheduleVectorEnv:
    """Build the vector environment of one RLlib worker. context: RLlib's, with our `training` and its `num_envs`.

    RLlib resets the environment of each worker with a seed of its own, so workers see different images.
    """
    t: Training = context["training"]
    torch.set_num_threads(t.config.reward.threads)
    task = make_task(t.config, t.goal, t.weights, t.conditions, ray.get(t.targets))
    return DenoisingScheduleVectorEnv(task, context["num_envs"])


@contextmanager
def ppo(training: Training, process: NoiseProcess) -> Iterator[PPO]:
    """Start RLlib's PPO and its workers, yield the algorithm, and stop both at the end of the block."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # RLlib's warnings only advertise its new API
    register_env(ENV, make_env)
    config, goal, a = training.config, training.goal, training.config.search.adaptive
    moves = denoising.fractions(process, schedules.explicit(process, goal.timesteps)).tolist()
    start = {"table": static_table(moves, goal.max_calls).tolist(), "steps": goal.steps}
    algorithm = (
        PPOConfig()
        .environment(ENV, env_config={"training": training}, normalize_actions=False, clip_actions=True)
        .env_runners(
            num_env_runners=config.reward.first,
            num_envs_per_env_runner=a.envs,
            num_cpus_per_env_runner=config.reward.cpus,
            num_gpus_per_env_runner=config.reward.gpus,
            custom_resources_per_env_runner=config.reward.resources,
            gym_env_vectorize_mode="vector_entry_point",
            create_env_on_local_worker=False,
            sample_timeout_s=config.pipeline.timeout_s,
        )
        .learners(num_learners=0)
        .reporting(metrics_num_episodes_for_smoothing=512)
        .training(
            gamma=1.0,
            lambda_=1.0,
            lr=a.lr,
            train_batch_size_per_learner=a.batch,
            num_epochs=EPOCHS,
            minibatch_size=max(1, a.batch // MINIBATCHES),
            use_kl_loss=False,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            grad_clip=1.0,
            entropy_coeff=0.0,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ScheduleModule, model_config=start))
        .fault_tolerance(restart_failed_env_runners=True)
        .debugging(seed=config.run.seed % 2**31, log_level="ERROR")
        .build_algo()
    )
    try:
        yield algorithm
    finally:
        algorithm.stop()


def weights(algorithm: PPO) -> dict[str, Tensor]:
    """Return a copy of the policy's parameters and buffers, by their names in `Policy`."""
    state = algorithm.get_module().policy.state_dict()
    return {name: value.detach().clone() for name, value in state.items()}


def mean_return(result: dict[str, Any]) -> float:
    """Return an iteration's mean return, in units of the price; NaN before an episode has ended."""
    return float(result["env_runners"].get("episode_return_mean", math.nan))
