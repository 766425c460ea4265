"""Tokenisers of captions, from a folder or a hub."""

from __future__ import annotations

from typing import Any

from redif_ray.errors import words_of
from redif_ray.rewards.pretrained import at_hub, is_local
from redif_ray.rewards.term import RewardError


def load_tokenizer(kind: str, option: str, model: str, files: str) -> Any:
    """Load a tokeniser of transformers' class `kind`. Raises `RewardError`.

    option: that names it. model: a folder or a hub id, as `find_model` returns it. files: that it is read from.
    """
    import transformers

    source, revision = at_hub(model)
    try:
        return getattr(transformers, kind).from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=is_local(model)
        )
    except Exception as error:  # tokenizers raises plain exceptions over a broken file
        name = kind.removesuffix("Tokenizer").upper()
        raise RewardError(f"{option}={model!r} has no {name} tokeniser: {words_of(error)}; copy its {files}") from error
