"""The conditions of a run's images: classes in turn, or captions in an order drawn by `redif_ray.diffusion.noise`.

Captions are split by the hash of their text. Held-out captions serve the final evaluation and nothing else, in this run
and in every other run with the same share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from redif_ray import config
from redif_ray.config import ConfigError
from redif_ray.data.captions import PROMPTS, read_column
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.types import Condition

CONDITIONS = "conditions.json"  # the file in a run folder
REPORTED = (Stream.HELD_OUT, Stream.REFERENCE)  # streams of the final evaluation and its reference


@dataclass(frozen=True, slots=True)
class Conditions:
    """The training and the held-out conditions, at least one each. seed: of their order; None: in turn."""

    training: tuple[Condition, ...]
    held_out: tuple[Condition, ...]
    seed: int | None = None

    def of(self, stream: Stream, group: int) -> Condition:
        """Return the condition of a group; each of n conditions occurs once in the groups k n to (k + 1) n - 1."""
        values = self.held_out if stream in REPORTED else self.training
        epoch, offset = divmod(group, len(values))
        return values[offset if self.seed is None else _order(len(values), self.seed, stream, epoch)[offset]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Conditions:
        """Read the text that `to_json` returned. Raises ValueError."""
        fields = json.loads(text)
        return cls(tuple(fields["training"]), tuple(fields["held_out"]), fields["seed"])


@lru_cache(maxsize=8)
def _order(count: int, seed: int, stream: Stream, epoch: int) -> np.ndarray:
    # group 0 of this stream orders the noise pool
    return noise.permutation(count, Stream.CONDITION, seed=seed, round=epoch, group=1 + int(stream))


def share(caption: str) -> float:
    """Return the hash of a caption as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8]) / 2**64


def load_conditions(wanted: config.Conditions, *, num_classes: int | None, captions: bool, seed: int) -> Conditions:
    """Return the conditions of a run. Raises ConfigError naming the key.

    num_classes: of the model; None: the model has no classes. captions: whether the model takes captions.
    """
    kind = wanted.kind
    if kind == "auto":
        kind = "text" if captions else "none" if num_classes is None else "class"
    if kind == "text":
        if not captions:
            possible = "none" if num_classes is None else "class"
            raise ConfigError(f"conditions.kind=text: this teacher takes no captions; expected auto or {possible}")
        _refuse(wanted, "classes", "a text-to-image teacher has no classes")
        return split(read_column(wanted.source or PROMPTS, wanted.column, str), wanted.held_out, seed)
    if kind == "none":
        _refuse(wanted, "classes", "the model is sampled without classes", "class")
        _refuse(wanted, "source", "the model is sampled without conditions", "class or text")
        return Conditions((None,), (None,))
    if num_classes is None:
        raise ConfigError("conditions.kind=class: this teacher has no classes; expected auto or none")
    return _classes(wanted, num_classes, seed)


def split(captions: Sequence[str], held_out: float, seed: int) -> Conditions:
    """Split the unique captions into training and held-out ones, whose `share` is below `held_out`; 0: all are both."""
    unique = list(dict.fromkeys(captions))
    if held_out == 0:
        return Conditions(tuple(unique), tuple(unique), seed)
    apart = tuple(c for c in unique if share(c) < held_out)
    training = tuple(c for c in unique if share(c) >= held_out)
    if not training or not apart:
        raise ConfigError(
            f"conditions.held_out={held_out:g} of {len(unique)} captions leaves {len(training)} for training and "
            f"{len(apart)} for the evaluation; expected at least one each: give more captions, or another share "
            "(0 evaluates on the training captions, from other noises)"
        )
    return Conditions(training, apart, seed)


def _classes(wanted: config.Conditions, num_classes: int, seed: int) -> Conditions:
    if wanted.source is not None:
        _refuse(wanted, "classes", "conditions.source names the classes")
        labels = tuple(read_column(wanted.source, wanted.column, int))
        _check(labels, num_classes, f"conditions.source={wanted.source}")
        return Conditions(labels, labels, seed)
    classes = tuple(range(num_classes)) if wanted.classes is None else wanted.classes
    _check(classes, num_classes, "conditions.classes")
    return Conditions(classes, classes)


def _check(labels: Sequence[int], num_classes: int, where: str) -> None:
    bad = list(dict.fromkeys(c for c in labels if not 0 <= c < num_classes))
    if bad:
        raise ConfigError(f"{where}: {bad[:5]} are not classes of the teacher; expected values in 0..{num_classes - 1}")


def _refuse(wanted: config.Conditions, key: str, reason: str, kind: str | None = None) -> None:
    value = getattr(wanted, key)
    if value is not None:
        shown = list(value) if isinstance(value, tuple) else value
        other = f" or set conditions.kind={kind}" if kind else ""
        raise ConfigError(f"conditions.{key}={shown}: {reason}; remove conditions.{key}{other}")
