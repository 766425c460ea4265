"""A user's own function as a term, by import path and by file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from redif_ray.rewards.base import RewardError, RewardInputs

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_reward.py"
SOURCE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Scale:  # dataclasses look their module up
    factor: float = 2.0

def score(student, teacher, conditions):
    assert student.min() >= 0 and student.max() > 0.5
    return Scale().factor * (student - teacher).flatten(1).amax(1) + conditions[0]

def detached(student, teacher, conditions):
    return score(student.detach(), teacher, conditions)

def asked():
    raise OSError("the scorer is away")

def broken(student, teacher, conditions):
    return asked()

constant = 3
"""


@pytest.fixture(params=["module", "file", "relative file"])
def source(request, tmp_path, monkeypatch) -> str:
    name = f"my_score_{request.param.split()[0]}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    if request.param == "module":
        monkeypatch.syspath_prepend(tmp_path)
        return name
    return f"{name}.py" if request.param == "relative file" else str(tmp_path / f"{name}.py")


def test_a_function_scores_images_and_sees_the_conditions(source, pair, build):
    rewards, inputs = build(terms={"mine": {"callable": f"{source}:score"}}), replace(pair(), conditions=[3, 0, 0])
    expected = 2 * (inputs.student - inputs.teacher).flatten(1).max(1).values + 3
    torch.testing.assert_close(rewards(inputs)["mine"], expected)


def test_its_gradient_is_used_only_where_it_is_declared(source, pair, build):
    inputs = pair()
    inputs.student.requires_grad_()
    plain = build(terms={"mine": {"callable": f"{source}:score"}})
    assert not plain.terms["mine"].differentiable and not plain(inputs)["mine"].requires_grad
    declared = build(terms={"mine": {"callable": f"{source}:score", "differentiable": True}})
    assert declared.terms["mine"].differentiable
    declared(inputs)["mine"].sum().backward()
    assert torch.count_nonzero(inputs.student.grad) == 3 and inputs.student.grad.sum() == 6
    with pytest.raises(RewardError, match="'mine' declares itself differentiable"):
        build(terms={"mine": {"callable": f"{source}:detached", "differentiable": True}})(inputs)


def test_its_exception_is_named_with_its_lines(source, pair, build):
    with pytest.raises(RewardError) as caught:
        build(terms={"mine": {"callable": f"{source}:broken"}})(pair())
    first, second, last = str(caught.value).splitlines()
    assert first == f"reward term 'mine': {source}:broken failed: OSError: the scorer is away"
    assert second.endswith(":20, in broken: return asked()")
    assert last.endswith(':17, in asked: raise OSError("the scorer is away")')


def test_a_file_that_fails_is_named_with_its_line(tmp_path, build):
    (tmp_path / "mine.py").write_text("import math\n\nmath.no_such\n")
    with pytest.raises(RewardError, match=r"cannot import .*AttributeError: .*'no_such'\n.*mine.py:3, in <module>: ma"):
        build(terms={"mine": {"callable": f"{tmp_path / 'mine.py'}:score"}})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package.mod:score", "cannot import no_such_package.mod: ModuleNotFoundError"),
        ("no/such/file.py:score", "cannot import no/such/file.py: FileNotFoundError"),
        ("math:no_such", "math has no function 'no_such'"),
        ("math:pi", "math has no function 'pi'"),
        ("math", "expected package.module:function or path/to/file.py:function"),
        (":score", "expected package.module:function"),
        ("math:", "expected package.module:function"),
    ],
)
def test_functions_that_cannot_be_had(target, message, build):
    with pytest.raises(RewardError, match=f"reward.terms.mine: callable '{target}': {message}"):
        build(terms={"mine": {"callable": target}})


def test_options_of_a_function_are_checked(build):
    with pytest.raises(RewardError, match="mine has no option 'diferentiable' \\(did you mean 'differentiable'"):
        build(terms={"mine": {"callable": "math:sin", "diferentiable": True}})


def test_a_file_hides_no_package(tmp_path, build):
    (tmp_path / "torch.py").write_text("def score(s, t, c):\n    return s.mean((1, 2, 3))\n")
    build(terms={"mine": {"callable": f"{tmp_path / 'torch.py'}:score"}})
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize("differentiable", [False, True])
def test_the_example_scores_symmetry(differentiable, build):
    options = {"callable": f"{EXAMPLE}:symmetry", "differentiable": differentiable}
    rewards = build(terms={"symmetry": options}, shape=(1, 2, 4))
    even = torch.tensor([0.1, 0.6, 0.6, 0.1]).expand(1, 2, 4)
    ramp = torch.tensor([0.0, 0.2, 0.4, 0.8]).expand(1, 2, 4)  # 0.8, 0.2, 0.2, 0.8 away from its mirror image
    inputs = RewardInputs(torch.stack([even, ramp, ramp]).requires_grad_(), torch.stack([even, ramp, even]), [0, 1, 2])
    value = rewards(inputs)["symmetry"]
    torch.testing.assert_close(value, torch.tensor([1.0, 1.0, 0.5]), check_stride=False)
    assert value.requires_grad == differentiable
