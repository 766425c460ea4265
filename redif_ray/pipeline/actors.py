"""The workers as actors. Whoever holds a handle imports the actor's file, so this one imports torch only at work."""

from __future__ import annotations

from typing import Any

from redif_ray.config import Config


class StudentRolloutWorker:
    """`pipeline.rollout.StudentRolloutWorker` in a process of its own."""

    def __init__(self, name: str, config: Config) -> None:
        from redif_ray.pipeline import rollout

        self._worker = rollout.StudentRolloutWorker(name, config)

    def ready(self) -> str:
        return self._worker.ready()

    def rollout(self, *arguments: Any) -> Any:
        return self._worker.rollout(*arguments)


class TeacherRewardWorker:
    """`pipeline.reward.TeacherRewardWorker` in a process of its own."""

    def __init__(self, name: str, config: Config) -> None:
        from redif_ray.pipeline import reward

        self._worker = reward.TeacherRewardWorker(name, config)

    def ready(self) -> str:
        return self._worker.ready()

    def targets(self, *arguments: Any) -> Any:
        return self._worker.targets(*arguments)

    def jump(self, *arguments: Any) -> Any:
        return self._worker.jump(*arguments)

    def score(self, *arguments: Any) -> Any:
        return self._worker.score(*arguments)

    def sample(self, *arguments: Any) -> Any:
        return self._worker.sample(*arguments)
