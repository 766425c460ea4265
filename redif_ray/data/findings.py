"""A summary of what a reader met in a data source, which is printed before anything works with the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

LISTED = 20  # classes that a summary lists


@dataclass(slots=True)
class Findings:
    """Counts of what a reader took, changed and left out, which the reader fills in.

    kind: the layout, in words. splits: those that the source has. labels: where labels come from, in words; None: there
    are none. sizes: of the images before they are cropped, (width, height). modes: Pillow's names. changed: images that
    were changed by each treatment. left_out: for each reason, the names of what was left out.
    """

    source: str = ""
    kind: str = ""
    splits: tuple[str, ...] = ()
    labels: str | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        """Note that `name` is left out. reason: the end of "left out: 3 ..."."""
        self.left_out.setdefault(reason, []).append(name)

    def lines(self, count: int, classes: Counter[str]) -> Iterator[str]:
        """Yield the lines of the summary. count: number of images. classes: number of images of each class."""
        yield f"data: {ascii_name(self.source)}, {self.kind}: {count:,} images"
        if self.splits:
            yield f"  splits: {', '.join(self.splits)}"
        yield f"  labels: {ascii_name(self.labels)}" if self.labels else "  labels: none, so images have no classes"
        if classes:
            shown = [f"{name!r} {n:,}" for name, n in list(classes.items())[:LISTED]]
            more = [f"and {len(classes) - LISTED:,} more"] if len(classes) > LISTED else []
            yield f"  classes: {len(classes):,} ({', '.join(shown + more)})"
            empty = [repr(name) for name, n in classes.items() if n == 0]
            if empty:
                yield f"  warning: there is no image of {_few(empty)}"
        if self.sizes:
            yield f"  sizes: {self._sizes()}"
        if self.modes:
            yield f"  modes: {', '.join(f'{mode} {n:,}' for mode, n in self.modes.most_common())}"
        for treatment, n in self.changed.items():
            yield f"  changed: {n:,} {treatment}"
        yield from self.omissions()

    def omissions(self) -> Iterator[str]:
        """Yield a line for each reason for which something was left out."""
        for reason, names in self.left_out.items():
            yield f"  left out: {len(names):,} {reason} ({_few([ascii_name(name) for name in names])})"

    def _sizes(self) -> str:
        small, large = (by(self.sizes, key=lambda size: size[0] * size[1]) for by in (min, max))
        one = f"{small[0]} x {small[1]}"
        return one if small == large else f"{one} to {large[0]} x {large[1]} pixels ({len(self.sizes):,} different)"


def ascii_name(name: str) -> str:
    """Return a name as a terminal can show it: bytes that are not UTF-8, and control characters, as escapes."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
