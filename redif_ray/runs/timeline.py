"""The timeline of a run: the busy times of the learner and of each worker, as a trace for Perfetto and chrome://tracing.

Workers report the duration and the end of each piece of work; the metrics writer appends them as spans to
`timeline.jsonl`. At the end of each start of a run `timeline.json` is made from that file.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.jsonl import read_rows
from redif_ray.types import Meta

log = logging.getLogger(__name__)
SPANS, TRACE = "timeline.jsonl", "timeline.json"
STAGES = {"teacher": "targets", "rewards": "score"}  # stage by component, where the names differ
DEPLOYED = {Stream.VALIDATION: "validation", Stream.CALIBRATION: "calibration"}  # any other stream is the evaluation
Span = dict[str, Any]  # {"row", "stage", "round", "start": seconds since 1970, "seconds"}


def spans(metas: Iterable[Meta]) -> list[Span]:
    """Return the work of the workers as spans, one for each piece of work."""
    return [
        {
            "row": meta.worker,
            "stage": _stage(meta, work.component),
            "round": meta.unit.round,
            "start": work.ended - work.seconds,
            "seconds": work.seconds,
        }
        for meta in metas
        for work in meta.work
    ]


def _stage(meta: Meta, component: str) -> str:
    if meta.unit.phase == "deploy":
        return DEPLOYED.get(meta.unit.stream, "evaluation")
    return STAGES.get(component, component)


class Stages:
    """The recorder of the spans of one row. writer: actor handle of the metrics writer."""

    def __init__(self, row: str, writer: Any) -> None:
        self.row, self.writer = row, writer
        self.passed: list[Span] = []

    @contextmanager
    def stage(self, name: str, round: int) -> Iterator[None]:
        """Record the block as a span of stage `name`."""
        start, began = time.time(), time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.passed.append({"row": self.row, "stage": name, "round": round, "start": start, "seconds": seconds})

    def send(self) -> None:
        """Send the recorded spans to the metrics writer, without waiting."""
        if self.passed:
            self.writer.spans.remote(self.passed)
            self.passed = []


def draw(folder: RunFolder) -> None:
    """Write the trace of all starts of a run. A failure is only logged, so that it hides no error of the run."""
    if (folder.path / SPANS).exists():
        try:
            folder.write(TRACE, trace(read_rows(folder.path / SPANS)))
        except UserError as error:
            log.warning("%s is not written: %s", TRACE, error)


def trace(recorded: Iterable[Span]) -> str:
    """Return spans as the JSON of Chrome's trace events, with a thread for each row.

    A node's clock may step back; so a span is moved to start where the one before it in its row ends.
    """
    rows: dict[str, list[Span]] = {}
    for span in sorted(recorded, key=lambda span: span["start"]):
        rows.setdefault(span["row"], []).append(span)
    first = min((own[0]["start"] for own in rows.values()), default=0.0)
    events: list[Mapping[str, Any]] = []
    for number, row in enumerate(sorted(rows, key=_order)):
        events.append(_about("thread_name", number, {"name": row}))
        events.append(_about("thread_sort_index", number, {"sort_index": number}))
        free = 0
        for span in rows[row]:
            start, end = (round(1e6 * (at - first)) for at in (span["start"], span["start"] + span["seconds"]))
            start, end = max(start, free), max(end, free)
            events.append(
                {
                    "name": span["stage"],
                    "cat": "redif",
                    "ph": "X",
                    "ts": start,
                    "dur": end - start,
                    "pid": 0,
                    "tid": number,
                    "args": {"round": span["round"]},
                }
            )
            free = end
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(first))
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"began": began}}) + "\n"


def _about(name: str, number: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": 0, "tid": number, "args": arguments}


def _order(row: str) -> tuple[bool, str, int]:
    """Return a sort key: the learner first, then each role's workers by number."""
    role, _, number = row.rpartition("-")
    return (role != "learner", role, int(number))
