from __future__ import annotations

import os

import pytest
import ray

from redif_ray.cluster.connect import ENVIRONMENT

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def test_workers_inherit_the_environment_and_start_once() -> None:
    @ray.remote(num_cpus=0)
    def found() -> tuple[dict[str, str | None], str]:
        return {name: os.environ.get(name) for name in ENVIRONMENT}, ray.get_runtime_context().get_runtime_env_string()

    variables, environment = ray.get(found.remote())
    assert variables == {name: os.environ[name] for name in ENVIRONMENT}
    assert environment == "{}"
