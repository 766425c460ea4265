"""A reward's function changes neither the images that others see nor torch's global settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redif_ray.rewards.base import RewardError

ALTERATIONS = {
    "torch": "student.mul_(0.5).add_(0.5)",
    "numpy": "student.numpy()[:] = 0.5",
    "data": "teacher.data = teacher.data * 0.5",
    "teacher": "teacher[0] = 0",
    "shape": "teacher.resize_(1)",
}
BREACHES = {
    "torch.set_default_dtype(torch.float64)": "default dtype from torch.float32 to torch.float64",
    "torch.set_grad_enabled(not torch.is_grad_enabled())": "grad mode from (True to False|False to True)",
    "torch.set_num_threads(torch.get_num_threads() + 1)": r"number of threads from \d+ to \d+",
    "torch.set_default_device('meta')": "default device from cpu to meta",
    "torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark": "cudnn.benchmark",
}


def term(folder: Path, line: str, *, at_import: bool = False, name: str = "mine") -> dict[str, str]:
    """Options of a term whose function runs `line`, when it is called or when its file is imported."""
    path = folder / f"{name}.py"
    head, body = (line, "pass") if at_import else ("", line)
    path.write_text(
        f"import sys\nimport torch\n{head}\n\n"
        f"def score(student, teacher, conditions):\n    {body}\n    return torch.ones(len(conditions))\n"
    )
    return {"callable": f"{path}:score"}


def settings() -> tuple[object, ...]:
    return torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_device()


@pytest.mark.parametrize("line", ALTERATIONS.values(), ids=ALTERATIONS)
def test_a_function_that_alters_its_images_is_named_and_alters_nobody_else_s(line, tmp_path, pair, build):
    rewards, inputs = build("mse", terms={"mine": term(tmp_path, line)}), pair(dtype=torch.float32)
    before = inputs.student.clone(), inputs.teacher.clone()
    role = "teacher" if "teacher" in line else "student"
    with pytest.raises(RewardError, match=f"^reward term 'mine': it altered the {role} images that it was given"):
        rewards(inputs)
    assert torch.equal(inputs.student, before[0]) and torch.equal(inputs.teacher, before[1])


def test_images_that_are_altered_after_the_call_are_nobody_else_s(tmp_path, pair, build):
    """A function may keep what it was given, and write into it the next time."""
    line = "old = globals().get('kept'); globals()['kept'] = student; old is None or old.zero_()"
    rewards, inputs = build(terms={"mine": term(tmp_path, line)}), pair(dtype=torch.float32)
    before = inputs.student.clone()
    for _ in range(2):
        rewards(inputs)
    assert torch.equal(inputs.student, before)


def test_two_terms_that_return_one_buffer_keep_their_own_values(tmp_path, pair, build):
    path = tmp_path / "shared.py"
    path.write_text(
        "import torch\nbuffer = torch.zeros(3)\n"
        "def one(s, t, c):\n    return buffer.fill_(1)\ndef two(s, t, c):\n    return buffer.fill_(2)\n"
    )
    (tmp_path / "mine.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom shared import *\n")
    terms = {name: {"callable": f"{tmp_path}/mine.py:{name}"} for name in ("one", "two")}
    raw = build(terms=terms)(pair(dtype=torch.float32))
    assert [raw[name].tolist() for name in terms] == [[1.0] * 3, [2.0] * 3]


def test_the_gradient_flows_through_the_copy(tmp_path, pair, build):
    path = tmp_path / "mine.py"
    path.write_text("def score(student, teacher, conditions):\n    return (student * student).sum((1, 2, 3))\n")
    inputs = pair()
    inputs.student.requires_grad_()
    build(terms={"mine": {"callable": f"{path}:score", "differentiable": True}})(inputs)["mine"].sum().backward()
    torch.testing.assert_close(inputs.student.grad, 2 * inputs.student.detach())


@pytest.mark.parametrize(("line", "message"), BREACHES.items())
@pytest.mark.parametrize("grad", [True, False])
def test_a_function_that_changes_torch_is_named_and_torch_is_put_back(line, message, grad, tmp_path, pair, build):
    rewards, inputs = build(terms={"mine": term(tmp_path, line)}), pair(dtype=torch.float32)
    with torch.set_grad_enabled(grad):
        before = settings()
        with pytest.raises(RewardError, match=f"^reward term 'mine': it changed torch's {message}"):
            rewards(inputs)
        assert settings() == before


@pytest.mark.parametrize(("line", "message"), BREACHES.items())
def test_a_file_that_changes_torch_at_import_is_named_and_torch_is_put_back(line, message, tmp_path, build):
    before = settings()
    with pytest.raises(RewardError, match=f"^reward.terms.mine: it changed torch's {message}"):
        build(terms={"mine": term(tmp_path, line, at_import=True)})
    assert settings() == before


def test_an_exception_puts_torch_back_too(tmp_path, pair, build):
    line = "torch.set_default_dtype(torch.float64); raise OSError('away')"
    before = settings()
    with pytest.raises(RewardError, match="OSError: away"):
        build(terms={"mine": term(tmp_path, line)})(pair(dtype=torch.float32))
    assert settings() == before


@pytest.mark.parametrize("word", ["sys.exit()", "sys.exit(0)", "raise SystemExit('bye')", "exit()"])
def test_an_exit_is_an_error_that_names_the_line(word, tmp_path, pair, build):
    with pytest.raises(RewardError, match=r"cannot import .*SystemExit.*\n.*mine.py:3, in <module>"):
        build(terms={"mine": term(tmp_path, word, at_import=True)})
    with pytest.raises(RewardError, match=r"reward term 'mine': .*failed: SystemExit.*\n.*in score"):
        build(terms={"mine": term(tmp_path, word)})(pair(dtype=torch.float32))
