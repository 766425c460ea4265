"""Columns beside the captions: from every source to the user's functions and services."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import make, tar
from rich.console import Console
from test_reward_http import free_port
from tiny_encoders import write_clip
from tiny_pipelines import write_sd

from redif_ray.checkpoint import save_checkpoint
from redif_ray.config import Config, ConfigError, Term, load
from redif_ray.data.conditions import Conditions, load_conditions
from redif_ray.job import evaluate
from redif_ray.loop import PlainLoop
from redif_ray.planning import factory
from redif_ray.rewards.base import RewardError, RewardInputs, build_terms
from redif_ray.runs.folder import RunError, RunFolder

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TOLD = {"a cat": {"n": 1, "include": [{"class": "cat"}]}, "two dogs": {"n": 2, "include": [{"class": "dog"}]}}
LINES = "".join(json.dumps({"caption": caption, **row, "other": 0}) + "\n" for caption, row in TOLD.items())


OWN = "reward.terms={mine: {options: {url: http://127.0.0.1:1}}}"


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{"caption": caption, **row} for caption, row in TOLD.items()]), sink)
    return bytes(sink.getvalue())


def shard() -> bytes:
    return tar({f"{i}.json": json.dumps({"caption": caption, **row}) for i, (caption, row) in enumerate(TOLD.items())})


def read(source: Path, *columns: str, held_out: float = 0.0) -> Conditions:
    wanted = load(None, [f"conditions.source={source}", f"conditions.metadata=[{', '.join(columns)}]", OWN]).conditions
    wanted = wanted.model_copy(update={"held_out": held_out})
    return load_conditions(wanted, num_classes=None, captions=True, seed=0)


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"p.jsonl": LINES}, "p.jsonl"),
        ({"p.parquet": parquet()}, "p.parquet"),
        ({"p.tar": shard()}, "p.tar"),
        ({"metadata.jsonl": LINES.replace('"other"', '"file_name"'), "a.png": b""}, ""),
    ],
)
def test_every_layout_gives_the_columns_that_are_asked_for(files: Any, source: str, tmp_path: Path) -> None:
    found = read(make(tmp_path, files) / source, "n", "include")
    assert found.metadata == TOLD
    assert Conditions.from_json(found.to_json()) == found
    assert "metadata" not in read(tmp_path / source).to_json()


def test_a_run_reads_again_what_it_keeps(tmp_path: Path) -> None:
    """A mapping of Parquet is read as pairs, which JSON keeps as lists."""
    column = pa.array([[("red", 2)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"caption": ["a cat"], "n": column}), tmp_path / "p.parquet")
    found = read(tmp_path / "p.parquet", "n")
    assert found.metadata == {"a cat": {"n": [["red", 2]]}}
    assert Conditions.from_json(found.to_json()) == found


def test_metadata_that_cannot_be_given_is_named(tmp_path: Path) -> None:
    make(tmp_path, {"p.jsonl": LINES, "p.txt": "a cat\n", "p.tar": shard(), "p.csv": "caption,n\na cat,1\n"})
    pq.write_table(pa.table({"caption": ["a cat"], "raw": [b"\x00"]}), tmp_path / "raw.parquet")
    (tmp_path / "half.jsonl").write_text('{"caption": "a cat", "n": "\\ud83d"}\n')
    for source, columns, message in (
        ("p.jsonl", ["tag"], r"p\.jsonl has the columns .*expected tag for metadata"),
        ("p.tar", ["tag"], r"0\.json has no key 'tag' for metadata"),
        ("p.txt", ["n"], r"p\.txt has no columns beside its captions; conditions\.metadata asks for n"),
        ("raw.parquet", ["raw"], r"raw of .*row 0 is b'\\x00' .*takes texts, numbers"),
        ("half.jsonl", ["n"], r"n of .*half\.jsonl row 0 is .*surrogates not allowed.*takes texts, numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path / source, *columns)
    labels = load(None, ["conditions.kind=class", "conditions.metadata=[n]", OWN]).conditions
    with pytest.raises(ConfigError, match=r"conditions\.metadata=\['n'\]: the conditions are no captions"):
        load_conditions(labels, num_classes=3, captions=False, seed=0)
    make(tmp_path, {"twice.csv": "caption,n\na cat,1\na cat,2\nA cat,3\na dog,1\n"})
    found = read(tmp_path / "twice.csv", "n")
    assert found.metadata == {"a cat": {"n": "1"}, "a dog": {"n": "1"}}
    assert "2 repeated captions have other metadata; the first row counts" in found.notes  # one is spelled otherwise


def inputs(count: int = 4, shape: tuple[int, ...] = (3, 8, 8)) -> RewardInputs:
    images = torch.rand(2, count, *shape, generator=torch.Generator().manual_seed(0))
    return RewardInputs(images[0], images[1], [list(TOLD)[i % 2] for i in range(count)])


def scored(options: dict[str, Any], given: RewardInputs, metadata: Any) -> torch.Tensor:
    terms = {"mine": Term(options=options)}
    rewards = build_terms(terms, num_classes=0, image_shape=(3, 8, 8), device="cpu", captions=True, metadata=metadata)
    return rewards(given)["mine"]


def test_a_function_with_the_parameter_gets_the_rows_of_its_captions(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def counted(student, teacher, conditions, metadata):\n"
        "    value = torch.tensor([float(row['n']) for row in metadata])\n"
        "    for row in metadata:\n"
        "        row['include'].clear(); row['n'] = 0\n"
        "    return value\n"
        "def plain(student, teacher, conditions):\n"
        "    return student.mean((1, 2, 3))\n"
        "def any_columns(student, teacher, conditions, **columns):\n"
        "    return torch.full([len(student)], 1.0 * sum(row['n'] for row in columns.get('metadata', [])))\n"
        "def optional(student, teacher, conditions, metadata=()):\n"
        "    return any_columns(student, teacher, conditions, metadata=metadata)\n"
    )
    function = {"callable": f"{tmp_path / 'own.py'}:counted"}
    for _ in range(2):  # what a function changes is its own
        assert scored(function, inputs(), TOLD).tolist() == [1, 2, 1, 2]
    assert TOLD["a cat"]["include"] == [{"class": "cat"}]
    assert scored({"callable": f"{tmp_path / 'own.py'}:plain"}, inputs(), TOLD).shape == (4,)
    for name in ("any_columns", "optional"):
        options = {"callable": f"{tmp_path / 'own.py'}:{name}"}
        assert scored(options, inputs(), TOLD).tolist() == [6] * 4
        assert scored(options, inputs(), None).tolist() == [0] * 4
    with pytest.raises(RewardError, match=r"counted' takes metadata; name the columns .* by conditions\.metadata"):
        scored(function, inputs(), None)


def test_the_example_checks_colours() -> None:
    red, mixed = torch.ones(3, 8, 8), torch.ones(3, 8, 8)
    red[1:, 2:6, 2:6] = 0
    mixed[:2, :, :2], mixed[1:, :1, :1] = 0, 0
    given = RewardInputs(torch.stack([red, red, mixed, torch.ones(3, 8, 8)]), torch.zeros(4, 3, 8, 8), list("abaa"))
    told = {"a": {"colour": [255, 0, 0]}, "b": {"colour": [0, 0, 255]}}
    found = scored({"callable": f"{EXAMPLES / 'own_checker.py'}:right_colour"}, given, told)
    assert found.tolist() == [1, 0, 0, 0]


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A model that says 7.5 of every image, and reads CAFÉ 21 in it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            picture, text = asked["messages"][0]["content"]
            known = picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR") and asked["model"] == "vlm"
            said = "7.5" if "How well" in text["text"] else "CAFÉ 21"
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200 if known and self.path == "/v1/chat/completions" else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}/v1"
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.mark.slow
def test_the_example_server_asks_a_model_for_a_score_and_for_the_text(endpoint: str) -> None:
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "judge_server.py"), endpoint, "vlm", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    told = {"a cat": {"text": "Café 21"}, "two dogs": {"text": "cafe"}}
    try:
        assert scored({"url": f"http://127.0.0.1:{port}/judge"}, inputs(), told).tolist() == [0.75] * 4
        found = scored({"url": f"http://127.0.0.1:{port}/text"}, inputs(), told).numpy()
        np.testing.assert_allclose(found, [1, 0.25, 1, 0.25])  # one letter is another, two are too many
        with pytest.raises(RewardError, match="answers 503"):
            scored({"url": f"http://127.0.0.1:{port}/text", "retries": 0}, inputs(), None)
    finally:
        process.terminate()
        process.wait()


def test_an_image_without_text_agrees_with_no_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["judge_server.py", "http://127.0.0.1:1", "vlm", "0"])
    example = runpy.run_path(str(EXAMPLES / "judge_server.py"))
    monkeypatch.setitem(example["read"].__globals__, "ask", lambda image, question: " NONE\n")
    assert example["read"]("", "no exit") == 0 and example["read"]("", "") == 1


def recipe(tmp_path: Path, *overrides: str) -> Config:
    (tmp_path / "own.py").write_text(
        "def told(student, teacher, conditions, metadata):\n"
        "    assert all({'a cat': 1, 'two dogs': 2}[c] == row['n'] for c, row in zip(conditions, metadata))\n"
        "    return student.mean((1, 2, 3)) * student.new_tensor([row['n'] for row in metadata])\n"
    )
    (tmp_path / "p.jsonl").write_text(LINES)
    fixed = [
        f"teacher.model={write_sd(tmp_path / 'sd')}",
        f"run.root={tmp_path / 'runs'}",
        f"conditions.source={tmp_path / 'p.jsonl'}",
        "conditions.metadata=[n]",
        "conditions.held_out=0",
        f"reward.terms={{mse: {{}}, mine: {{options: {{callable: {tmp_path / 'own.py'}:told}}}}}}",
        "evaluation.judge=random-features",
        "tracking.uri=off",
    ]
    return load("smoke", [*fixed, *overrides])


@pytest.mark.slow
def test_a_round_scores_captions_with_what_belongs_to_them(tmp_path: Path) -> None:
    loop = PlainLoop(recipe(tmp_path, "warm_start.rounds=0"))
    before = loop.checksum()
    loop.round(0)
    assert loop.checksum() != before


@pytest.mark.slow
def test_workers_read_what_the_run_folder_keeps(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    teacher = factory.teacher(config, "cpu")
    folder = tmp_path / "runs" / config.run.name
    folder.mkdir(parents=True)
    with RunFolder.reopen(folder) as run:
        run.keep_conditions(factory.conditions(config, teacher))
        (tmp_path / "p.jsonl").write_text(LINES.replace('"n": 2', '"n": 3'))
        assert factory.metadata(config, teacher)["two dogs"]["n"] == 2
        with pytest.raises(RunError, match="the conditions differ"):
            run.keep_conditions(factory.conditions(config, teacher))


@pytest.mark.slow
def test_the_evaluation_of_a_renamed_run_reads_its_own_columns(tmp_path: Path, monkeypatch: Any) -> None:
    config = recipe(tmp_path)
    teacher = factory.teacher(config, "cpu")
    for name in ("renamed", config.run.name):  # another run has the name that the first was started with
        (tmp_path / "p.jsonl").write_text(LINES if name == "renamed" else LINES.replace('"n": 2', '"n": 3'))
        folder = RunFolder.open(config, resume=False)
        folder.close()
        folder.keep_conditions(factory.conditions(config, teacher))
        save_checkpoint(folder.path / "checkpoints" / "best", {"student/weight": torch.zeros(1)}, {"version": 1})
        folder.path.rename(tmp_path / "runs" / name)
    asked: Any = None

    def stopped(config: Config, *_: Any, **__: Any) -> Config:
        nonlocal asked
        asked = config
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "rehearse", lambda _: None)
    monkeypatch.setattr(evaluate, "with_batches", stopped)
    monkeypatch.chdir(tmp_path)
    judge = write_clip(tmp_path / "judge")
    overrides = ["evaluation.judge=judge", "evaluation.held_out=12"]
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(tmp_path / "runs" / "renamed", overrides, checkpoint="best", console=Console())
    assert factory.metadata(asked, teacher)["two dogs"]["n"] == 2
    assert asked.evaluation.judge == str(judge)
