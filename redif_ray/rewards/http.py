"""A reward from an HTTP service that answers JSON with one number per image.

    POST url   {"format": "png", "student": [base64, ...], "teacher": [base64, ...] or null, "conditions": [...]}
               and "metadata": [{...}, ...], one per image, where `conditions.metadata` names columns
    answer     {"rewards": [number, ...]}, one per image, higher is better

`png`: 8-bit images. `npy`: float32 [C, H, W] in [0, 1], exact. Nothing is ever unpickled. A complete server is in
docs/examples/reward_server.py.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.data.pixels import picture
from redif_ray.masking import learn, masked
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.user_code.deadline import ADVICE

PER_IMAGE, OVERHEAD = 64, 4096  # bytes: an answer is read up to PER_IMAGE per image plus OVERHEAD
LONGEST_WAIT = 30  # seconds between two attempts
AGAIN = (429, 500, 502, 503, 504)  # HTTP statuses after which a request is tried again


@dataclass(config=OPTIONS)
class HttpTerm:
    """The value that the service at `url` gives an image; no gradient.

    format: encoding of the images in a request. teacher: send the teacher's images too; training makes none where no
        term reads them. batch: images per request.
    timeout: seconds after which a request whose answer is not there to its last byte has failed.
    retries: number of further attempts after a failed connection, a time-out or a status of `AGAIN`, with pauses of 0,
        2, 4, ... seconds between them. A service that is down pauses the run, and stops it after the last attempt, or
        once all attempts of a call have taken half of `pipeline.timeout_s`.
    header_env: name of the environment variable that holds the Authorization header; its value is never written to a
        file or a log. None: no header.
    The secrets of a `url` are sent to the service and shown nowhere.
    Raises `RewardError` for a wrong `url` or `header_env`, and for a service that fails or answers something else.
    """

    setting: Setting
    url: str
    format: Literal["png", "npy"] = "png"
    teacher: bool = True
    batch: Annotated[int, Field(gt=0)] = 64
    timeout: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 5
    header_env: str | None = None
    differentiable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.url)
            known = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # a port that is no number or too large, brackets without an address
            known = False
        if not known:
            raise RewardError(f"url={self.url!r}: expected http://... or https://...")
        if self._authorization() is not None and address.username is not None:
            raise RewardError(f"url={self.url!r}: it holds a user and header_env={self.header_env} too; give one")
        if self.format == "png" and self.setting.image_shape[0] not in (1, 3):
            raise RewardError(f"images are {self.setting.image_shape}; a PNG has 1 or 3 channels, use format npy")

    def __call__(self, inputs: RewardInputs) -> Tensor:
        values = asyncio.run(self._values(inputs))
        return torch.tensor(values, dtype=inputs.student.dtype, device=inputs.student.device)

    async def _values(self, inputs: RewardInputs) -> list[float]:
        values: list[float] = []
        try:
            async with asyncio.timeout(self.setting.patience_s), self._session() as session:
                for i in range(0, len(inputs.conditions), self.batch):
                    rows = slice(i, i + self.batch)
                    teacher = inputs.teacher[rows] if self.teacher else None
                    part = inputs.student[rows], teacher, inputs.conditions[rows]
                    values += await self._score(session, *part)
        except TimeoutError:
            done = f"{len(values)} of {len(inputs.conditions)} rewards in {self.setting.patience_s:g} s"
            raise RewardError(f"{self.url} answers too slowly: {done}, {ADVICE}") from None
        return values

    def _authorization(self) -> str | None:
        """Return the variable `header_env` without surrounding white space, or None; errors never show its value."""
        name = self.header_env
        if name is None:
            return None
        if name not in os.environ:
            raise RewardError(
                f"header_env={name}: no such environment variable in this process; set it, or pass it to the reward "
                f"workers with reward.runtime_env.env_vars.{name}=null"
            )
        value = os.environ[name].strip()
        if not value or not value.isascii() or not value.isprintable():
            raise RewardError(
                f"header_env={name}: the variable's {len(value)} characters are no value of an HTTP header; expected "
                "printable ASCII on one line, such as Bearer and a token"
            )
        learn(value, whole=True)  # since services may echo what they refuse
        return value

    def _session(self) -> aiohttp.ClientSession:
        """Return a session that takes no proxy and no password from the environment: the configuration decides."""
        headers = {"Accept-Encoding": "identity"}  # so an answer cannot grow while it is unpacked
        if (authorization := self._authorization()) is not None:
            headers["Authorization"] = authorization
        anew = aiohttp.TCPConnector(force_close=True)  # a connection that is kept may be closed when the next asks
        return aiohttp.ClientSession(headers=headers, connector=anew, trust_env=False, auto_decompress=False)

    async def _score(
        self, session: aiohttp.ClientSession, student: Tensor, teacher: Tensor | None, conditions: Sequence[Any]
    ) -> list[float]:
        write = _png if self.format == "png" else _npy
        body: dict[str, Any] = {
            "format": self.format,
            "student": encoded(student, write),
            "teacher": None if teacher is None else encoded(teacher, write),
            "conditions": list(conditions),
        }
        if self.setting.metadata is not None:
            body["metadata"] = self.setting.metadata_of(conditions)
        limit = OVERHEAD + PER_IMAGE * len(student)
        status, reason, text = await self._answer(session, body, limit)
        if status != 200:
            raise RewardError(f"{self.url} answers {status} {reason}: {_excerpt(text)}; expected 200")
        if len(text) > limit:
            raise RewardError(
                f"{self.url} answers more than {limit} bytes for {len(student)} images: {_excerpt(text)}; expected "
                "numbers alone"
            )
        return _rewards(text, len(student), self.url)

    async def _answer(self, session: aiohttp.ClientSession, body: Any, limit: int) -> tuple[int, str, bytes]:
        """Return status, reason and the first `limit` bytes, and one, of the first answer that needs no other attempt.

        After the last attempt it is its answer. Raises RewardError where there is none.
        """
        answer, failure = None, ""
        for attempt in range(self.retries + 1):
            await asyncio.sleep(min(LONGEST_WAIT, 2 ** (attempt - 1)) if attempt > 1 else 0)
            try:
                answer = await self._attempt(session, body, limit)
            except aiohttp.ClientSSLError as error:
                raise RewardError(f"{self.url}: there is no secure connection; {error}") from None
            except TimeoutError:
                answer, failure = None, f"timed out after {self.timeout:g} s"
            except (aiohttp.ClientError, OSError) as error:
                answer, failure = None, f"{type(error).__name__}: {error}"
            if answer is not None and answer[0] not in AGAIN:
                break
        if answer is None:
            raise RewardError(
                f"{self.url} does not answer, {self.retries + 1} attempts; start the service and run the command "
                f"again, with --resume if the run had begun. {masked(failure)[:300]}"
            )
        return answer

    async def _attempt(self, session: aiohttp.ClientSession, body: Any, limit: int) -> tuple[int, str, bytes]:
        asked = session.post(self.url, json=body, allow_redirects=False, timeout=aiohttp.ClientTimeout())
        async with asyncio.timeout(self.timeout), asked as answer:
            text = b""
            while len(text) <= limit and (more := await answer.content.read(limit + 1 - len(text))):
                text += more
            return answer.status, answer.reason or "", text


def _rewards(text: bytes, count: int, url: str) -> list[float]:
    try:
        rewards = json.loads(text)["rewards"]
        if not isinstance(rewards, list) or not all(type(value) in (int, float) for value in rewards):
            raise TypeError("rewards is not a list of numbers")
        values = [float(value) for value in rewards]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        wrong = f"{type(error).__name__}: {error}"
        raise RewardError(
            f'{url} answers {_excerpt(text)} ({wrong}); expected JSON {{"rewards": [{count} numbers]}}'
        ) from error
    if len(rewards) != count:
        raise RewardError(f"{url} answers {len(rewards)} rewards for {count} images; expected one per image")
    return values


def _excerpt(text: bytes) -> str:
    return repr(masked(text.decode(errors="replace"))[:120])


def encoded(images: Tensor, write: Callable[[np.ndarray], bytes]) -> list[str]:
    """Encode each of `images` [B, C, H, W] in [0, 1] as base64 text; `write` turns its float32 array into bytes."""
    return [base64.b64encode(write(image)).decode() for image in images.detach().float().cpu().numpy()]


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    picture(np.rint(255 * image.clip(0, 1)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _npy(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, image, allow_pickle=False)
    return stream.getvalue()
