"""Functions of the user's that return, change, end or wait for what they should not: what each one's outcome is."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from redif_ray.config import load
from redif_ray.planning import factory
from redif_ray.rewards import base
from redif_ray.rewards.base import RewardError
from redif_ray.user_code.state import SETTINGS

GOOD = "student.mean((1, 2, 3))"
RETURNED = {  # what a function returns -> the error, or None where it is a reward
    "'good'": "returned str; expected a float tensor of shape",
    "None": "returned NoneType",
    "[1.0, 2.0, 3.0]": "returned list",
    "0.5": "returned float",
    f"{GOOD}.numpy()": "returned ndarray",
    f"{GOOD} > 0": r"returned torch\.bool",
    f"{GOOD}.long()": r"returned torch\.int64",
    f"{GOOD}.to(torch.complex64)": r"returned torch\.complex64",
    f"{GOOD}.sum()": r"returned shape \[\]; expected \[3\]",
    f"{GOOD}[:, None]": r"returned shape \[3, 1\]",
    f"{GOOD}[:2]": r"returned shape \[2\]",
    "torch.ones(64)": r"returned shape \[64\]",
    "student": r"returned shape \[3, 2, 12, 13\]",
    f"{GOOD}.to_sparse()": r"returned torch\.sparse_coo",
    f"{GOOD}.to('meta')": "returned a tensor without numbers",
    f"{GOOD} * float('nan')": "is nan at row 0; expected a finite number",
    f"{GOOD} / torch.tensor([1, 0, 1])": "is inf at row 1",
    f"{GOOD}.double() * 1e300": r"is .*e\+299 at row 0; expected a finite number of torch\.float32",
    f"{GOOD}.half()": None,
    f"{GOOD}.double()": None,
    "student[:, 0, 0, 0]": None,
    "torch.nn.Parameter(torch.ones(3))": None,
    "torch.ones(3, requires_grad=True) * 2": None,
    "torch.ones(1).expand(3)": None,
}
CHANGED = {  # what a function does -> what the error says it changed
    "torch.set_default_dtype(torch.float16)": "torch's default dtype from torch.float32 to torch.float16",
    "torch.autograd.set_detect_anomaly(True)": "torch's anomaly mode",
    "torch.set_autocast_enabled('cpu', True)": "torch's autocast on CPUs",
    "torch.use_deterministic_algorithms(True)": "torch's use of deterministic algorithms from 0 to 2",
    "torch.use_deterministic_algorithms(True, warn_only=True)": "torch's use of deterministic algorithms from 0 to 1",
    "torch.set_float32_matmul_precision('medium')": "torch's float32 matmul precision from highest to medium",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "torch's float32 matmul precision from highest to tf32",
    "torch.backends.cudnn.deterministic = True": "torch's cudnn.deterministic",
    "torch.backends.cudnn.enabled = False": "torch's cudnn.enabled",
    "torch.backends.mkldnn.enabled = False": "torch's mkldnn.enabled",
    "torch.backends.cuda.enable_flash_sdp(False)": "torch's flash attention",
    "torch.set_flush_denormal(True)": "torch's flushing of denormal numbers",
    "torch.nn.modules.module.register_module_forward_hook(lambda *_: None)": "torch's hooks of all modules",
    "torch.nn.modules.module.register_module_forward_pre_hook(print)": "torch's hooks of all modules",
    "np.seterr(all='raise')": "NumPy's error handling",
    "os.chdir('/')": "the working directory from .* to /",
    "os.umask(0o007)": "the umask",
    "locale.setlocale(locale.LC_ALL, 'C.UTF-8')": "the locale",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)": "the handler of SIGTERM",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)": "the handler of SIGINT",
    "sys.stdout = io.StringIO()": "sys.stdout",
    "sys.stderr = io.StringIO()": "sys.stderr",
    "socket.setdefaulttimeout(1)": "the time-out of sockets",
    "logging.disable(logging.CRITICAL)": "the level of logging.disable",
    "os.environ['REDIF_TEST'] = 'other'": "the environment variable REDIF_TEST",
    "os.environ.clear()": "the environment variable .*REDIF_TEST",
}
ENDED = {  # how a function ends -> what the error says
    "sys.exit()": "SystemExit",
    "sys.exit('bye')": "SystemExit: bye",
    "raise BaseException('mine')": "BaseException: mine",
    "raise asyncio.CancelledError": "CancelledError",
    "raise GeneratorExit": "GeneratorExit",
    "raise StopIteration": "StopIteration",
    "raise Mute": "Mute: its text cannot be had .ZeroDivisionError",
    "raise MemoryError": "MemoryError",
    "raise ValueError('x' * 10**6)": "ValueError: x{2000}\n",
    "exit()": "SystemExit",
    "score(student, teacher, conditions)": "RecursionError",
    "student @ teacher.T[0]": "RuntimeError",
}
HANGS = {
    "a sleep": "time.sleep(60)",
    "a loop": "while True: pass",
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a queue": "import queue; queue.Queue().get()",
    "a socket": "a, b = socket.socketpair(); a.recv(1)",
    "a process": "subprocess.run(['sleep', '60'])",
    "a loop that ignores errors": "\n    while True:\n        try: time.sleep(60)\n        except Exception: pass",
}
HEAD = """
import asyncio, io, locale, logging, os, random, signal, socket, subprocess, sys, threading, time, warnings
import numpy as np
import torch
class Mute(Exception):
    def __str__(self): 1 / 0
"""


@pytest.fixture
def mine(tmp_path: Path, build: Any) -> Any:
    def make(body: str, value: str = GOOD, *, at_import: str = "", **options: Any) -> Any:
        path = tmp_path / "mine.py"
        path.write_text(
            f"{HEAD}{at_import}\ndef score(student, teacher, conditions):\n    {body}\n    return {value}\n"
        )
        return build("mse", terms={"mine": {"callable": f"{path}:score", **options}})

    return make


def state() -> dict[str, Any]:
    return {name: read() for name, (read, _) in SETTINGS.items()}


@pytest.mark.parametrize(("value", "message"), RETURNED.items())
def test_what_is_returned_is_a_reward_or_named(value: str, message: str | None, mine: Any, pair: Any) -> None:
    rewards, inputs = mine("pass", value), pair(dtype=torch.float32)
    if message is None:
        found = rewards(inputs)["mine"]
        assert found.dtype == torch.float32 and found.shape == (3,) and not found.requires_grad
        return
    with pytest.raises(RewardError, match=f"^reward term 'mine' {message}"):
        rewards(inputs)


@pytest.mark.parametrize(("line", "message"), CHANGED.items())
@pytest.mark.parametrize("where", ["call", "import"])
def test_what_all_share_is_put_back_and_named(
    line: str, message: str, where: str, mine: Any, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIF_TEST", "own")
    before, variables = state(), dict(os.environ)
    with pytest.raises(RewardError, match=rf"^reward(\.terms\.| term ').*mine.*it changed .*{message}"):
        mine(line)(pair(dtype=torch.float32)) if where == "call" else mine("pass", at_import=line)
    assert state() == before and dict(os.environ) | variables == dict(os.environ)


@pytest.mark.parametrize(("line", "message"), ENDED.items())
def test_every_end_is_an_error_with_its_line(line: str, message: str, mine: Any, pair: Any) -> None:
    with pytest.raises(RewardError, match=rf"^reward term 'mine': .*mine.py:score failed: {message}") as caught:
        mine(line)(pair(dtype=torch.float32))
    assert "mine.py:9, in score" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["call", "import"])
@pytest.mark.parametrize("code", HANGS.values(), ids=HANGS)
def test_a_hang_ends_at_its_line(code: str, where: str, mine: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "Setting", lambda *given: SETTING(*given[:-1], 0.2))
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(RewardError, match=r"it has not returned|mine.py:score has not returned") as caught:
        if where == "import":
            mine("pass", at_import="if True:\n    pass\n    " + code)
        mine(code)(pair(dtype=torch.float32))
    assert "after 0.2 s, half of pipeline.timeout_s" in str(caught.value) and "mine.py:" in str(caught.value)
    assert signal.getsignal(signal.SIGALRM) is before


SETTING = base.Setting


def test_anothers_timer_goes_on_after_a_call(mine: Any, pair: Any) -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        mine("pass")(pair(dtype=torch.float32))
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_each_function_has_images_of_its_own(tmp_path: Path, pair: Any, build: Any) -> None:
    """One function hands its images to a thread that alters them while others score."""
    code = (
        "import threading\n"
        "def score(student, teacher, conditions):\n"
        "    seen.append((student, teacher))\n"
        "    return student.mean((1, 2, 3))\n"
        "seen = []\n"
    )
    (tmp_path / "mine.py").write_text(code)
    terms = {name: {"callable": f"{tmp_path}/mine.py:score"} for name in ("one", "two")}
    rewards, inputs = build("mse", terms=terms), pair(dtype=torch.float32)
    rewards(inputs)
    pointers = {inputs.student.data_ptr(), inputs.teacher.data_ptr()}
    for name in terms:
        ((student, teacher),) = rewards.terms[name]._function.__globals__["seen"]
        assert not student.requires_grad and {student.data_ptr(), teacher.data_ptr()}.isdisjoint(pointers)
        pointers |= {student.data_ptr(), teacher.data_ptr()}


def test_another_dtype_is_an_alteration(mine: Any, pair: Any) -> None:
    with pytest.raises(RewardError, match=r"^reward term 'mine': it altered the teacher images"):
        mine("teacher.data = teacher.double()")(pair(dtype=torch.float32))


def test_what_is_drawn_depends_on_the_images_alone(mine: Any, pair: Any) -> None:
    drawn = "torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()])"
    rewards, inputs = mine("pass", drawn), pair(dtype=torch.float32)
    first = rewards(inputs)["mine"]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    random.seed(1)
    assert torch.equal(rewards(inputs)["mine"], first)
    other = pair(dtype=torch.float32)
    other.student.mul_(0.5)
    assert not torch.equal(rewards(other)["mine"], first)
    random.setstate(before[0])
    mine("torch.manual_seed(3); np.random.seed(3); random.seed(3)")(inputs)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_weights_that_a_file_draws_are_the_same_in_every_process(mine: Any, pair: Any) -> None:
    values = []
    for _ in range(2):
        torch.rand(1), np.random.rand(), random.random()
        rewards = mine("pass", "net + torch.zeros(3)", at_import="net = torch.randn(3)")
        values.append(rewards(pair(dtype=torch.float32))["mine"])
    assert torch.equal(*values)


def test_what_libraries_set_for_themselves_is_kept_and_said(
    mine: Any, pair: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("REDIF_TEST", "")  # so that it is removed at the end
    del os.environ["REDIF_TEST"]
    before, filters = list(sys.path), list(warnings.filters)
    lines = "os.environ['REDIF_TEST'] = 'new'; sys.path.insert(0, '/mine'); sys.path.remove(sys.path[1])"
    mine("pass", at_import=f"{lines}; warnings.simplefilter('ignore')")(pair(dtype=torch.float32))
    assert sys.path == [*before, "/mine"] and warnings.filters == filters
    assert os.environ["REDIF_TEST"] == "new"
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "a reward, a model or its library set environment variables for the process: REDIF_TEST"
    ]


def test_a_second_ctrl_c_passes(mine: Any, pair: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        mine("raise KeyboardInterrupt")(pair(dtype=torch.float32))


def test_the_limit_is_half_of_what_a_worker_may_take() -> None:
    images: Any = SimpleNamespace(image_shape=(1, 8, 8), num_classes=None, takes_captions=False)
    rewards = factory.rewards(load("smoke", ["pipeline.timeout_s=50"]), images, "cpu")
    assert rewards.setting.patience_s == 25
