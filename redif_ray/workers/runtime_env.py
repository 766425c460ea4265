"""The environment of the reward workers: what Ray makes of `reward.runtime_env`, and what it must not be told.

Ray merges an actor's variables into the job's, `cluster.ENVIRONMENT` among them; of the rest, an actor's own replaces
the job's. It writes all of it into its logs, so what the driver hands over goes to the worker's constructor instead.
"""

from __future__ import annotations

import os
from typing import Any

from redif_ray.config import ConfigError, Reward


def for_ray(reward: Reward) -> dict[str, Any]:
    """Ray's `runtime_env`; empty where there is nothing to say."""
    env = reward.runtime_env
    if env is None:
        return {}
    said = {name: value for name, value in env.env_vars.items() if value is not None}
    found = {"pip": list(env.pip), "py_modules": list(env.py_modules), "env_vars": said}
    return {key: value for key, value in found.items() if value}


def handed_over(reward: Reward) -> dict[str, str]:
    """Variables that reward workers get from this process. Raises ConfigError for one that it does not have."""
    names = [] if reward.runtime_env is None else [n for n, v in reward.runtime_env.env_vars.items() if v is None]
    for name in names:
        if name not in os.environ:
            raise ConfigError(
                f"reward.runtime_env.env_vars.{name}=null is the value that {name} has in the environment of this "
                "process, which has none; set it before the start"
            )
    return {name: os.environ[name] for name in names}


def failed(error: Exception) -> str:
    """What to say where Ray cannot make the environment. Its text ends with what pip, or whoever failed, said last."""
    told = " ".join(str(error).split())[-400:]
    return f"reward.runtime_env: a node cannot make this environment (its runtime_env_setup logs say more): ...{told}"
