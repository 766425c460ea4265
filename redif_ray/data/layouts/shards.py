"""Tar shards in the layout of WebDataset: the members of one example lie together and have one name, up to its dot.

Members are read in their order and never written to disk: `0001.jpg` is an image, `0001.cls` its label as a number,
`0001.txt` its caption, and `0001.json` an object whose keys are as a table's columns. Links are not followed.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Self

from redif_ray.data.errors import DataError, reading
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns
from redif_ray.data.layouts.files import File, decoded
from redif_ray.data.layouts.rows import Layout, Row, Wanted, number_in
from redif_ray.data.layouts.tables import parsed
from redif_ray.data.pixels import suffixes
from redif_ray.errors import listed

SUFFIXES = (".tar", ".tgz", ".tar.gz")
MEMBER_BYTES = 2**28
BLOCK_BYTES = 2**20  # that are read at once
TEXTS = ("txt", "caption")


class _Whole(tarfile.TarInfo):
    """A member's header that must be whole: `tarfile` takes a file that is cut off at a header as one that ends."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut off before the mark at its end")
        return super().frombuf(buf, encoding, errors)


def is_shard(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def read_shards(files: Sequence[File], wanted: Wanted, findings: Findings) -> Layout:
    """Return the rows of tar shards. Raises DataError naming the shard."""
    if wanted.pictures:
        raise DataError(
            f"{files[0].name} is a tar shard; the pictures that captions change are read from a folder of images with "
            "a metadata.jsonl, or from Parquet files"
        )
    findings.kind = f"{len(files)} WebDataset shards"
    return Layout(row for file in files for row in _examples(file, wanted, findings))


def _examples(file: File, wanted: Wanted, findings: Findings) -> Iterator[Row]:
    seen: set[str] = set()
    with (
        reading(file.name, "a tar file that can be read"),
        file.open() as stream,
        tarfile.open(fileobj=_unzipped(stream), mode="r|", tarinfo=_Whole, bufsize=BLOCK_BYTES) as shard,
    ):
        for name, group in groupby(_members(shard, file.name, wanted, findings), key=lambda member: member[0]):
            where = f"{file.name} {name}"
            if name in seen:
                raise DataError(f"{where}: its members do not lie together; sort the members by name")
            seen.add(name)
            row = _row(where, [(suffix, data) for _, suffix, data in group], wanted, findings)
            if row is not None:
                yield row


def _unzipped(stream: Any) -> Any:
    """Return what a gzip file holds as a stream, and another file as it is.

    `tarfile` would decompress whole blocks, of which a small one can hold GBs, and takes other compressed files too.
    """
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if zipped else stream


def _members(shard: tarfile.TarFile, name: str, wanted: Wanted, findings: Findings) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name of the example, suffix without its dot, content) of each member that is wanted."""
    for member in shard:
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        suffix = suffix.lower()
        if member.isdir():
            continue
        if any(part.startswith(".") for part in path.parts if part not in (".", "..")):
            findings.leave_out("hidden", member.name)
        elif not member.isfile():
            findings.leave_out("links and special members of shards", member.name)
        elif not _is_wanted(suffix, wanted):
            findings.leave_out(f"members .{suffix}", member.name)
        elif member.size > MEMBER_BYTES:
            raise DataError(
                f"{name}: {member.name} says that it has {member.size:,} bytes; expected {MEMBER_BYTES:,} at most"
            )
        else:
            stream = shard.extractfile(member)
            yield str(path.parent / stem), suffix, stream.read() if stream is not None else b""


def _is_wanted(suffix: str, wanted: Wanted) -> bool:
    known = {"images": ("cls", "json"), "labels": ("cls", "json"), "captions": (*TEXTS, "json")}[wanted.what]
    return suffix in known or (wanted.what == "images" and f".{suffix}" in suffixes())


def _row(where: str, members: list[tuple[str, bytes]], wanted: Wanted, findings: Findings) -> Row | None:
    """Return an example as a row; None if it has no image, or no value, though one is wanted."""
    images = [(suffix, data) for suffix, data in members if f".{suffix}" in suffixes()]
    if wanted.what == "images" and len(images) != 1:
        if images:
            raise DataError(f"{where} has the images {listed(suffix for suffix, _ in images)}; expected one")
        findings.leave_out("examples without an image", where)
        return None
    texts = {suffix: data for suffix, data in members if f".{suffix}" not in suffixes()}
    about = parsed(decoded(texts["json"], f"{where}.json"), f"{where}.json") if "json" in texts else {}
    if not isinstance(about, dict):
        raise DataError(f"{where}.json holds {type(about).__name__}; expected an object")
    if wanted.what == "captions":
        if lacking := [name for name in wanted.metadata if name not in about]:
            raise DataError(f"{where}.json has no key {lacking[0]!r} for metadata")
        further = {name: about[name] for name in wanted.metadata}
        return Row(where, caption=_caption(where, texts, about, wanted), metadata=further)
    label = _label(where, texts, about, wanted)
    if wanted.what == "labels":
        return Row(where, label=label)
    if label is not None:
        findings.labels = "members .cls" if "cls" in texts and wanted.column is None else "members .json"
    return Row(where, image=lambda: images[0][1], label=label)


def _caption(where: str, texts: dict[str, bytes], about: dict[str, Any], wanted: Wanted) -> Any:
    found = wanted.column or columns.find(tuple(about), columns.CAPTIONS)
    text = next((suffix for suffix in TEXTS if suffix in texts), None)
    if text is not None and wanted.column is None:
        return decoded(texts[text], f"{where}.{text}").strip()
    if found not in about:
        raise DataError(f"{where} has no caption: expected {where}.txt, or a key of {where}.json such as caption")
    return about[found]


def _label(where: str, texts: dict[str, bytes], about: dict[str, Any], wanted: Wanted) -> Any:
    if "cls" in texts and wanted.column is None:
        return number_in(decoded(texts["cls"], f"{where}.cls").strip())
    if wanted.what == "labels":
        found = wanted.column or columns.find(tuple(about), columns.LABELS)
    else:
        found = columns.label_column(tuple(about), {}, wanted.column, f"{where}.json") if about else None
    return about.get(found) if found is not None else None
