"""Functions of a notebook as files: the same values in another process, and a clear error where they cannot be had."""

from __future__ import annotations

import linecache
from pathlib import Path

import pytest
import torch
from cells import run_cell

from redif_ray.api.functions import importable, module_text
from redif_ray.config import ConfigError, load
from redif_ray.rewards.jpeg_compressibility import JpegCompressibility
from redif_ray.user_code.importing import import_function

WHOLE = '''
import math
from functools import cache
import torch
import torch.nn.functional as F
from torch import Tensor as T

SCALE, NAMES = 2.5, {"a": [1, None], "b": (True, "x")}
unused = torch.nn.Linear(1, 1)

@cache
def kernel(size: int = 3):
    return torch.full((1, 1, size, size), 1 / size**2)

def blurred(images: T) -> T:
    return F.conv2d(images, kernel(), padding=1) if images is not None else scored(images, images, [])

def scored(student: T, teacher: "unused", conditions, exponent=SCALE) -> T:
    """Return the score."""
    unused = (blurred(student) - blurred(teacher)).abs() ** exponent  # a local name that the notebook has too
    return -unused.mean([1, 2, 3]) * math.sqrt(len(NAMES["b"]))
'''


def test_a_function_of_a_notebook_gives_the_same_from_its_file(tmp_path: Path) -> None:
    function = run_cell(WHOLE)["scored"]
    (tmp_path / "own.py").write_text(module_text(function))
    a, b = torch.rand(2, 3, 1, 6, 6)
    assert torch.equal(import_function(f"{tmp_path}/own.py:scored")(a, b, []), function(a, b, []))
    assert "Linear" not in module_text(function)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("net = __import__('torch').nn.Linear(1, 1)\ndef f(s, t, c): return net(s)", r"f uses net, a Linear of this"),
        ("import numpy as np\nW = np.ones(3)\ndef f(s, t, c): return s * W", r"f uses W, a ndarray of this process"),
        ("def g(s): return s @ W\nW = object()\ndef f(s, t, c): return g(s)", r"g uses W, a object of this process"),
        ("def outer(k):\n  def f(s, t, c): return s * k\n  return f\nf = outer(2)", r"f uses k of the function around"),
        ("f = lambda s, t, c: s.mean()", r"expected a function made by `def`"),
        ("class F:\n  def __call__(self, s, t, c): return s\nf = F()", r"expected a function made by `def`"),
        ("h = lambda s: s\ndef f(s, t, c): return h(s)", r"f uses h, a function of this process"),
    ],
)
def test_what_no_other_process_has_is_named(cell: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        module_text(run_cell(cell)["f"])


def test_a_source_that_is_gone_or_another_is_no_source() -> None:
    cell = "def f(s, t, c):\n    return s.mean()\n"
    function = run_cell(cell)["f"]
    file = function.__code__.co_filename
    linecache.cache[file] = (0, None, ["def f(s, t, c):\n", "    return s.median()\n"], file)
    with pytest.raises(ValueError, match="the source of f has changed since it was defined"):
        module_text(function)
    del linecache.cache[file]
    with pytest.raises(ValueError, match="the source of f cannot be had"):
        module_text(function)


def test_what_a_module_has_needs_no_file() -> None:
    assert importable(JpegCompressibility) and importable(load) and importable(ConfigError)
    assert not importable(run_cell("def f(s, t, c): return s")["f"])
