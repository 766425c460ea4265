"""Values of overrides: a text is what one typed, a number is YAML 1.2's, and ~ is home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from redif_ray.config import Config, ConfigError, dump, load, override
from redif_ray.config.files import descriptions
from redif_ray.config.overrides import parse_override
from redif_ray.planning.paths import absolute
from redif_ray.teacher.config import TeacherConfig

TYPED = [
    "data #1",
    "#",
    "a: b",
    "{a: b",
    "[1, 2]",
    "'no'",
    '"x"',
    "no",
    "007",
    "1e3",
    "2026-11-23",
    "*a",
    "&a",
    "!!int 1",
]
PATHS = (
    "run.root",
    "teacher.model",
    "teacher.base",
    "teacher.family",
    "teacher.store",
    "student.init",
    "student.schedule",
    "conditions.source",
    "evaluation.judge",
    "evaluation.diversity.encoder",
    "search.student",
    "search.frechet.encoder",
)


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


@pytest.mark.parametrize("text", TYPED)
def test_a_text_key_takes_the_text(text: str, tmp_path: Path) -> None:
    for key in ("tracking.experiment", "run.root", "conditions.column"):
        config = load(None, [f"{key}={text}"])
        assert at(config, key) == text
        (tmp_path / "dumped.yaml").write_text(dump(config))
        assert load(tmp_path / "dumped.yaml") == config


def test_a_text_key_that_may_be_unset_is_unset_by_null_and_by_nothing() -> None:
    assert load(None, ["conditions.column=null"]).conditions.column is None
    assert load(None, ["conditions.column="]).conditions.column is None
    assert load(None, ["run.root=null"]).run.root == "null"
    with pytest.raises(ConfigError, match=r"run\.root=None: input should be a valid string"):
        load(None, ["run.root="])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a #b", "a #b"),
        ("a: b", "a: b"),
        ("x#part", "x#part"),
        ("0100", 100),
        ("0o14", 12),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("2026-11-23", "2026-11-23"),
        ("null", None),
        ("true", True),
        ("'5'", "5"),
        ("[a, '#b']", ["a", "#b"]),
        ("{a: {b: [1e-3]}}", {"a": {"b": [1e-3]}}),
        ("*a", "*a"),
        ("!!int 5", "!!int 5"),
    ],
)
def test_another_value_is_yaml_without_comments_or_tags(text: str, value: object) -> None:
    found = load(None, [f"reward.terms.mine.options.x={text}"]).reward.terms["mine"].options["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "value"),
    [("learner.rounds=0100", 100), ("learner.rounds=0o10", 8), ("run.seed=+7", 7), ("learner.rounds=1e2", 100)],
)
def test_a_number_is_that_of_yaml_1_2(override: str, value: int, tmp_path: Path) -> None:
    key, _, text = override.partition("=")
    section, name = key.split(".")
    (tmp_path / "run.yaml").write_text(f"{section}: {{{name}: {text}}}")
    assert at(load(None, [override]), key) == at(load(tmp_path / "run.yaml"), key) == value


@pytest.mark.parametrize("text", ["1:30", "0b11", "5 #rounds", "ten", "1 000"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^learner\.rounds='.*': input should be a valid integer"):
        load(None, [f"learner.rounds={text}"])


@pytest.mark.parametrize("key", PATHS)
def test_the_tilde_is_home_in_every_path(key: str, tmp_path: Path) -> None:
    home = str(Path("~").expanduser())
    section, _, name = key.partition(".")
    (tmp_path / "run.yaml").write_text(f"{section}: {{{name.replace('.', ': {')}: ~/x{'}' * key.count('.')}")
    beside = ["teacher.model=a.safetensors"] if key == "teacher.base" else []  # which only a single file takes
    for config in (load(None, [f"{key}=~/x", *beside]), load(tmp_path / "run.yaml", beside)):
        assert at(config, key) == f"{home}/x"
    assert at(load(None, [f"{key}=~", *beside]), key) == home
    assert at(load(None, [f"{key}=a~/x", *beside]), key) == "a~/x"


def test_every_key_that_is_described_as_a_path_takes_the_tilde() -> None:
    words = ("folder", "file", "path/to")
    described = {key for key, text in descriptions().items() if any(word in text.lower() for word in words)}
    others = {
        "run",
        "run.name",
        "reward.runtime_env",
        "reward.runtime_env.env_vars",
        "reward.runtime_env.py_modules",
        "student.levels",
        "checkpoint",
        "checkpoint.upload",
        "teacher.lora",
    }
    code = {"method", "learner.loss", "learner.advantage", "learner.regulariser.kind"}
    assert described - others - code <= set(PATHS)
    for key in code:
        assert at(load(None, [f"{key}=~/mine.py:f"]), key) == str(Path("~/mine.py:f").expanduser())


def test_the_tilde_is_home_in_code_options_loras_and_uris(tmp_path: Path) -> None:
    home = Path("~").expanduser()
    assert load(None, ["teacher.lora=~/a.safetensors"]).teacher.lora == {f"{home}/a.safetensors": 1.0}
    assert load(None, ["teacher.lora.~/a.safetensors=0.5"]).teacher.lora == {f"{home}/a.safetensors": 0.5}
    assert load(None, ["tracking.uri=sqlite:///~/x.db"]).tracking.uri == f"sqlite:///{home}/x.db"
    assert load(None, ["checkpoint.upload=file://~/x"]).checkpoint.upload == f"file://{home}/x"
    assert load(None, ["checkpoint.upload=file:///~/x"]).checkpoint.upload == f"file://{home}/x"
    assert load(None, ["data=~/i", "out=~"], TeacherConfig).data == f"{home}/i"
    config = absolute(load(None, ["reward.terms.mine.options.callable=~/f.py:f", "reward.terms.mine.options.x=~/."]))
    assert config.reward.terms["mine"].options == {"callable": f"{home}/f.py:f", "x": str(home)}


def test_an_entry_s_name_may_hold_dots() -> None:
    labels = ["ray.address=auto", "rollout.labels.ray.io/market-type=007"]
    assert load(None, labels).rollout.labels == {"ray.io/market-type": "007"}
    assert parse_override("sweep.space.learner.lr=uniform(1, 2)") == (
        ["sweep", "space", "learner", "lr"],
        "uniform(1, 2)",
    )


def test_a_relative_store_stays_where_the_driver_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("sqlite:///mlflow.db?timeout=5", f"sqlite:///{tmp_path}/mlflow.db?timeout=5"),
        ("mlruns", f"{tmp_path}/mlruns"),
        ("databricks", "databricks"),
        ("http://h:5000", "http://h:5000"),
    ):
        assert absolute(load("smoke", [f"tracking.uri={given}"])).tracking.uri == expected


def test_mlflow_s_variables_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:hush-7@h:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    config = absolute(load("smoke"))
    assert config.tracking_uri == "http://***@h:5000" and config.experiment == "ours"
    assert config.tracking_uri.reveal("tracking.uri") == "http://u:hush-7@h:5000"
    assert absolute(load("smoke", ["tracking.uri=off", "tracking.experiment=mine"])).experiment == "mine"
    assert absolute(load("smoke", ["tracking.uri=off"])).tracking_uri is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    config = absolute(load("smoke"))
    assert config.tracking_uri == f"sqlite:///{Path('runs/mlflow.db').resolve()}" and config.experiment == "redif"


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ConfigError, match="no UTF-8"):
        override({}, os.fsdecode(b"run.root=\xff"), Config)


@pytest.mark.parametrize("key", ["run.root", "teacher.model", "tracking.uri"])
@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "x" * 300 + "/y", " "])
def test_a_path_that_no_file_can_have_is_refused(key: str, text: str) -> None:
    if key == "tracking.uri" and len(text) > 100:
        return
    with pytest.raises(ConfigError, match=rf"^{key}="):
        load(None, [f"{key}={text}"])
