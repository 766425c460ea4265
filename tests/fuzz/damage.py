"""Damage to files as they travel: bytes change, and files are cut, moved, linked or missing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

ODD_NAMES = (
    *(
        ".hidden",
        "..",
        "a b",
        "a'b\"c",
        "-rf",
        "%s",
        "{0}",
        "[red]x[/]",
        "a\nb",
        "a\\b",
        "~",
        "CON",
        "nul.",
        "\x1b[31m",
    ),
    *("é", "e\u0301", "\u202egnp.exe", "\U0001f600", "x" * 200, "x.tmp", "x.partial", "__MACOSX", "Thumbs.db"),
    *(os.fsdecode(b"caf\xe9"), "metadata", "train", "test", "none", "image", "0", "1e3", "name.with.dots"),
)
HEAD = 200  # bytes of a file in which most of its kind's numbers lie


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to three changes, half of them at the head: cut, doubled, removed, zeroed or others."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        length = len(changed)
        start = chance.randrange(min(length, HEAD) + 1 if chance.random() < 0.5 else length + 1)
        end = min(length, start + chance.choice((1, 1, 2, 4, 8, 50, 1000)))
        part = bytes(changed[start:end])
        action = chance.choice(
            ("bytes", "bytes", "bytes", "bit", "bit", "cut", "double", "remove", "zero", "ones", "swap")
        )
        if action == "bytes":
            part = chance.randbytes(len(part))
        elif action == "bit" and part:
            part = bytes([part[0] ^ 1 << chance.randrange(8)]) + part[1:]
        elif action == "cut":
            end, part = length, b""
        elif action == "double":
            part *= 2
        elif action == "remove":
            part = b""
        elif action in ("zero", "ones"):
            part = (b"\0" if action == "zero" else b"\xff") * len(part)
        elif action == "swap":
            part = part[::-1]
        changed[start:end] = part
    return bytes(changed)


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder, and the links to files, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def spoil(folder: Path, chance: random.Random) -> str:
    """Do something to one file or folder below `folder`, as copies, archives and strangers do, and say what."""
    found = files_of(folder)
    if not found:
        return "nothing is left"
    path = chance.choice(found)
    action = chance.choice(tuple(ACTIONS))
    before = str(path.relative_to(folder))
    try:
        ACTIONS[action](path, folder, chance)
    except (OSError, ValueError) as error:  # a name that cannot be, a file that is a folder by now
        return f"{action} {before!a} fails: {error}"
    return f"{action} {before!a}"


def _renamed(path: Path, folder: Path, chance: random.Random) -> None:
    target = path if chance.random() < 0.7 or path.parent == folder else path.parent
    name = chance.choice(ODD_NAMES)
    new = chance.choice((name + path.suffix, name, path.stem + chance.choice((".PNG", ".txt", "", ".json", ".fp16.x"))))
    if not (target.parent / new).exists():
        target.rename(target.parent / new)


def _moved(path: Path, folder: Path, chance: random.Random) -> None:
    path.rename(chance.choice(files_of(folder)).parent / path.name)


def _doubled(path: Path, folder: Path, chance: random.Random) -> None:
    place = chance.choice(files_of(folder)).parent
    shutil.copy(path, place / f"{chance.choice(('copy of ', '._', '', 'z'))}{path.name}")


def _linked(path: Path, folder: Path, chance: random.Random) -> None:
    outside = folder.parent / f"outside {path.name[:50]}"
    shutil.copy(path, outside)
    targets = (outside, chance.choice(files_of(folder)), path, folder, folder.parent, Path("/dev/zero"), Path("no"))
    path.unlink()
    path.symlink_to(chance.choice(targets))


def _folder(path: Path, folder: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, folder: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _swapped(path: Path, folder: Path, chance: random.Random) -> None:
    other = chance.choice(files_of(folder))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _changed(path: Path, folder: Path, chance: random.Random) -> None:
    path.write_bytes(damaged(path.read_bytes(), chance))


def _cut(path: Path, folder: Path, chance: random.Random) -> None:
    os.truncate(path, chance.choice((0, 0, 1, 8, path.stat().st_size // 2, path.stat().st_size - 1)))


def _removed(path: Path, folder: Path, chance: random.Random) -> None:
    path.unlink()


ACTIONS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "rename": _renamed,
    "move": _moved,
    "double": _doubled,
    "link": _linked,
    "make a folder of": _folder,
    "make a pipe of": _pipe,
    "swap": _swapped,
    "change": _changed,
    "cut": _cut,
    "remove": _removed,
}
