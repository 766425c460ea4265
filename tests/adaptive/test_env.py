from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from adaptive_tasks import minus_mse, tiny_task

from redif_ray.adaptive import denoising
from redif_ray.adaptive.env import DenoisingScheduleVectorEnv
from redif_ray.adaptive.episodes import Lanes, Task
from redif_ray.adaptive.observation import LOGIT
from redif_ray.adaptive.policy import Policy, static_table
from redif_ray.diffusion import noise, schedules, solvers


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return tiny_task(tmp_path_factory.mktemp("tiny"))


def acted(env: DenoisingScheduleVectorEnv, logit: float, stop: float) -> tuple[float, bool]:
    """Act in the only lane of `env`; return the reward and whether the image is finished."""
    _, rewards, done, truncated, _ = env.step(np.array([[logit, stop]], dtype=np.float32))
    assert not truncated.any()
    return float(rewards[0]), bool(done[0])


@torch.no_grad()
def test_rewards_sum_to_the_agreement_less_the_price_of_the_calls(task: Task) -> None:
    schedule = schedules.build(task.model.process, 4, "uniform_trailing")
    moves = denoising.fractions(task.model.process, schedule).numpy()
    env = DenoisingScheduleVectorEnv(task, 1)
    for seed in range(3):
        env.reset(seed=seed)
        group = env.lanes.groups[0]
        rewards = [acted(env, np.log(f / (1 - f)), -1)[0] for f in moves]
        assert rewards == [-2, -1, -1]
        last, done = acted(env, 0, 1)
        assert done
        unit = noise.initial_noise([group], task.model.latent_shape, seed=task.seed, stream=task.stream)
        condition = [task.conditions[group]]
        predict = task.model.predictor(task.model.encode(condition), 1.0)
        images = task.model.decode(solvers.sample("euler", predict, unit, schedule))
        agreement = float(minus_mse(images, torch.from_numpy(task.targets[[group]]), condition))
        assert task.price * (sum(rewards) + last) == pytest.approx(agreement - 4 * task.price, abs=1e-6)


def test_it_stops_by_itself_at_the_last_call_and_at_the_last_level(task: Task) -> None:
    env = DenoisingScheduleVectorEnv(replace(task, max_calls=3), 1)
    env.reset(seed=0)
    assert [acted(env, -2, -1)[1] for _ in range(2)] == [False, True]
    env = DenoisingScheduleVectorEnv(task, 1)
    env.reset(seed=0)
    assert acted(env, LOGIT, -1)[1]  # timestep 0
    assert acted(env, 0, -1) == (0, False)  # the next image starts
    reward, done = acted(env, 0, 1)  # the first x0_hat: one call
    assert done and reward < -1


def test_lanes_do_not_depend_on_each_other(task: Task) -> None:
    """Lane 0 of both sees the same images; finished lanes start again at the next step, with reward 0."""
    vector, single = DenoisingScheduleVectorEnv(task, 5), DenoisingScheduleVectorEnv(task, 1)
    seen, _ = vector.reset(seed=3)
    assert np.allclose(seen[0], single.reset(seed=3)[0][0], atol=1e-5)
    assert len({tuple(row) for row in seen.round(4)}) > 1
    done, ends = np.zeros(5, dtype=bool), 0
    for i in range(12):
        actions = np.stack([np.array([-0.5, -1 if (i + lane) % 4 else 1], dtype=np.float32) for lane in range(5)])
        before = done
        seen, rewards, done, truncated, _ = vector.step(actions)
        assert vector.observation_space.contains(seen) and not truncated.any()
        assert (rewards[before] == 0).all() and not done[before].any()
        one = single.step(actions[:1])
        assert np.allclose(seen[0], one[0][0], atol=1e-4)
        assert rewards[0] == pytest.approx(one[1][0], abs=1e-4)
        assert done[0] == one[2][0]
        ends += done.sum()
    assert ends > 5


def test_images_are_a_function_of_ids(task: Task) -> None:
    def drawn(salt: int) -> list[int]:
        lanes, groups = Lanes(task, 4), []
        lanes.reset(salt)
        for _ in range(4):
            lanes.done[:] = True
            lanes.step(np.zeros(4), np.zeros(4, dtype=bool))
            groups += lanes.groups
        return groups

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(salt)) for salt in range(4)}) == 4
    assert set(drawn(1)) <= set(range(12))


def test_the_untrained_policy_is_the_static_schedule(task: Task) -> None:
    process = task.model.process
    schedule = schedules.build(process, 4, "uniform_trailing")
    policy = Policy(task.size - 1, static_table(denoising.fractions(process, schedule).tolist(), task.max_calls))
    lanes, times = Lanes(task, 3), []
    seen = lanes.reset()
    for i in range(4):
        assert lanes.state is not None
        times.append(lanes.state.level.timestep.tolist())
        actions = policy(torch.from_numpy(seen[:, :-1])).detach().numpy()
        outcome = lanes.step(1 / (1 + np.exp(-actions[:, 0].astype(float))), actions[:, 1] > 0)
        seen = outcome.observations
        assert outcome.done.all() == (i == 3)
    assert [row[0] for row in times] == schedule.levels.timestep[:-1].tolist()
    assert all(len(set(row)) == 1 for row in times)
