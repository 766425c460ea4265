"""Captions that nobody meant: each list is read as it is, or ends in one clear error, within time and memory."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from damage import damaged, spoil
from image_files import make, parquet, tar
from image_sets import Wrong, csv_of
from outcomes import TEXTS, Given, mutated, tried

from redif_ray.config import load
from redif_ray.data.conditions import Conditions, load_conditions, plain


def some_captions(chance: random.Random, root: Path) -> Given:
    """Captions as text, tables, tar shards or beside images, in odd encodings and spellings, or damaged."""
    odd = (*TEXTS, "1 \u2028 dogs", "caf\u00e9", "x\ud800", "\r", "a,b", 'a "b"', "A CAT 1", "a\n\nb", " a  cat 1")
    texts = [chance.choice(odd) if chance.random() < 0.05 else f"a cat {i}" for i in range(40)]
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    kind = chance.choice((".txt", ".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".tar", "beside"))
    encoding = chance.choice(("utf-8",) * 9 + ("utf-8-sig", "utf-16", "latin-1"))
    rows: Any = [{"caption": text} for text in texts]
    whole = chance.random() < 0.6
    if kind in (".jsonl", ".json") and not whole:
        rows = mutated(rows, chance)
    if kind == ".txt":
        data = chance.choice(("\n", "\r\n", "\r")).join(texts).encode(encoding, "replace")
    elif kind in (".csv", ".tsv"):
        data = csv_of(rows, "\t" if kind == ".tsv" else ",").encode(encoding, "replace")
    elif kind == ".parquet":
        data = parquet({"caption": texts})
    elif kind == ".tar":
        data = tar({f"{i}.txt": text for i, text in enumerate(texts)})
    elif kind == ".jsonl" and isinstance(rows, list):
        data = "\n".join(map(json.dumps, rows)).encode(encoding)
    else:
        data = json.dumps(rows).encode(encoding)
    if kind == "beside":
        beside = {
            f"{i}.{suffix}": text for i, text in enumerate(texts) for suffix, text in (("txt", text), ("png", ""))
        }
        make(root / "set", beside)
        whole = whole or spoil(root / "set", chance) == ""
    else:
        make(root / "set", {f"a{kind}": data if whole else damaged(data, chance)})
    source = root / "set" if kind == "beside" else root / "set" / f"a{kind}"
    held_out = chance.choice((0, 0.1, 0.5))

    def call() -> None:
        wanted = load("smoke", [f"conditions.held_out={held_out}"]).conditions.model_copy(
            update={"source": str(source)}
        )
        found = load_conditions(wanted, num_classes=None, captions=True, seed=0)
        if Conditions.from_json(found.to_json()) != found:
            raise Wrong("the captions are not read back from the run's folder")
        lines = [line for text in texts for line in (re.split("\r\n|\r|\n", text) if kind == ".txt" else [text])]
        there, expected = ({plain(str(text)) for text in each} for each in ((*found.training, *found.held_out), lines))
        if whole and encoding != "latin-1" and there != expected - {""}:
            raise Wrong(f"not the captions that are there: {list(there ^ expected)[:3]}")

    return [kind, encoding, whole, texts], call


@pytest.mark.long
def test_captions_that_nobody_meant_end_clearly(tmp_path: Path) -> None:
    tried(some_captions, 600, tmp_path)
