"""Everything that can be found wrong with a run before Ray starts and before its folder is made."""

from __future__ import annotations

from redif_ray.config import Config, ConfigError
from redif_ray.evaluation.judge import load_judge
from redif_ray.evaluation.random_features import NAME
from redif_ray.export import require_exportable
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student
from redif_ray.pipeline import build
from redif_ray.pipeline.plan import RoundPlan


def preflight(config: Config) -> None:
    """Build once what the workers will build. Raises UserError naming the key."""
    teacher = load_model(config.teacher.model)
    require_exportable(teacher)
    make_student(teacher, config.student.lora)
    RoundPlan(config, teacher.num_classes)
    try:
        build.student_schedule(teacher, config.student)
        build.teacher_schedule(teacher, config)
    except ValueError as error:
        raise ConfigError(f"student.schedule or teacher.schedule: {error}") from error
    for key, guidance in (("student", config.student.guidance), ("teacher", config.teacher.guidance)):
        if guidance != 1 and teacher.num_classes is None:
            raise ConfigError(f"{key}.guidance={guidance}: the teacher is unconditional; expected 1")
    rewards = build.rewards(config, teacher, "cpu")
    if config.method == "draft":
        rewards.require_differentiable("method=draft")
    _check_judge(config, teacher.image_shape)


def _check_judge(config: Config, image_shape: tuple[int, ...]) -> None:
    if config.evaluation.judge == NAME:
        return
    judge = load_judge(config.evaluation.judge)
    if judge.encoder.image_shape != image_shape:
        raise ConfigError(
            f"evaluation.judge={config.evaluation.judge}: it sees images of {judge.encoder.image_shape}, the teacher "
            f"makes {image_shape}; expected a judge of such images, or {NAME}, which needs no data"
        )
    count = len(judge.reference)
    if max(config.evaluation.held_out, config.validation.groups) > count:
        raise ConfigError(
            f"evaluation.held_out={config.evaluation.held_out}, validation.groups={config.validation.groups}: judge "
            f"{judge.name} has {count} reference images; expected at most as many"
        )
