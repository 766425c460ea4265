"""Emoji with captions, from the two packages that carry them, as Parquet and as lists of captions.

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0
    python -m benchmarks.emoji.data emoji-datasource-google-16.0.0.tgz emojibase-data-17.0.0.tgz

Pictures: Noto Emoji (Apache-2.0). Captions and tags: emojibase (MIT). The archives are read, not unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from redif_ray.data.conditions import share

SIZE = 32  # edge in pixels
HELD_OUT = 0.1
OUT = Path("runs/emoji")
CAPTIONS = Path("redif_ray/assets/captions/emoji.txt")
SHA256 = {
    "emoji-datasource-google-16.0.0.tgz": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emojibase-data-17.0.0.tgz": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}


@dataclass(frozen=True, slots=True)
class Emoji:
    """`images` uint8 [n, 3, 32, 32], on white; `captions` and `tags` of each."""

    images: np.ndarray
    captions: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.images)

    def split(self, *, held: bool) -> Emoji:
        """Return the captions that are held out, or the others."""
        return self.rows([i for i, caption in enumerate(self.captions) if held_out(caption) == held])

    def rows(self, rows: Sequence[int]) -> Emoji:
        captions, tags = tuple(self.captions[i] for i in rows), tuple(self.tags[i] for i in rows)
        return Emoji(self.images[list(rows)], captions, tags)


def held_out(caption: str) -> bool:
    """Tell whether a caption and its picture are held out from all training, by the caption alone."""
    return share(caption) < HELD_OUT


def key(codes: str) -> str:
    """A code point sequence without the variation selector, which the two packages use differently."""
    return codes.upper().replace("-FE0F", "")


def on_white(png: bytes) -> bytes:
    """A PNG of any size as RGB [32, 32] on white: the mean over areas."""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    stream = io.BytesIO()
    white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX).save(stream, "PNG")
    return stream.getvalue()


def members(archive: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Files of a package by their path in it. Those whose path ends with "/" stand for a folder."""
    prefixes = tuple(f"package/{path}" for path in wanted)
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() and member.name.startswith(prefixes) else None
            if stream is not None:
                found[member.name.removeprefix("package/")] = stream.read()
    return found


def read(pictures: Path, words: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows {image, caption, tags}: of the base emoji, and of their skin tones, whose caption is the base's."""
    files = members(pictures, ("emoji.json", "img/google/64/"))
    texts = {key(entry["hexcode"]): entry for entry in json.loads(members(words, ("en/data.json",))["en/data.json"])}
    base, tones = [], []
    for entry in sorted(json.loads(files["emoji.json"]), key=lambda entry: entry["sort_order"]):
        text = texts[key(entry["unified"])]
        about = {"caption": text["label"].lower(), "tags": [tag.lower() for tag in text.get("tags") or ()]}
        base.append({"image": on_white(files[f"img/google/64/{entry['image']}"]), **about})
        tones += [
            {"image": on_white(files[f"img/google/64/{tone['image']}"]), **about}
            for tone in entry.get("skin_variations", {}).values()
        ]
    return base, tones


def load(path: Path) -> Emoji:
    """Return the pictures and captions that `main` wrote."""
    rows = pq.read_table(path).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row["image"]))).transpose(2, 0, 1) for row in rows]
    return Emoji(np.stack(images), tuple(row["caption"] for row in rows), tuple(tuple(row["tags"]) for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("words", type=Path, help="emojibase-data-17.0.0.tgz")
    options = parser.parse_args()
    for archive in (options.pictures, options.words):
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256.get(archive.name):
            parser.error(f"{archive} has sha256 {found}; expected the packages {', '.join(SHA256)}")
    base, tones = read(options.pictures, options.words)
    OUT.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(base), OUT / "emoji.parquet")
    pq.write_table(pa.Table.from_pylist(tones), OUT / "tones.parquet")
    captions = [row["caption"] for row in base]
    CAPTIONS.write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    apart = sum(held_out(caption) for caption in captions)
    print(f"{len(captions)} captions, {apart} of them held out; {len(tones)} skin tones for the VAE")


if __name__ == "__main__":
    main()
