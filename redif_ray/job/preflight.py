"""The checks of a run before Ray starts and before the run folder is created."""

from __future__ import annotations

import logging

from redif_ray.config import Config, ConfigError
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion.schedules import Schedule
from redif_ray.evaluation.clip_features import ClipFeatures
from redif_ray.evaluation.diversity import load_likeness
from redif_ray.evaluation.encoders import JudgeError, load_encoder
from redif_ray.evaluation.judge_source import RANDOM_FEATURES, judge_files, needs_reference
from redif_ray.evaluation.prdc import LEAST
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.export.card import licence
from redif_ray.export.carried import carried
from redif_ray.export.student import recipe
from redif_ray.job.rehearsal import rehearse
from redif_ray.learning.advantages import find_advantage
from redif_ray.learning.losses import find_loss
from redif_ray.learning.regularisers import find_divergence
from redif_ray.methods import phases_of
from redif_ray.models.captions import caption_warnings
from redif_ray.models.foreign import loading
from redif_ray.models.headers import check_finite
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import replaced, teacher_folder, teacher_outline, weights_of
from redif_ray.models.start import init_folder, init_settings
from redif_ray.models.student import check_targets
from redif_ray.planning import activations, factory
from redif_ray.types import told
from redif_ray.workers import runtime_env

MOST_REPEATS = 10  # held-out noises of a caption above which the evaluation says little about other captions
log = logging.getLogger(__name__)


def preflight(config: Config) -> Conditions:
    """Build what the workers will build, to find errors early, and return the conditions that the run draws.

    Raises UserError that names the configuration key.
    """
    rehearse(config)
    teacher, start = checked_models(config)
    if (replacement := replaced(teacher)) is not None:
        log.warning("%s", replacement)
    conditions = factory.conditions(config, teacher)
    _warn_of_long_captions(teacher, conditions)
    try:
        schedule = factory.student_schedule(start, config.student)
        factory.teacher_schedule(teacher, config)
    except ValueError as error:
        raise ConfigError(f"student.schedule or teacher.schedule: {error}") from error
    for key, model, guidance in (
        ("student", start, config.student.guidance),
        ("teacher", teacher, config.teacher.guidance),
    ):
        _check_guidance(key, guidance, model, conditions)
    _warn_of_other_guidance(config)
    _check_export(config, start, schedule)
    _check_named_functions(config)
    runtime_env.handed_over(config.reward)
    if (
        config.reward.runtime_env is None
    ):  # otherwise only reward workers can build the terms, and report at their start
        rewards = factory.rewards(config, teacher, "cpu")
        for phase in phases_of(config):
            phase.check(rewards)
    check_judge(config, teacher.image_shape, max(config.evaluation.held_out, config.validation.groups))
    _warn_of_few_captions(config, conditions)
    _check_weights(config, teacher, start)
    return conditions


def _check_weights(config: Config, teacher: DiffusionModel, start: DiffusionModel) -> None:
    """Raise ModelError that names the file with a weight that is NaN or infinite; this reads every weight once."""
    files = weights_of(teacher, teacher_folder(config.teacher))
    if config.student.init is not None:
        files += weights_of(start, init_folder(config.student.init, config.teacher))
    for path in dict.fromkeys(files):
        check_finite(path)


def checked_models(config: Config) -> tuple[DiffusionModel, DiffusionModel]:
    """Return the teacher and the model that the student starts as, without weights, after a call of each part.

    Raises ModelError for files that do not fit their configuration, and for parts that do not fit together.
    """
    teacher = teacher_outline(config.teacher, check=True)
    start = factory.start(config, teacher, check=True)
    check_targets(start.network, config.student.lora)
    with loading(f"{config.teacher.model}, as far as its parts fit together,"):
        for model in {id(each): each for each in (teacher, start)}.values():
            activations.predict(model, 1, 1.0)
        activations.decode(teacher, 1)
        if any(phase.encodes_images or phase.encodes_in_worker for phase in phases_of(config)):
            activations.encode_images(teacher, 1)  # raises for a family without it
    return teacher, start


def check_rounds(config: Config) -> None:
    """Raise ConfigError where a run would train for no round, and end with the untrained student."""
    if not phases_of(config):
        raise ConfigError(
            f"method={config.method}: warm_start.rounds={config.warm_start.rounds} and "
            f"learner.rounds={config.learner.rounds} leave no round to train; set warm_start.rounds, or learner.rounds "
            "for a method other than sfd"
        )


def _check_named_functions(config: Config) -> None:
    """Raise UserCodeError where the loss, the advantage or the divergence is the user's own and cannot be imported."""
    learner = config.learner
    find_loss(learner.loss)
    find_advantage(learner.advantage)
    if learner.regulariser.kind not in ("none", "mse"):
        find_divergence(learner.regulariser.kind)


def _warn_of_long_captions(teacher: DiffusionModel, conditions: Conditions) -> None:
    every = map(told, (*conditions.training, *conditions.held_out))
    captions = [caption for caption in dict.fromkeys(every) if isinstance(caption, str)]
    for text in caption_warnings(teacher, captions):
        log.warning("the teacher does not read all of what it is to draw: %s", text)


def _warn_of_other_guidance(config: Config) -> None:
    init, guidance = config.student.init, config.student.guidance
    own = None if init is None else init_settings(init, config.teacher)
    if own is not None and own["guidance"] != guidance:
        log.warning(
            "student.guidance=%g, and student.init=%s was trained to be sampled with %g; set student.guidance=%g to "
            "keep that",
            guidance,
            init,
            own["guidance"],
            own["guidance"],
        )


def _warn_of_few_captions(config: Config, conditions: Conditions) -> None:
    noises, captions = config.evaluation.held_out, len(conditions.held_out)
    if isinstance(told(conditions.held_out[0]), str) and noises > MOST_REPEATS * captions:
        log.warning(
            "evaluation.held_out=%d noises share %d held-out captions, %d noises a caption, so the final numbers say "
            "little about other captions; give more captions in conditions.source%s, or fewer noises",
            noises,
            captions,
            noises // captions,
            " (now the shipped list)" if config.conditions.source is None else "",
        )


def _check_guidance(key: str, guidance: float, teacher: DiffusionModel, conditions: Conditions) -> None:
    if guidance == 1:
        return
    if conditions.training == (None,):
        raise ConfigError(f"{key}.guidance={guidance}: the teacher is sampled without conditions; expected 1")
    try:
        teacher.check_guidance()
    except ModelError as error:
        raise ConfigError(f"{key}.guidance={guidance}: {error}") from error


def _check_export(config: Config, teacher: DiffusionModel, schedule: Schedule) -> None:
    """Raise ModelError where diffusers cannot sample the student or an export cannot copy the teacher's parts."""
    recipe(teacher, schedule, config.student.guidance)
    folder = teacher_folder(config.teacher)
    carried(teacher, folder)
    licence(folder)


def _check_held_out(config: Config) -> None:
    """Raise ConfigError where the teacher's images are the judge's reference and are too few for its limits.

    The limits compare two halves of the reference, which holds as many images as an arm.
    """
    evaluation = config.evaluation
    if needs_reference(evaluation.judge) and evaluation.held_out < 2 * LEAST:
        raise ConfigError(
            f"evaluation.held_out={evaluation.held_out}: judge {evaluation.judge} compares with as many images of the "
            f"teacher, of which each half must hold {LEAST}; expected at least {2 * LEAST}"
        )


def check_judge(config: Config, image_shape: tuple[int, ...], most: int) -> None:
    """Raise UserError where the judge, or the encoder of the diversity, cannot be loaded or does not take the images.

    image_shape: of the images. most: the number of them that the judge has to take.
    """
    _check_held_out(config)
    source = config.evaluation.judge
    if config.evaluation.diversity.encoder is not None:
        load_likeness(config.evaluation.diversity, image_shape)
    encoder = load_encoder(source, image_shape)
    if isinstance(encoder, ClipFeatures):
        encoder.captions(["a caption"])
    if needs_reference(source):
        return
    if encoder.image_shape != image_shape:
        raise ConfigError(
            f"evaluation.judge={source}: the judge takes images of {encoder.image_shape}, the "
            f"teacher makes {image_shape}; choose a judge of such images, or {RANDOM_FEATURES}, which needs no data"
        )
    reference = ReferenceImages(judge_files(source)[1], image_shape[0])
    if reference.shape != image_shape:
        raise JudgeError(f"{reference.path} holds images of {reference.shape}; judge {source} expects {image_shape}")
    if most > len(reference):
        raise ConfigError(
            f"evaluation.held_out={config.evaluation.held_out}, validation.groups={config.validation.groups}: judge "
            f"{encoder.name} has {len(reference)} reference images; expected at most as many"
        )
    if len(reference) < 2 * LEAST:
        raise ConfigError(
            f"evaluation.judge={source}: it has {len(reference)} reference images, of which each half must hold "
            f"{LEAST}; expected at least {2 * LEAST}"
        )
