"""The conditions of a run's images: classes in turn, or captions in an order drawn by `redif_ray.diffusion.noise`.

Captions are split by the hash of their text, in the spelling that text encoders reduce it to, and of several that
differ in spelling alone the first is kept. Held-out captions serve the final evaluation and nothing else, in this run
and in every other run with the same share.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from redif_ray import config
from redif_ray.config import ConfigError
from redif_ray.data.captions import PROMPTS, Metadata, read_captions, read_column, read_edits
from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.errors import brief
from redif_ray.types import Condition, Edit, from_json, told

CONDITIONS = "conditions.json"  # the file in a run folder
REPORTED = (Stream.HELD_OUT, Stream.REFERENCE, Stream.DIVERSITY)  # streams of the final evaluation and its reference


@dataclass(frozen=True, slots=True)
class Conditions:
    """The training and the held-out conditions, at least one each.

    seed: of their order; None: in turn. notes: lines that say what was found and what was left out. metadata: what the
    source says of a caption beside it, for rewards, by caption.
    """

    training: tuple[Condition, ...]
    held_out: tuple[Condition, ...]
    seed: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    metadata: Mapping[str, Metadata] = field(default_factory=dict)

    def of(self, stream: Stream, group: int) -> Condition:
        """Return the condition of a group; each of n conditions occurs once in the groups k n to (k + 1) n - 1."""
        values = self.held_out if stream in REPORTED else self.training
        epoch, offset = divmod(group, len(values))
        return values[offset if self.seed is None else _order(len(values), self.seed, stream, epoch)[offset]]

    def to_json(self) -> str:
        kept: dict[str, Any] = {"training": self.training, "held_out": self.held_out, "seed": self.seed}
        if self.metadata:
            kept["metadata"] = self.metadata
        return json.dumps(kept, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Conditions:
        """Read the text that `to_json` returned. Raises ValueError."""
        fields = json.loads(text)
        training, held_out = (tuple(map(from_json, fields[name])) for name in ("training", "held_out"))
        return cls(training, held_out, fields["seed"], metadata=fields.get("metadata", {}))


@lru_cache(maxsize=8)
def _order(count: int, seed: int, stream: Stream, epoch: int) -> np.ndarray:
    # group 0 of this stream orders the noise pool
    return noise.permutation(count, Stream.CONDITION, seed=seed, round=epoch, group=1 + int(stream))


def plain(caption: str) -> str:
    """Return what text encoders can tell apart of a caption: one form of each character, one case, single spaces.

    CLIP's tokenizer reduces texts to NFC and lower case, T5's to NFKC. Characters that are not seen go too.
    """
    seen = "".join(c for c in unicodedata.normalize("NFKC", caption).casefold() if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def share(condition: str | Edit) -> float:
    """Return the hash of a caption, the same for all its spellings, or that of an edit's picture, in [0, 1)."""
    text = f"picture {condition.picture}" if isinstance(condition, Edit) else plain(condition)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def load_conditions(
    wanted: config.Conditions,
    *,
    num_classes: int | None,
    captions: bool,
    seed: int,
    keep: Callable[[bytes, str], str] | None = None,
) -> Conditions:
    """Return the conditions of a run. Raises ConfigError naming the key.

    num_classes: of the model; None: the model has no classes. captions: whether the model takes captions. keep: for a
    model that changes pictures, the function that keeps one, of the bytes of a file and its name in errors, and returns
    the picture's name.
    """
    kind = wanted.kind
    if kind == "auto":
        kind = "text" if captions else "none" if num_classes is None else "class"
    if keep is not None and kind != "text":
        raise ConfigError(f"conditions.kind={kind}: this teacher changes pictures by captions; expected auto or text")
    if kind == "text":
        if not captions:
            possible = "none" if num_classes is None else "class"
            raise ConfigError(f"conditions.kind=text: this teacher takes no captions; expected auto or {possible}")
        _refuse(wanted, "classes", "a text-to-image teacher has no classes")
        if keep is not None:
            return _edits(wanted, seed, keep)
        source = wanted.source or PROMPTS
        findings = Findings(str(source))
        rows = read_captions(source, wanted.column, wanted.metadata, findings=findings)
        found = split([caption for caption, _ in rows], wanted.held_out, seed)
        told, repeated = _told(rows if wanted.metadata else (), {*found.training, *found.held_out})
        return replace(found, notes=(*found.notes, *repeated, *findings.omissions()), metadata=told)
    if wanted.metadata:
        raise ConfigError(
            f"conditions.metadata={list(wanted.metadata)}: the conditions are no captions; remove the key"
        )
    if kind == "none":
        _refuse(wanted, "classes", "the model is sampled without classes", "class")
        _refuse(wanted, "source", "the model is sampled without conditions", "class or text")
        return Conditions((None,), (None,))
    if num_classes is None:
        raise ConfigError("conditions.kind=class: this teacher has no classes; expected auto or none")
    return _classes(wanted, num_classes, seed)


def _edits(wanted: config.Conditions, seed: int, keep: Callable[[bytes, str], str]) -> Conditions:
    if wanted.source is None:
        raise ConfigError(
            "conditions.source is not set, and this teacher changes pictures; give a folder of images with a "
            "metadata.jsonl of file_name and caption, or Parquet files with source_image and caption"
        )
    if wanted.metadata:
        raise ConfigError(f"conditions.metadata={list(wanted.metadata)}: not read beside pictures; remove the key")
    findings, found = Findings(str(wanted.source)), list[Edit]()
    try:
        for caption, row in read_edits(wanted.source, wanted.column, findings=findings):
            assert row.image is not None
            found.append(Edit(caption, keep(row.image(), row.where)))
    except (DataError, OSError) as error:
        raise ConfigError(f"conditions.source={wanted.source} cannot be read: {error}") from error
    conditions = split(found, wanted.held_out, seed)
    return replace(conditions, notes=(*conditions.notes, *findings.omissions()))


def split(conditions: Sequence[str | Edit], held_out: float, seed: int) -> Conditions:
    """Split captions into training and held-out ones, whose `share` is below `held_out`; 0: all are both.

    Of captions that are equal, or differ in spelling alone (`plain`), the first is kept; so of edits of one picture. A
    picture is held out with all its captions.
    """
    first: dict[tuple[str, str | None], str | Edit] = {}
    for condition in conditions:
        caption = told(condition)
        if not isinstance(caption, str) or not (spelling := plain(caption)):
            raise ConfigError(f"the caption {brief(caption)} is not a text of visible characters; leave it out")
        if any("\ud800" <= character <= "\udfff" for character in caption):
            raise ConfigError(
                f"the caption {brief(caption)} is no valid text: it holds half of a surrogate pair; mend it"
            )
        first.setdefault((spelling, condition.picture if isinstance(condition, Edit) else None), condition)
    unique = list(first.values())
    kind = "captions of pictures" if any(isinstance(each, Edit) for each in unique) else "captions"
    note = f"{kind}: {len(conditions):,}"
    if len(unique) < len(conditions):
        note += (
            f", of which {len(conditions) - len(unique):,} repeat another one, or differ in case, spaces or form alone"
        )
    if held_out == 0:
        return Conditions(tuple(unique), tuple(unique), seed, (f"{note}; {len(unique):,} train and evaluate",))
    apart = tuple(c for c in unique if share(c) < held_out)
    training = tuple(c for c in unique if share(c) >= held_out)
    note += f"; {len(training):,} train, {len(apart):,} are held out"
    if not training or not apart:
        raise ConfigError(
            f"conditions.held_out={held_out:g} of {len(unique)} captions leaves {len(training)} for training and "
            f"{len(apart)} for the evaluation; expected at least one each: give more captions, or another share "
            "(0 evaluates on the training captions, from other noises)"
        )
    return Conditions(training, apart, seed, (note,))


def _told(
    rows: Sequence[tuple[str, Metadata]], captions: Collection[Condition]
) -> tuple[dict[str, Metadata], list[str]]:
    """Return the metadata of each of the captions, that of its first row, and a note where a later row has another."""
    told: dict[str, Metadata] = {}
    spelled = {plain(caption): caption for caption in captions if isinstance(caption, str)}
    others = 0
    for caption, metadata in rows:
        if (kept := spelled.get(plain(caption))) is not None:
            others += told.setdefault(kept, metadata) != metadata
    return told, [f"{others:,} repeated captions have other metadata; the first row counts"] if others else []


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
