"""A scorer behind HTTP on this machine: what is asked, what is answered, and every way it can fail."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from redif_ray.rewards import http
from redif_ray.rewards.base import RewardError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "reward_server.py"
Answer = Callable[[int, dict[str, Any]], tuple[int, bytes]]  # (number of the request, what it asks) -> status, body


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Server:
    url: str
    answer: Answer = lambda _, asked: (200, json.dumps({"rewards": [0.5] * len(asked["student"])}).encode())
    headers: dict[str, str] = field(default_factory=dict)  # of the answer
    asked: list[dict[str, Any]] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            state.authorization.append(self.headers["Authorization"])
            status, body = state.answer(len(state.asked), state.asked[-1])
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | state.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{listening.server_port}/score"
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.01)  # between attempts
    yield state
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_png_and_npy_carry_the_images_and_conditions(server: Server, pair: Any, build: Any) -> None:
    inputs = pair((5, 3, 12, 13))
    for kind in ("png", "npy"):
        term = {"mine": {"url": server.url, "format": kind, "batch": 2}}
        rewards = build(terms=term, shape=(3, 12, 13))
        server.asked.clear()
        server.answer = lambda n, asked: (200, json.dumps({"rewards": [n] * len(asked["student"])}).encode())
        assert rewards(inputs)["mine"].tolist() == [1, 1, 2, 2, 3]
        assert [len(a["student"]) for a in server.asked] == [2, 2, 1]
        assert [c for a in server.asked for c in a["conditions"]] == list(inputs.conditions)
        for role, images in (("student", inputs.student), ("teacher", inputs.teacher)):
            raw = [base64.b64decode(text) for a in server.asked for text in a[role]]
            if kind == "png":
                found = np.stack([np.asarray(Image.open(io.BytesIO(r))) for r in raw]).transpose(0, 3, 1, 2) / 255
                np.testing.assert_allclose(found, images.numpy(), atol=0.5 / 255 + 1e-6)
            else:
                found = np.stack([np.load(io.BytesIO(r), allow_pickle=False) for r in raw])
                np.testing.assert_array_equal(found, images.float().numpy())


def test_the_teacher_s_images_can_stay_at_home(server: Server, pair: Any, build: Any) -> None:
    rewards = build(terms={"mine": {"url": server.url, "teacher": False, "format": "npy"}})
    rewards(pair())
    assert server.asked[0]["teacher"] is None and not rewards.terms["mine"].differentiable


def test_the_header_comes_from_the_environment(
    server: Server, pair: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    term = {"mine": {"url": server.url, "format": "npy", "header_env": "SCORER_KEY"}}
    with pytest.raises(RewardError, match="header_env=SCORER_KEY: no such environment variable"):
        build(terms=term)
    monkeypatch.setenv("SCORER_KEY", "Bearer secret")
    build(terms=term)(pair())
    server.answer = lambda *_: (403, b"who are you?")
    with pytest.raises(RewardError, match="403") as refused:
        build(terms=term)(pair())
    assert server.authorization == ["Bearer secret"] * 2 and "secret" not in str(refused.value)


def test_the_header_is_stripped_and_checked_when_the_term_is_built(
    server: Server, pair: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file read into a variable ends in a line break, which `requests` would refuse with the value in its message."""
    term = {"mine": {"url": server.url, "format": "npy", "header_env": "SCORER_KEY", "retries": 0}}
    monkeypatch.setenv("SCORER_KEY", "  Bearer secret\n")
    build(terms=term)(pair())
    assert server.authorization == ["Bearer secret"]
    for value in ("Bearer secret\r\nX-Other: 1", "Bearer s\u00e9cret", "  \n", "secret\tword"):
        monkeypatch.setenv("SCORER_KEY", value)
        with pytest.raises(RewardError, match=r"header_env=SCORER_KEY: .*no value of an HTTP") as error:
            build(terms=term)
        assert "cret" not in "".join(traceback.format_exception(error.value))


def test_a_service_that_echoes_the_header_does_not_bring_it_into_an_error(
    server: Server, pair: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER_KEY", "Bearer hushhush")
    rewards = build(terms={"mine": {"url": server.url, "format": "npy", "header_env": "SCORER_KEY", "retries": 0}})
    bodies = (b"unknown token hushhush", b"x" * 112 + b"Bearer hushhush", b'{"rewards": "hushhush"}')
    for status, body in zip((401, 200, 200), bodies, strict=True):
        server.answer = lambda *_, status=status, body=body: (status, body)
        with pytest.raises(RewardError, match=r"\*\*\*") as error:
            rewards(pair())
        assert "hush" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_service_that_comes_back_costs_a_pause_only(status: int, server: Server, pair: Any, build: Any) -> None:
    good = server.answer
    server.answer = lambda n, asked: (status, b"busy") if n < 3 else good(n, asked)
    server.headers = {"Retry-After": "3600"}  # which it does not get to decide
    started = time.monotonic()
    assert build(terms={"mine": {"url": server.url, "format": "npy"}})(pair())["mine"].tolist() == [0.5] * 3
    assert len(server.asked) == 3 and server.asked[0] == server.asked[2]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("status", "body", "message", "attempts"),
    [
        (500, b"broken inside", "answers 500 .*broken inside", 3),
        (404, b"no such page", "answers 404 .*no such page", 1),
        (302, b"elsewhere", "answers 302", 1),
        (200, b"<html>", r"answers '<html>'.*expected JSON .*3 numbers", 1),
        (200, b'{"scores": [1, 2, 3]}', "expected JSON", 1),
        (200, b'{"rewards": [1, true, 3]}', "not a list of numbers", 1),
        (200, b'{"rewards": [1, "2", 3]}', "not a list of numbers", 1),
        (200, b'{"rewards": [1, 2]}', "answers 2 rewards for 3 images", 1),
        (200, b'{"rewards": [1, NaN, 3]}', "'mine' is nan at row 1", 1),
        (200, b'{"rewards": [1, 2, 3], "more": "' + b"x" * 10**6 + b'"}', "answers more than 4288 bytes", 1),
    ],
)
def test_answers_that_are_no_rewards_are_named(
    status: int, body: bytes, message: str, attempts: int, server: Server, pair: Any, build: Any
) -> None:
    server.answer = lambda *_: (status, body)
    server.headers = {"Location": server.url} if status == 302 else {}
    with pytest.raises(RewardError, match=message) as error:
        build(terms={"mine": {"url": server.url, "format": "npy", "retries": 2}})(pair())
    assert len(server.asked) == attempts and len(str(error.value)) < 600


@pytest.mark.slow
def test_a_service_that_is_away_or_slow_stops_the_run(
    server: Server, pair: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RewardError, match=rf"reward term 'mine': {away} does not answer, 3 attempts"):
        build(terms={"mine": {"url": away, "format": "npy", "retries": 2}})(pair())
    good = server.answer
    server.answer = lambda n, asked: (time.sleep(0.5), good(n, asked))[1]
    slow = {"url": server.url, "format": "npy", "timeout": 0.1, "retries": 1}
    with pytest.raises(RewardError, match=r"does not answer, 2 attempts; .*[tT]imed? ?out"):
        build(terms={"mine": slow})(pair())
    assert build(terms={"mine": slow | {"timeout": 5.0}})(pair())["mine"].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://here/score"}, "expected http://"),
        ({"url": "localhost:80"}, "expected http://"),
        ({"url": "http://here", "format": "pickle"}, "format"),
        ({"url": "http://here", "batch": 0}, "batch"),
        ({"url": "http://here", "format": "png"}, "a PNG has 1 or 3 channels"),  # images of two channels
        ({"url": "http://here", "verify": False}, "no option 'verify'"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str, build: Any) -> None:
    with pytest.raises(RewardError, match=message) as error:
        build(terms={"mine": {"format": "npy"} | options})
    assert "hush" not in str(error.value)


@pytest.mark.slow
def test_the_example_server_scores(pair: Any, build: Any) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(EXAMPLE), str(port)], stderr=subprocess.DEVNULL)
    try:
        inputs = pair((3, 1, 12, 13))
        rewards = build(terms={"bright": {"url": f"http://127.0.0.1:{port}"}}, shape=(1, 12, 13))
        found = rewards(inputs)["bright"]  # its first attempts find nobody there yet
    finally:
        process.terminate()
        process.wait()
    student, teacher = (torch.round(255 * images) / 255 for images in (inputs.student, inputs.teacher))
    expected = 0.1 * student.mean((1, 2, 3)) - (student - teacher).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)
