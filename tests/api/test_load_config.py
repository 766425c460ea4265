"""Configurations from Python: the same as those of the command line, with functions and lists in place of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cells import run_cell

import redif_ray
from redif_ray.config import ConfigError, load
from redif_ray.data.conditions import load_conditions, split

SCORE = "def score(student, teacher, conditions):\n    return -(student - teacher).abs().mean((1, 2, 3))\n"


@pytest.mark.parametrize(
    ("texts", "sections"),
    [
        (["learner.lr=1e-5", "run.name=a"], {"learner": {"lr": 1e-5}, "run": {"name": "a"}}),
        (["learner.anchor.weight=0.3"], {"learner": {"anchor": {"weight": 0.3}}}),
        (["learner.anchor.weight=0.3"], {"learner": {"anchor.weight": 0.3}}),
        (["method=sfd"], {"method": "sfd"}),
        (["reward.terms={ssim: {}}"], {"reward": {"terms": {"ssim": {}}}}),
        (["reward.terms.ssim.weight=2"], {"reward": {"terms.ssim": {"weight": 2}}}),
        (["reward.runtime_env={pip: [scorer]}"], {"reward": {"runtime_env": {"pip": ["scorer"]}}}),
    ],
)
def test_a_keyword_is_the_override_of_the_command_line(texts: list[str], sections: dict[str, Any]) -> None:
    assert redif_ray.load_config("smoke", **sections) == load("smoke", texts) == redif_ray.load_config("smoke", *texts)


def test_a_recipe_is_a_name_a_file_a_mapping_or_a_configuration(tmp_path: Path) -> None:
    expected = load("smoke", ["learner.lr=1e-5"])
    path = tmp_path / "own.yaml"
    path.write_text("student: {steps: 2}\nlearner: {anchor: {weight: 0.1}}\n")
    assert redif_ray.load_config(load("smoke"), learner={"lr": 1e-5}) == expected
    mapping = {"student": {"steps": 2}, "learner": {"anchor": {"weight": 0.1}}}
    assert redif_ray.load_config(path) == redif_ray.load_config(str(path)) == redif_ray.load_config(mapping)
    assert redif_ray.load_config(mapping, "student.steps=3", learner={"lr": 1e-6}).learner.anchor.weight == 0.1
    assert redif_ray.load_config(mapping, "student.steps=3").student.steps == 3
    assert redif_ray.load_config(mapping, "student.steps=3", student={"steps": 5}).student.steps == 5
    assert mapping == {"student": {"steps": 2}, "learner": {"anchor": {"weight": 0.1}}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"learner": {"lrr": 1}}, r"learner\.lrr: unknown key; did you mean learner\.lr\?"),
        ({"lerner": {"lr": 1}}, r"lerner: unknown key; did you mean learner\?"),
        ({"learner": 3}, r"learner=3: expected a section"),
        ({"learner": {"lr.a": 3}}, r"learner\.lr\.a: learner\.lr=.* is a value and has no keys below it"),
        ({"reward": {"terms": {"f": len}}, "run": {"root": "/proc/nothing"}}, r""),
        ({"conditions": {"source": ["a", 1]}}, r"conditions\.source: .*expected captions alone, or labels alone"),
        ({"reward": {"terms": {"f": lambda s, t, c: s}}}, r"reward\.terms\.f: .*expected a function made by `def`"),
    ],
)
def test_a_wrong_keyword_is_one_clear_error(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    if not message:  # a function of a module writes nothing
        assert redif_ray.load_config("smoke", **sections).reward.terms["f"].options == {"callable": "builtins:len"}
        return
    with pytest.raises(ConfigError, match=message):
        redif_ray.load_config("smoke", **{"run": {"root": str(tmp_path)}, **sections})


def test_a_list_of_mappings_is_captions_with_metadata(tmp_path: Path) -> None:
    """Each function gets what its mapping holds, and no None for what another mapping holds."""
    told = {"a cat": [{"class": "cat"}], "two cats": [{"class": "cat", "count": 2}], "none": "nothing"}
    rows = [{"caption": caption, "include": include} for caption, include in told.items()]
    conditions = {"source": rows, "metadata": ["include"], "held_out": 0.0}
    own = {"terms": {"own": {"options": {"url": "http://127.0.0.1:1"}}}}
    config = redif_ray.load_config("smoke", run={"root": str(tmp_path)}, conditions=conditions, reward=own)
    found = load_conditions(config.conditions, num_classes=None, captions=True, seed=0)
    assert found.metadata == {caption: {"include": include} for caption, include in told.items()}
    for source in ([{"caption": "a"}, "b"], [{"caption": "a", "n": b""}], [b"", "a"]):
        with pytest.raises(
            ConfigError, match=r"conditions\.source: .*expected captions alone, or labels alone, or map"
        ):
            redif_ray.load_config("smoke", run={"root": str(tmp_path)}, conditions={"source": source})


def test_the_same_function_is_the_same_configuration(tmp_path: Path) -> None:
    """So a resumed run takes it, and refuses another one."""

    def config(cell: str) -> redif_ray.Config:
        terms = {"mse": {}, "own": run_cell(cell)["score"]}
        return redif_ray.load_config("smoke", run={"root": str(tmp_path)}, reward={"terms": terms})

    first = config(SCORE)
    assert first == config(SCORE) != config(SCORE.replace("abs", "square"))
    file, _, name = str(first.reward.terms["own"].options["callable"]).rpartition(":")
    assert name == "score" and Path(file).parent == tmp_path / ".inputs" and SCORE.strip() in Path(file).read_text()
    assert {p.suffix for p in (tmp_path / ".inputs").iterdir()} == {".py"} and len([*tmp_path.rglob("*.py")]) == 2


def test_a_function_stands_for_any_code_of_ones_own(tmp_path: Path) -> None:
    score = run_cell(SCORE)["score"]
    term = {"weight": 2, "options": {"callable": score, "differentiable": True}}
    config = redif_ray.load_config(
        "smoke",
        run={"root": str(tmp_path)},
        learner={"loss": score, "advantage": score},
        teacher={"family": score},
        reward={"terms": {"own": term}},
    )
    (file,) = (tmp_path / ".inputs").iterdir()
    assert {config.learner.loss, config.learner.advantage, config.teacher.family} == {f"{file}:score"}
    options = {"callable": f"{file}:score", "differentiable": True}
    assert config.reward.terms["own"].weight == 2 and config.reward.terms["own"].options == options


def test_a_list_of_captions_or_labels_is_a_source(tmp_path: Path) -> None:
    captions = [f"caption {i}, {word}" for i in range(50) for word in ("2020-01-01", "日本 \n", "'quoted'")]

    def config(values: list[Any]) -> redif_ray.Config:
        return redif_ray.load_config("smoke", run={"root": str(tmp_path)}, conditions={"source": values})

    wanted = config(captions).conditions
    assert load_conditions(wanted, num_classes=None, captions=True, seed=3) == split(captions, wanted.held_out, 3)
    labels = load_conditions(config([2, 0, 2]).conditions, num_classes=3, captions=False, seed=3)
    assert labels.training == (2, 0, 2)
    with pytest.raises(ConfigError, match="caption"):
        load_conditions(wanted, num_classes=3, captions=False, seed=3)
