"""A run whose URIs, options and headers hold secrets: they are in nothing that it leaves, and are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from redif_ray.cluster.private import ray_folder

pytestmark = [pytest.mark.cluster, pytest.mark.long]  # `make test` has its parts without Ray
SECRETS = {name: f"hunter-{name}-4711" for name in ("query", "header", "store", "user", "environment")}


class Service:
    """A reward service that keeps what it is sent, and refuses a request without its secrets by repeating them."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.headers: list[str] = []
        self.bodies: list[bytes] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.paths.add(self.path)
                service.headers.append(str(self.headers["Authorization"]))
                service.bodies.append(body)
                answer = json.dumps({"rewards": [0.5] * len(json.loads(body)["student"])}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.at = f"127.0.0.1:{self.server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def planted(folder: Path, logs: Path) -> list[str]:
    """The files below a folder, and below Ray's folder of the run, that hold a secret in any spelling."""
    words = [word.encode() for secret in SECRETS.values() for word in (secret, secret.replace("-", "%2D"))]
    files = [path for root in (folder, logs) for path in root.rglob("*") if path.is_file()]
    assert any(path.name == "raylet.out" for path in files) and any(path.name == "config.yaml" for path in files)
    return [str(path) for path in files if any(word in path.read_bytes() for word in words)]


def test_a_secret_of_a_run_is_in_nothing_that_it_leaves(tmp_path: Path) -> None:
    service = Service()
    store = f"sqlite:///file:{tmp_path}/mlflow.db?token={SECRETS['store']}&uri=true"
    url = f"http://{service.at}/score?api_key={SECRETS['query']}"
    command = [
        *(sys.executable, "-m", "redif_ray.cli", "distill", "smoke"),
        *(f"run.root={tmp_path}", "run.name=first", f"tracking.uri={store}"),
        "reward.terms={mse: {}}",
        f"reward.terms.scorer.options.url={url}",
        "reward.terms.scorer.options.header_env=SCORER_HEADER",
        "reward.terms.scorer.weight=0",
        "checkpoint.upload=env:PLACE_OF_COPIES",
    ]
    environment = os.environ | {
        "SCORER_HEADER": f"Bearer {SECRETS['header']}",
        "PLACE_OF_COPIES": f"file://{tmp_path}/copies",
    }
    before = set(ray_folder().glob("session_*"))
    with service.running():
        done = subprocess.run(  # in its own folder, in which MLflow makes one for a store that is named by file:
            command, capture_output=True, text=True, timeout=500, env=environment, cwd=tmp_path, check=False
        )
    assert done.returncode == 0, done.stderr
    (session,) = {path for path in ray_folder().glob("session_*") if path.name != "session_latest"} - before
    assert service.paths == {f"/score?api_key={SECRETS['query']}"} and service.bodies
    assert set(service.headers) == {f"Bearer {SECRETS['header']}"}
    assert not any(secret.encode() in body for secret in SECRETS.values() for body in service.bodies)
    assert not [secret for secret in SECRETS.values() if secret in done.stdout + done.stderr]
    assert planted(tmp_path, session) == []
    assert list((tmp_path / "copies/first").glob("round-*")) and (tmp_path / "mlflow.db").exists()
    assert "token=***" in (tmp_path / "first/config.yaml").read_text()
    assert "token=***" in (tmp_path / "first/report.md").read_text()

    service_is_gone = [*command[:6], "run.name=second", *command[7:]]
    failed = subprocess.run(
        [*service_is_gone, "reward.terms.scorer.options.retries=0"],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert not (tmp_path / "second").exists()  # the service was asked before anything started
    assert failed.returncode == 2 and f"http://{service.at}/score?api_key=*** does not answer" in failed.stderr
    sessions = {path for path in ray_folder().glob("session_*") if path.name != "session_latest"} - before
    for each in sessions:
        assert planted(tmp_path, each) == []
    assert not [secret for secret in SECRETS.values() if secret in failed.stdout + failed.stderr]
    shown = subprocess.run(
        [*command[:3], "status", str(tmp_path / "first")], capture_output=True, text=True, timeout=60, check=True
    )
    assert "***" in shown.stdout and not [secret for secret in SECRETS.values() if secret in shown.stdout]
