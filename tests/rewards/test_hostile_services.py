"""Services that answer late, too much, wrongly or not at all: each ends in one error, or in the rewards."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from redif_ray.rewards import base, http
from redif_ray.rewards.base import RewardError

SETTING = base.Setting
GOOD = b'{"rewards": [0.5, 1, -2]}'
Sent = Callable[[socket.socket], None]


def plain(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if body is not None else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def answers(body: bytes, *headers: str, status: str = "200 OK") -> Sent:
    return lambda s: s.sendall(plain(body, *headers, status=status))


def rewards(text: str) -> Sent:
    return answers(f'{{"rewards": [{text}]}}'.encode())


def slowly(text: bytes) -> Sent:
    def send(s: socket.socket) -> None:
        for byte in text:
            s.sendall(bytes([byte]))
            time.sleep(0.02)

    return send


def endlessly(first: bytes, more: bytes) -> Sent:
    def send(s: socket.socket) -> None:
        s.sendall(first)
        while True:
            s.sendall(more)
            time.sleep(0.001)

    return send


def reset(s: socket.socket) -> None:
    s.sendall(plain(GOOD)[:-5])
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def silent(s: socket.socket) -> None:
    time.sleep(1)


def raw(text: bytes) -> Sent:
    return lambda s: s.sendall(text)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
AWAY = "does not answer, 2 attempts"
LATE = rf"{AWAY}; start the service and run the command again, .*timed out after 0\.15 s"
HOSTILE: dict[str, tuple[Sent, str | None, int]] = {  # -> what is sent, the error or None, and the attempts made
    "plain": (answers(GOOD), None, 1),
    "as text": (answers(GOOD, "Content-Type: text/html; charset=latin-1"), None, 1),
    "with a byte order mark": (answers(b"\xef\xbb\xbf" + GOOD), None, 1),
    "in UTF-16": (answers(GOOD.decode().encode("utf-16")), None, 1),
    "in chunks": (raw(CHUNKS + b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)), None, 1),
    "to the end of the connection": (raw(HEAD + b"Connection: close\r\n\r\n" + GOOD), None, 1),
    "after 100 Continue": (raw(b"HTTP/1.1 100 Continue\r\n\r\n" + plain(GOOD)), None, 1),
    "integers and exponents": (rewards("1, 2e-3, -0.0"), None, 1),
    "with more keys": (answers(b'{"took": 3, "rewards": [1, 2, 3]}'), None, 1),
    "a byte at a time": (slowly(plain(GOOD)), LATE, 2),
    "slow headers": (slowly(HEAD + b"A: b\r\n" * 100), LATE, 2),
    "a slow body": (lambda s: (s.sendall(HEAD + b"\r\n"), slowly(b" " * 1000)(s))[0], LATE, 2),
    "slow chunks": (lambda s: (s.sendall(CHUNKS), slowly(b"1\r\n \r\n" * 200)(s))[0], LATE, 2),
    "nothing": (silent, LATE, 2),
    "headers without end": (endlessly(HEAD, b"A: b\r\n"), AWAY, 2),
    "a header of a megabyte": (raw(HEAD + b"A: " + b"b" * 2**20 + b"\r\n\r\n"), AWAY, 2),
    "a body without end": (endlessly(HEAD + b"\r\n", b"x" * 4096), "answers more than 4288 bytes for 3 images", 1),
    "chunks without end": (endlessly(CHUNKS, b"a\r\n0123456789\r\n"), "answers more than 4288 bytes", 1),
    "a body of a megabyte": (answers(b"[" + b"0, " * 2**18 + b"0]"), "answers more than 4288 bytes", 1),
    "a closed connection": (lambda s: None, AWAY, 2),
    "a reset connection": (reset, AWAY, 2),
    "a body cut short": (raw(plain(GOOD)[:-5]), AWAY, 2),
    "chunks cut short": (raw(CHUNKS + b"ff\r\n" + GOOD), AWAY, 2),
    "broken chunks": (raw(CHUNKS + b"zz\r\n" + GOOD + b"\r\n0\r\n\r\n"), AWAY, 2),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), AWAY, 2),
    "no status": (raw(GOOD), AWAY, 2),
    "a redirection": (answers(b"", "Location: /other", status="302 Found"), "answers 302 Found: ''; expected 200", 1),
    "a permanent one": (answers(b"", "Location: http://a.invalid/", status="308 Gone"), "answers 308", 1),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "answers 204 No Content: ''; expected 200", 1),
    "a part": (answers(GOOD, status="206 Partial Content"), "answers 206", 1),
    "who are you": (answers(b"no", status="401 Unauthorized"), "answers 401 Unauthorized: 'no'", 1),
    "too large": (answers(b"", status="413 Content Too Large"), "answers 413", 1),
    "broken inside": (answers(b"oops", status="500 Internal"), "answers 500 Internal: 'oops'; expected 200", 2),
    "too many requests": (answers(b"", "Retry-After: 3600", status="429 Wait"), "answers 429 Wait", 2),
    "compressed": (answers(gzip.compress(GOOD), "Content-Encoding: gzip"), "expected JSON", 1),
    "an empty body": (answers(b""), r"answers '' \(JSONDecodeError.*expected JSON", 1),
    "a page": (answers(b"<html>", "Content-Type: text/html"), "answers '<html>'.*expected JSON", 1),
    "bytes": (answers(b"\xff\xfe\xfa\x00"), "expected JSON", 1),
    "a list": (answers(b"[0.5, 1, -2]"), "expected JSON", 1),
    "a number": (answers(b"3"), "expected JSON", 1),
    "another key": (answers(b'{"reward": [1, 2, 3]}'), r"KeyError: 'rewards'\); expected JSON", 1),
    "no list": (answers(b'{"rewards": 3}'), "not a list of numbers", 1),
    "nested lists": (rewards("[1], [2], [3]"), "not a list of numbers", 1),
    "texts": (rewards('"1", "2", "3"'), "not a list of numbers", 1),
    "nothing in it": (rewards("1, null, 3"), "not a list of numbers", 1),
    "truth": (rewards("true, false, true"), "not a list of numbers", 1),
    "NaN": (rewards("1, NaN, 3"), "is nan at row 1; expected a finite number", 1),
    "infinity": (rewards("1, 2, -Infinity"), "is -inf at row 2; expected a finite number", 1),
    "more than a float": (rewards("1e999, 2, 3"), "is inf at row 0", 1),
    "more than a float32": (rewards("1, 1e300, 3"), "at row 1; expected a finite number of torch.float32", 1),
    "a huge integer": (rewards("1, 2, 1" + "0" * 400), "OverflowError.*expected JSON", 1),
    "too few": (rewards("1, 2"), "answers 2 rewards for 3 images; expected one per image", 1),
    "too many": (rewards("1, 2, 3, 4"), "answers 4 rewards for 3 images", 1),
    "none": (rewards(""), "answers 0 rewards for 3 images", 1),
    "brackets without end": (answers(b"[" * 4000), "RecursionError.*expected JSON", 1),
    "another length": (raw(HEAD + b"Content-Length: many\r\n\r\n" + GOOD), AWAY, 2),
}


class Service:
    """A service on loopback that sends what it is told, to each connection, and counts these."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.send: Sent = answers(GOOD)
        self.read: Sent = self._whole
        self.attempts = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.attempts += 1
                threading.Thread(target=self._answer, args=(connection, self.send), daemon=True).start()

    def _answer(self, connection: socket.socket, send: Sent) -> None:
        with suppress(OSError), connection:
            self.read(connection)
            send(connection)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    @staticmethod
    def _whole(connection: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += connection.recv(65536)
        head, _, body = asked.partition(b"\r\n\r\n")
        (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < int(length.split(b":")[1]):
            body += connection.recv(65536)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.01)  # between attempts
    found = Service()
    yield found
    found.listening.close()


def score(url: str, build: Any, pair: Any, **options: Any) -> torch.Tensor:
    term = {"url": url, "format": "npy", "timeout": 0.15, "retries": 1} | options
    found: torch.Tensor = build(terms={"mine": term})(pair(dtype=torch.float32))["mine"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_each_answer_ends_in_rewards_or_one_error(what: str, service: Service, build: Any, pair: Any) -> None:
    service.send, message, attempts = HOSTILE[what]
    url, started = f"http://127.0.0.1:{service.port}/score", time.monotonic()
    if message is None:
        assert score(url, build, pair, timeout=5.0).shape == (3,)
    else:
        timeout = 0.15 if message == LATE else 5.0
        with pytest.raises(RewardError, match=rf"^reward term 'mine'.*{message}") as caught:
            score(url, build, pair, timeout=timeout)
        assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    assert service.attempts == attempts and time.monotonic() - started < 4


@pytest.mark.slow
def test_all_attempts_and_batches_of_a_call_share_one_limit(
    service: Service, build: Any, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "Setting", lambda *given: SETTING(*given[:-1], 0.4))
    service.send = lambda s: (time.sleep(0.15), answers(b'{"rewards": [1]}')(s))[0]
    url = f"http://127.0.0.1:{service.port}"
    with pytest.raises(
        RewardError, match=r"answers too slowly: [12] of 3 rewards in 0.4 s, half of pipeline.timeout_s"
    ):
        score(url, build, pair, batch=1, timeout=5.0)
    service.send = silent
    with pytest.raises(RewardError, match=r"answers too slowly: 0 of 3 rewards in 0.4 s"):
        score(url, build, pair, timeout=0.15, retries=1000)


def test_a_service_without_tls_is_no_secure_one(service: Service, build: Any, pair: Any) -> None:
    service.read, service.send = lambda s: s.recv(10), answers(b"", status="400 Bad Request")
    with pytest.raises(RewardError, match=r"https://127.0.0.1:\d+: there is no secure connection; .*SSL") as caught:
        score(f"https://127.0.0.1:{service.port}", build, pair, timeout=5.0)
    assert service.attempts == 1 and "\n" not in str(caught.value)


def test_a_certificate_that_nobody_vouches_for_is_refused(
    service: Service, build: Any, pair: Any, tmp_path: Path
) -> None:
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which makes the certificate")
    subprocess.run([*new, *files, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    service.read = lambda s: context.wrap_socket(s, server_side=True)
    with pytest.raises(RewardError, match=r"there is no secure connection; .*certificate verify failed"):
        score(f"https://127.0.0.1:{service.port}", build, pair, timeout=5.0)
    assert service.attempts == 1


@pytest.mark.parametrize("url", ["http://here:99999/", "http://here:port/", "http://[::1/", "http://:80/", "https:///"])
def test_an_address_that_cannot_be_is_named_when_the_term_is_built(url: str, build: Any) -> None:
    with pytest.raises(RewardError, match=r"expected http://\.\.\. or https://"):
        build(terms={"mine": {"url": url, "format": "npy"}})


def test_a_name_that_nobody_has_is_one_error(build: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.01)
    with pytest.raises(RewardError, match=AWAY):
        score("http://scorer.invalid/", build, pair, timeout=5.0)


def test_the_answer_is_in_the_order_of_the_images(service: Service, build: Any, pair: Any) -> None:
    service.send = answers(json.dumps({"rewards": [3, 1, 2]}).encode())
    assert score(f"http://127.0.0.1:{service.port}", build, pair, timeout=5.0).tolist() == [3, 1, 2]
