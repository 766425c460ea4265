"""The reward terms of a run: built from the configuration, evaluated on images, and checked.

Every value of a term is checked here, so that a term which returns NaN stops the run instead of counting as 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import Module

from redif_ray import config
from redif_ray.config.uris import revealed
from redif_ray.rewards.aesthetic import Aesthetic
from redif_ray.rewards.blurred_mse import BlurredMse
from redif_ray.rewards.callable import CallableTerm
from redif_ray.rewards.classifier import ClassifierTerm
from redif_ray.rewards.clip import Clip
from redif_ray.rewards.dino import Dino
from redif_ray.rewards.discriminator import DiscriminatorTerm
from redif_ray.rewards.feature_cosine import FeatureCosine
from redif_ray.rewards.gradient_mse import GradientMse
from redif_ray.rewards.histogram_kl import HistogramKl
from redif_ray.rewards.hps import Hps
from redif_ray.rewards.http import HttpTerm
from redif_ray.rewards.image_reward import ImageReward
from redif_ray.rewards.jpeg_compressibility import JpegCompressibility
from redif_ray.rewards.lpips import Lpips
from redif_ray.rewards.mse import Mse
from redif_ray.rewards.names import problem
from redif_ray.rewards.perception import Perception
from redif_ray.rewards.pick_score import PickScore
from redif_ray.rewards.psnr import Psnr
from redif_ray.rewards.ssim import Ssim
from redif_ray.rewards.term import RewardError, RewardInputs, RewardTerm, Setting
from redif_ray.rewards.text_image import TextImage
from redif_ray.types import told
from redif_ray.user_code.errors import UserCodeError
from redif_ray.user_code.state import state_kept

__all__ = [
    "TERMS",
    "RewardError",
    "RewardInputs",
    "RewardTerm",
    "Rewards",
    "Setting",
    "build_terms",
]

TERMS: dict[str, Any] = {
    term.name: term
    for term in (
        Mse,
        Psnr,
        Ssim,
        GradientMse,
        BlurredMse,
        FeatureCosine,
        ClassifierTerm,
        HistogramKl,
        JpegCompressibility,
        Clip,
        TextImage,
        PickScore,
        Hps,
        ImageReward,
        Dino,
        Perception,
        Lpips,
        Aesthetic,
        DiscriminatorTerm,
    )
}
TOLERANCE = 1e-6  # a pixel may lie this far outside [0, 1]


@dataclass(frozen=True)
class Rewards:
    """The reward terms of a run by label, in the order of the configuration."""

    terms: Mapping[str, RewardTerm]
    setting: Setting

    def __post_init__(self) -> None:
        if not self.terms:
            raise RewardError("reward.terms is empty; expected at least one term")

    @property
    def learned(self) -> DiscriminatorTerm | None:
        """Return the term whose weights a run trains, or None if no term is learned."""
        return next((term for term in self.terms.values() if isinstance(term, DiscriminatorTerm)), None)

    def only(self, names: Sequence[str]) -> Rewards:
        """Return the terms of these labels, at least one, in the order of the configuration."""
        return Rewards({name: term for name, term in self.terms.items() if name in names}, self.setting)

    def networks(self) -> list[Module]:
        """List the networks that the terms use, each once; networks inside a user's function are not included."""
        attributes = [value for term in self.terms.values() for value in vars(term).values()]
        candidates = [getattr(value, "network", value) for value in attributes]
        return list(dict.fromkeys(network for network in candidates if isinstance(network, Module)))

    def require_differentiable(self, purpose: str) -> None:
        """Raise `RewardError`, naming the terms that have no gradient, unless every term is differentiable.

        purpose: the setting that needs the gradient, for the message.
        """
        hard = [label for label, term in self.terms.items() if not term.differentiable]
        if hard:
            names = ", ".join(hard)
            raise RewardError(f"{purpose} needs differentiable rewards; remove from reward.terms: {names}")

    def __call__(self, inputs: RewardInputs) -> dict[str, Tensor]:
        """Return the raw value of every term, [B] each, with its gradient, in the student's dtype and on its device.

        Raises `RewardError` for invalid images or conditions, and for a term whose value has another shape than [B], is
        not finite, or lacks a gradient although the term is differentiable, or that alters its images or a global
        setting of torch. An exception of a term itself carries a note with the term's label.
        """
        # A copy caches features, for the length of this call only.
        given, raw = replace(inputs, conditions=[told(condition) for condition in inputs.conditions]), {}
        self._check_inputs(given)
        for label, term in self.terms.items():
            try:
                with state_kept():
                    value = term(given)
            except (RewardError, UserCodeError) as error:
                raise RewardError(f"reward term {label!r}: {error}") from error
            except Exception as error:
                error.add_note(f"in reward term {label!r}")
                raise
            raw[label] = _checked(label, term, value, inputs.student)
        return raw

    def _check_inputs(self, inputs: RewardInputs) -> None:
        batch, shape = len(inputs.conditions), self.setting.image_shape
        for role, images in (("student", inputs.student), ("teacher", inputs.paired)):
            if images is not None:
                _check_images(role, images, (batch, *shape))
        if any("caption" in term.needs for term in self.terms.values()):
            for row, condition in enumerate(inputs.conditions):
                if not isinstance(condition, str):
                    raise RewardError(f"condition {condition!r} of row {row}: expected a caption")
        if any("class" in term.needs for term in self.terms.values()):
            for row, condition in enumerate(inputs.conditions):
                if type(condition) is not int or not 0 <= condition < self.setting.num_classes:
                    classes = self.setting.num_classes
                    raise RewardError(f"condition {condition!r} of row {row}: expected an int in [0, {classes})")


def _check_images(role: str, images: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(images.shape) != shape:
        actual, expected = list(images.shape), list(shape)
        raise RewardError(f"{role} images have shape {actual}; expected {expected}, one image a condition")
    if images.dtype not in (torch.float32, torch.float64):
        raise RewardError(f"{role} images are {images.dtype}; expected float32 in [0, 1]")
    if not images.numel():
        raise RewardError(f"there are no {role} images; expected at least one")
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also true of NaN
        raise RewardError(
            f"{role} images span [{low:g}, {high:g}]; expected [0, 1]: map a model's [-1, 1] by (x + 1) / 2 and clamp"
        )


def _checked(label: str, term: RewardTerm, value: object, student: Tensor) -> Tensor:
    """Return a copy of a term's value, since a user's function may reuse its buffer, as the student's dtype."""
    batch, expected = len(student), f"expected a float tensor of shape [{len(student)}]"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise RewardError(f"reward term {label!r} returned {kind}; {expected}")
    if value.layout != torch.strided or value.is_meta:
        kind = "a tensor without numbers" if value.is_meta else value.layout
        raise RewardError(f"reward term {label!r} returned {kind}; {expected}")
    if tuple(value.shape) != (batch,):
        shape = list(value.shape)
        raise RewardError(f"reward term {label!r} returned shape {shape}; expected [{batch}], one value an image")
    own = value.to(student, copy=True)
    finite = torch.isfinite(own).tolist()
    if not all(finite):
        row = finite.index(False)
        raise RewardError(
            f"reward term {label!r} is {value[row].item()} at row {row}; expected a finite number of {own.dtype}"
        )
    if term.differentiable and torch.is_grad_enabled() and student.requires_grad and not own.requires_grad:
        raise RewardError(f"reward term {label!r} declares itself differentiable, but its value carries no gradient")
    return own


def build_terms(
    terms: Mapping[str, config.Term],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    device: str | torch.device,
    captions: bool = False,
    seed: int = 0,
    patience_s: float = 300.0,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
) -> Rewards:
    """Build the configured terms, ready to score images of one shape.

    terms: the terms by label. A label is the name of a term of `TERMS`, or any other word for the user's own function,
        with the option `callable` (`CallableTerm`), or for a service, with the option `url` (`HttpTerm`).
    num_classes: number of classes; 0: there are none. image_shape: (C, H, W). captions: True where conditions are text.
    seed: seed of the initial weights of a learned term. patience_s: seconds that one call of the user's code, or of a
        service, may take. metadata: of the captions, for the user's own terms; see `Setting`.
    Raises `RewardError` for unknown names and options, wrong values, and terms that do not suit these images.
    """
    setting = Setting(num_classes, image_shape, torch.device(device), captions, seed, metadata, patience_s)
    return Rewards(
        {
            label: _build(label, revealed(term.options, f"reward.terms.{label}.options"), setting)
            for label, term in terms.items()
        },
        setting,
    )


def with_gradient(terms: Mapping[str, config.Term]) -> list[str]:
    """List the labels of the terms that declare a gradient, which is known before they are built."""
    return [
        label
        for label, term in terms.items()
        if (TERMS[label].differentiable if label in TERMS else term.options.get("differentiable", False))
    ]


def _build(label: str, options: Mapping[str, Any], setting: Setting) -> RewardTerm:
    if (wrong := problem(label, options)) is not None:
        raise RewardError(wrong)
    kind = TERMS.get(label) or (CallableTerm if "callable" in options else HttpTerm)
    if "class" in kind.needs and setting.num_classes < 1:
        raise RewardError(f"reward.terms.{label} needs class conditions; the teacher has no classes: remove the term")
    if "caption" in kind.needs and not setting.captions:
        raise RewardError(f"reward.terms.{label} needs captions; this teacher takes none: remove the term")
    known = [field.name for field in fields(kind) if field.name != "setting"]
    required = [field.name for field in fields(kind) if field.default is MISSING and field.name in known]
    for option in options:
        if option not in known:
            raise RewardError(
                f"reward.terms.{label} has no option {option!r}{_nearest(option, known)}; "
                f"expected: {', '.join(known) or 'none'}"
            )
    for option in required:
        if option not in options:
            raise RewardError(f"reward.terms.{label} needs its option {option!r}; it has no default")
    try:
        with state_kept():
            return kind(setting=setting, **options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RewardError(f"reward.terms.{label}.options.{where}={first['input']!r}: {first['msg']}") from None
    except (RewardError, UserCodeError) as error:
        raise RewardError(f"reward.terms.{label}: {error}") from error
    except Exception as error:
        error.add_note(f"while reward.terms.{label} was built")
        raise


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
