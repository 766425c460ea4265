from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from smoke_runs import summary

from redif_ray.diffusion.noise import Stream
from redif_ray.job.metrics_writer import MetricsWriter
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.timeline import SPANS, TRACE, spans, trace
from redif_ray.types import Meta, Work, WorkUnit


def checked(text: str) -> dict[str, list[dict[str, Any]]]:
    """A trace's complete events by row, after a look at what Chrome's format asks of it."""
    found = json.loads(text)
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"} and found["displayTimeUnit"] in ("ms", "ns")
    named = {e["tid"]: e["args"]["name"] for e in found["traceEvents"] if e["ph"] == "M" and e["name"] == "thread_name"}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in named.values()}
    for event in found["traceEvents"]:
        assert event["ph"] in ("X", "M") and isinstance(event["name"], str)
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
        if event["ph"] == "X":
            assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("ts", "dur"))
            rows[named[event["tid"]]].append(event)
    for own in rows.values():
        assert own and all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(own))
    return rows


def meta(worker: str, phase: str, stream: Stream, *work: Work) -> Meta:
    return Meta(WorkUnit(3, 0, phase, stream, (0,), (None,)), worker, work)


def test_spans_are_named_after_stages() -> None:
    found = spans(
        [
            meta("reward-0", "policy", Stream.TRAIN, Work("teacher", 2.0, 1, 12.0), Work("rewards", 1.0, 0, 13.5)),
            meta("rollout-0", "deploy", Stream.VALIDATION, Work("evaluation", 1.0, 1, 20.0)),
            meta("rollout-0", "deploy", Stream.HELD_OUT, Work("evaluation", 1.0, 1, 20.0)),
        ]
    )
    assert [span["stage"] for span in found] == ["targets", "score", "validation", "evaluation"]
    assert found[1] == {"row": "reward-0", "stage": "score", "round": 3, "start": 12.5, "seconds": 1.0}


def test_a_row_has_no_overlap_whatever_the_clocks_say() -> None:
    def span(row: str, start: float, seconds: float) -> dict[str, Any]:
        return {"row": row, "stage": "score", "round": 0, "start": start, "seconds": seconds}

    rows = checked(
        trace(
            [
                span("reward-10", 5.0, 1.0),
                span("reward-2", 4.0, 2.0),
                span("reward-2", 5.5, 1.0),
                span("reward-2", 5.6, 0.1),
                span("learner-0", 9.0, 1.0),
            ]
        )
    )
    assert list(rows) == ["learner-0", "reward-2", "reward-10"]
    assert [(e["ts"], e["dur"]) for e in rows["reward-2"]] == [(0, 2_000_000), (2_000_000, 500_000), (2_500_000, 0)]
    assert json.loads(trace([]))["traceEvents"] == []


def test_a_timeline_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redif_ray.job.metrics_writer.TIMELINE_BYTES", 10)
    writer = MetricsWriter(str(tmp_path), None, "tests", "run", None)
    for n in range(3):
        writer.spans([{"n": n}, {"n": n}])
    assert [row["n"] for row in read_rows(tmp_path / SPANS)] == [0, 0]


@pytest.mark.cluster
def test_a_run_s_timeline_is_what_its_accounts_say(first: Path) -> None:
    rows = checked((first / TRACE).read_text())
    assert next(iter(rows)) == "learner-0" and {"reward-0", "reward-1", "rollout-0", "rollout-1"} <= set(rows)

    def events(role: str) -> list[dict[str, Any]]:
        return [event for row in rows if row.startswith(f"{role}-") for event in rows[row]]

    def seconds(role: str, stage: str) -> float:
        return sum(event["dur"] for event in events(role) if event["name"] == stage) / 1e6

    compute = summary(first)["compute"]
    assert seconds("rollout", "rollout") == pytest.approx(compute["student_rollout"]["seconds"], abs=1e-3)
    assert seconds("reward", "targets") == pytest.approx(compute["teacher"]["seconds"], abs=1e-3)
    assert seconds("reward", "score") == pytest.approx(compute["rewards"]["seconds"], abs=1e-3)
    assert seconds("reward", "anchor") == pytest.approx(compute["anchor"]["seconds"], abs=1e-3)
    assert compute["update"]["seconds"] <= seconds("learner", "update") < compute["update"]["seconds"] + 2
    done = {(event["name"], event["args"]["round"]) for event in rows["learner-0"]}
    assert {("update", r) for r in range(4)} | {("validation", r) for r in (0, 2, 4)} <= done
    assert {event["name"] for event in events("rollout")} == {"rollout", "calibration", "validation", "evaluation"}
