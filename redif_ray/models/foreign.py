"""A folder that somebody else made: what is read and followed in it, how much of it, and what its errors say.

Only regular files are read. No link is followed out of the folder, with one exception: in Hugging Face's cache a
snapshot's files are links to the model's `blobs`, which may be links to `blobs` that the cache keeps for all models.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redif_ray.errors import UserError, brief, in_words
from redif_ray.models.locate import INDEX, MODULAR_INDEX, ModelError

KINDS = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken")  # of files that are read and copied
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")  # which are copied besides
ADAPTERS = "adapter_config.json"  # with this file beside it, transformers loads other weights than the network's own
MOST_BYTES = 4 * 2**20  # of a JSON file that is parsed here; FLUX.1's index of shards has 0.1 MB
MOST_VOCABULARY_BYTES = 128 * 2**20  # of another text file, which libraries parse; Gemma's tokeniser has 34 MB
MOST_HEADER_BYTES = 32 * 2**20  # of a safetensors file; 10,000 tensors need 1 MB
MOST_TENSORS = 100_000  # in a file
MOST = {  # numbers of a network or a scheduler that decide how much memory and time it takes, by their keys
    re.compile(r"(.*_)?(layers|blocks|depth|layers_per_block)"): 1000,
    re.compile(r"sample_size|pos_embed_max_size"): 2048,
    re.compile(r"num_train_timesteps"): 100_000,
}
MOST_ENTRIES = 1000  # of a list in a network's configuration
MOST_TEXT = 1000  # characters of a text in it
AGAIN = "copy the folder once more"
MODULAR_NAMES = {"Flux2KleinBasePipeline": "Flux2KleinPipeline"}  # classes that are one where they are not modular


@contextmanager
def loading(what: object, kind: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises over a foreign folder in this block into a ModelError that names `what`.

    kind: the class as which it is loaded. Errors of this package, which name file and remedy themselves, keep their
    text. Errors of memory, of devices and of numbers that are not finite pass.
    """
    import torch  # here: whoever looks for a folder's index alone has no need of it

    wanted = f"cannot be loaded as a {kind}" if kind else "cannot be loaded"
    try:
        yield
    except (MemoryError, FloatingPointError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except UserError as error:
        if kind is None or not isinstance(error, ModelError):
            raise
        raise ModelError(f"{what} {wanted}: {error}") from error
    except Exception as error:  # diffusers, transformers and tokenizers raise all kinds over a broken file
        raise ModelError(f"{what} {wanted}: {in_words(error)}; {AGAIN}") from error


def resolved(path: Path, folder: Path, *, cache: bool = True) -> Path:
    """Return `path` with its links resolved.

    cache: True: the target may also be in the cache of Hugging Face that holds `folder`.
    Raises ModelError if the target does not exist, or is neither below `folder` nor in that cache.
    """
    try:
        root, target = folder.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} leads to nothing ({error}); copy the folder again") from error
    homes = [root, *(_blobs(root) if cache else ())]
    if not any(home == target or home in target.parents for home in homes):
        raise ModelError(
            f"{path} is a link to {target}, which is outside of {root}, and no such link is followed; "
            "put a copy in place of the link, or remove the link"
        )
    return target


def is_name(name: Any) -> bool:
    """Tell whether `name` is the plain name of an entry of a folder, which leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


def is_known(file: Path) -> bool:
    """Tell by its name whether a file of a part is one that libraries read without running code in it."""
    return file.suffix in KINDS and not file.name.startswith(".")


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """Return the object in the JSON file `path` of the foreign `folder`. Raises ModelError."""
    source = _regular(path, folder, MOST_BYTES)
    try:
        content = json.loads(source.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {in_words(error)}; {AGAIN}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a JSON object; {AGAIN}")
    return content


def read_text(path: Path, folder: Path) -> str:
    """Return the text of the file `path` of the foreign `folder`, without a byte order mark. Raises ModelError."""
    source = _regular(path, folder, MOST_BYTES)
    try:
        return source.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no text in UTF-8: {in_words(error)}; {AGAIN}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """Return `model_index.json`, which names the pipeline's class and its parts. Raises ModelError.

    A folder that diffusers' ModularPipeline saved has another index, which is returned in the same form.
    """
    path = folder / INDEX
    if not path.exists() and (folder / MODULAR_INDEX).exists():
        return _modular_index(folder)
    if not path.exists():
        raise ModelError(
            f"{folder} is not a diffusers pipeline: it has no {INDEX}; expected the folder that "
            "save_pretrained, or redif train-teacher, wrote"
        )
    index = read_settings(path, folder)
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{path} names no pipeline: expected a key _class_name; copy the folder once more")
    return index


def _modular_index(folder: Path) -> dict[str, Any]:
    """Return the index of a modular pipeline, whose parts are [library, class, where]; they have to be in `folder`."""
    path = folder / MODULAR_INDEX
    modular = read_settings(path, folder)
    name = str(modular.get("_class_name")).replace("ModularPipeline", "Pipeline")
    index: dict[str, Any] = {"_class_name": MODULAR_NAMES.get(name, name)}
    elsewhere = {}
    for key, value in modular.items():
        if not isinstance(value, list):
            index |= {} if key.startswith("_") else {key: value}
            continue
        library, kind, where = value if len(value) == 3 and isinstance(value[2], dict) else (None, None, {})
        hint, place = where.get("type_hint"), where.get("pretrained_model_name_or_path")
        if is_name(key) and (folder / key).is_dir():
            index[key] = [library, kind] if kind else hint
        elif place and hint not in (None, [None, None]):
            elsewhere[key] = place
        else:  # a part that the pipeline can do without
            index[key] = [None, None]
    if elsewhere:
        parts = ", ".join(f"{key} ({brief(place)})" for key, place in elsewhere.items())
        raise ModelError(
            f"{path}: parts of this modular pipeline are elsewhere: {parts}; expected all in this folder, as "
            "save_pretrained of diffusers' ModularPipeline writes them after load_components"
        )
    return index


def read_settings(path: Path, folder: Path) -> dict[str, Any]:
    """Return the configuration of a pipeline, a network or a scheduler.

    Raises ModelError also where it asks for too much, or holds a text that is no setting.
    """
    content = read_json(path, folder)
    _check_values(path, content)
    return content


def check_part(part: Path, folder: Path) -> None:
    """Check the files that a library may read of `part`, a folder of `folder` or `folder` itself.

    Raises ModelError for a link that leads out, for what is no regular file, and for a file that is too large.
    """
    resolved(part, folder, cache=False)
    for entry in sorted(part.iterdir()):
        if entry.name == ADAPTERS:
            raise ModelError(f"{entry}: adapters beside a network are not read; remove the file, or merge the adapters")
        if not is_known(entry):
            continue
        if entry.suffix == ".safetensors":
            check_header(entry, folder)
        else:
            _regular(entry, folder, MOST_VOCABULARY_BYTES)


def check_header(path: Path, folder: Path) -> None:
    """Raise ModelError unless the safetensors file `path` begins with a header of a bounded size."""
    source = _regular(path, folder)
    with source.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        most = min(source.stat().st_size - 8, MOST_HEADER_BYTES)
        header = file.read(size) if size <= most else b""
    if not 2 <= size <= most:
        raise ModelError(f"{path} is no whole safetensors file: a header of {size} bytes, at most {most} fit; {AGAIN}")
    if (count := header.count(b'"data_offsets"')) > MOST_TENSORS:
        raise ModelError(f"{path} lists {count} tensors; expected at most {MOST_TENSORS}")


def shards(index: Path) -> dict[str, Path]:
    """Return the file that the index of a sharded network names for each weight, beside it. Raises ModelError."""
    named = read_json(index, index.parent).get("weight_map")
    names = named if isinstance(named, dict) and all(map(is_name, named.values())) else {}
    if not names or not all(name.endswith(".safetensors") for name in names.values()):
        raise ModelError(f"{index}: weight_map names no .safetensors files beside it; {AGAIN}")
    return {weight: index.parent / name for weight, name in names.items()}


def _regular(path: Path, folder: Path, most: int | None = None) -> Path:
    """Return the file that `path` is or links to. Raises ModelError."""
    source = resolved(path, folder)
    if not source.is_file():
        raise ModelError(f"{path} is no regular file; {AGAIN}")
    if most is not None and (size := source.stat().st_size) > most:
        raise ModelError(f"{path} has {size} bytes; expected at most {most}, so it is no file of a model")
    return source


def _check_values(path: Path, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            _check_values(path, value)
            continue
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise ModelError(f"{path}: {brief(key)} is a text of {len(value):,} characters; {AGAIN}")
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            raise ModelError(f"{path}: {key} has {len(value)} entries; expected at most {MOST_ENTRIES}")
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                continue
            most = next(
                (most for pattern, most in MOST.items() if pattern.fullmatch(key)), math.inf
            )  # some are infinite
            if not abs(number) <= most:  # written so that NaN fails too
                raise ModelError(f"{path}: {key}={number:.4g}; expected a number, {most} at most; {AGAIN}")


def _blobs(root: Path) -> Iterator[Path]:
    """List the folders that hold the files of the snapshot CACHE/models--ORG--NAME/snapshots/COMMIT at `root`."""
    for above in root.parents:
        if above.name == "snapshots" and above.parent.name.startswith("models--"):
            yield above.parent / "blobs"
            yield above.parent.parent / "blobs"
