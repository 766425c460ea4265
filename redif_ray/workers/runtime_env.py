"""The environment of the reward workers: `reward.runtime_env`, and variables that must not reach Ray's logs.

Ray merges an actor's `env_vars` into the job's, which include `cluster.ENVIRONMENT`; any other field of an actor
replaces the job's. Ray writes the whole runtime_env into its logs, so variables whose value the driver hands over go to
the worker's constructor instead.
"""

from __future__ import annotations

import os
from typing import Any

from redif_ray.config import ConfigError, Reward


def for_ray(reward: Reward) -> dict[str, Any]:
    """Return the actor's `runtime_env` for Ray, without empty fields; variables to hand over are left out."""
    env = reward.runtime_env
    if env is None:
        return {}
    variables = {name: value for name, value in env.env_vars.items() if value is not None}
    fields = {"pip": list(env.pip), "py_modules": list(env.py_modules), "env_vars": variables}
    return {key: value for key, value in fields.items() if value}


def handed_over(reward: Reward) -> dict[str, str]:
    """Return the variables that reward workers get from this process. Raises ConfigError for an unset variable."""
    names = [] if reward.runtime_env is None else [n for n, v in reward.runtime_env.env_vars.items() if v is None]
    for name in names:
        if name not in os.environ:
            raise ConfigError(
                f"reward.runtime_env.env_vars.{name}=null takes the value of {name} from the environment of this "
                "process, where it is not set; set it before the start"
            )
    return {name: os.environ[name] for name in names}


def failed(error: Exception) -> str:
    """Return the message for an environment that Ray cannot make; Ray's text ends with the cause, say pip's error."""
    cause = " ".join(str(error).split())[-400:]
    return f"reward.runtime_env: a node cannot make this environment (its runtime_env_setup logs say more): ...{cause}"
