"""A suite of parts, measured one after the other, each added to the suite's report when it is done."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from redif_ray.errors import Notice, UserError
from redif_ray.evaluation.report import markdown_table
from redif_ray.interrupt import Interrupted, StopRequest, stop_requests


@dataclass(frozen=True, slots=True)
class Part:
    """numbers: what the text says, for programs. notes: sentences below the table."""

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: dict[str, float]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        return "\n\n".join([f"## {self.title}", markdown_table(self.head, self.rows), *self.notes])


Measure = Callable[[Path, StopRequest, Console], Part]


@dataclass(frozen=True, slots=True)
class Suite:
    """`python -m benchmarks.NAME`; its report is NAME.md, and NAME.json for programs."""

    name: str
    title: str
    parts: Mapping[str, Measure]

    def main(self, description: str | None) -> None:
        """The command line: the parts to measure, all where none is named, and the folder of the report."""
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(self.parts)}; none: all")
        parser.add_argument(
            "--out",
            type=Path,
            default=Path("runs/benchmarks"),
            help=f"the folder of {self.name}.md and {self.name}.json, by default %(default)s",
        )
        options = parser.parse_args()
        try:
            print(f"written to {self.measure(options.parts, options.out, Console())}")
        except UserError as error:
            parser.error(str(error))
        except Notice as notice:
            print(notice)
            raise SystemExit(notice.exit_code) from None

    def measure(self, chosen: Sequence[str], out: Path, console: Console) -> Path:
        """Measure the parts `chosen`, all where none is named, and write the report in the folder `out`.

        Parts that are in the report already and are not asked for stay. Raises UserError for a part that is not known.
        """
        unknown = [part for part in chosen if part not in self.parts]
        if unknown:
            raise UserError(f"{unknown[0]} is no part of the benchmark; expected some of {', '.join(self.parts)}")
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{self.name}.json"
        with stop_requests() as stop:
            for name in chosen or self.parts:
                console.print(f"{name} ...", highlight=False)
                with tempfile.TemporaryDirectory(prefix="redif-") as folder, Path(os.devnull).open("w") as nowhere:
                    try:
                        part = self.parts[name](Path(folder), stop, Console(file=nowhere))
                    except Interrupted:
                        raise stop.interrupted(f"stopped; what was measured before is in {out}") from None
                found: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
                found[name] = asdict(part) | {"machine": _machine(), "date": time.strftime("%Y-%m-%d")}
                path.write_text(json.dumps({"schema": 1, "parts": found}, indent=1) + "\n")
                path.with_suffix(".md").write_text(self._report(found))
                console.print(part.markdown(), highlight=False, soft_wrap=True, markup=False)
        return path.with_suffix(".md")

    def _report(self, found: Mapping[str, Any]) -> str:
        parts = []
        for name in self.parts:
            if name in found:
                told = dict(found[name])
                machine, date = told.pop("machine"), told.pop("date")
                parts.append(f"{Part(**told).markdown()}\n\n{date}, {machine}.")
        return "\n\n".join([f"# {self.title}", f"`python -m benchmarks.{self.name}` writes this.", *parts]) + "\n"


def _machine() -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}"
