from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from redif_ray.config import (
    Config,
    ConfigError,
    Learner,
    Reward,
    RuntimeEnv,
    Strict,
    Term,
    UnknownKeyError,
    dump,
    explained,
    load,
    resolve,
    validate,
)
from redif_ray.config.base import has_control_characters
from redif_ray.config.changes import changeable, may_differ
from redif_ray.config.files import descriptions
from redif_ray.config.renamed import RENAMED
from redif_ray.config.run import Run
from redif_ray.masking import masked
from redif_ray.teacher.config import TeacherConfig

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return make


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_configuration_loads_and_round_trips(path: Path) -> None:
    model = TeacherConfig if path.stem.startswith("teacher_") else Config
    config = load(path, model=model)
    assert load(path.stem, model=model) == load(f"configs/{path.name}", model=model) == config
    assert validate(yaml.safe_load(dump(config)), model) == config  # what others' parsers read is the same


def test_each_key_is_shown_by_a_recipe() -> None:
    shown = {key for path in SHIPPED for key in _keys_of(yaml.safe_load(path.read_text()))}
    missing = [key for key in descriptions() if key not in shown and not key.startswith("reward.terms.")]
    assert not missing


def _keys_of(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys_of(value, f"{prefix}{name}.")


def test_a_file_that_is_not_there_is_not_replaced_by_a_shipped_one_of_that_name() -> None:
    with pytest.raises(ConfigError, match=r"no configuration elsewhere/smoke\.yaml.*smoke\.yaml"):
        resolve("elsewhere/smoke.yaml")


def test_a_misspelt_recipe_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^no configuration smok \(did you mean smoke\?\); expected a YAML file"):
        resolve("smok")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("learner.lrr=1", "learner.lr"),
        ("rollout.gropus=4", "rollout.groups"),
        ("student.lora.ranc=4", "student.lora.rank"),
        ("learnr=1", "learner"),
        ("siblings=4", "rollout.siblings"),
        ("reward.terms.ssim.wieght=2", "reward.terms.ssim.weight"),
        ("reward.terms.mse.normalize=std", "reward.terms.mse.normalise"),
        ("reward.runtime_env.py_module=[]", "reward.runtime_env.py_modules"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    assert message(override) == f"{key}: unknown key; did you mean {nearest}?"


def test_a_word_that_is_like_no_key_is_told_the_sections() -> None:
    assert message("data=cats").startswith("data: unknown key; expected one of method, run, ray, teacher, student, ")


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_unknown_and_its_new_name_is_said(old: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        load(None, [f"{old}=1"])
    assert str(caught.value) == f"{old}: unknown key; it is now {RENAMED[old]}"
    assert RENAMED[old] in descriptions() and old not in descriptions()


def test_an_unknown_key_is_named_before_other_problems() -> None:
    assert message("student.steps=0", "learner.shard=true").startswith("learner.shard: unknown key")


def test_a_last_part_that_several_sections_have_names_them_all() -> None:
    near = "warm_start.lr or learner.lr or search.descent.lr or search.adaptive.lr"
    assert message("lr=1") == f"lr: unknown key; did you mean {near}?"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("student.steps=many", ["student.steps='many'", "integer"]),
        ("student.steps=2.5", ["student.steps=2.5", "integer"]),
        ("student.steps=0", ["student.steps=0", "greater than 0"]),
        ("student.steps=65", ["student.steps=65", "less than or equal to 64"]),
        (
            "method=ppo",
            [
                "method='ppo'",
                "redif, output, contrast, sfd, draft, straight, distribution_matching, consistency, progressive, or ",
                "your own",
            ],
        ),
        ("student.levels=[999,x]", ["student.levels.1='x'", "number"]),
        ("rollout.guided=true", ["rollout.guided=True", "not a value"]),
        ("exploration.antithetic=7", ["exploration.antithetic=7", "boolean"]),
        ("learner.lr=", ["learner.lr=None", "number"]),
        ("reward.terms.mse=2", ["reward.terms.mse=2", "reward.terms.mse.weight"]),
        ("reward=2", ["reward=2", "reward.terms", "reward.calibration"]),
        ("reward.terms={}", ["reward.terms={}", "at least 1"]),
        ("run.name=../elsewhere", ["run.name='../elsewhere'", "pattern"]),
        ("run.seed=-1", ["run.seed=-1", "greater than or equal to 0"]),
    ],
)
def test_a_wrong_value_names_key_value_and_expectation(override: str, parts: list[str]) -> None:
    found = message(override)
    assert all(part in found for part in parts), found


def test_a_copy_of_a_configuration_makes_no_secret_of_a_plain_uri() -> None:
    """Workers unpickle it, and pydantic copies its defaults."""
    config = load("smoke")
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert masked("ray.address=local") == "ray.address=local" and "***" not in dump(config)


def test_a_secret_is_not_written_into_a_configuration() -> None:
    """Neither is it in the message that says so, whatever its type."""
    for name, value in (("SCORER_TOKEN", "hush"), ("my_api_key", 12345), ("DB_PASSWORD", "[hush]")):
        found = message(f"reward.runtime_env.env_vars.{name}={value}")
        assert found.startswith(f"reward.runtime_env.env_vars.{name}: its name is that of a secret, and values")
        assert f"expected null, with {name} set in the environment of the driver" in found
        assert "hush" not in found and "12345" not in found
    env_vars = {"SCORER_TOKEN": None, "HF_HOME": "/shared/hf"}
    config = load(None, [f"reward.runtime_env.env_vars.{k}={v or 'null'}" for k, v in env_vars.items()])
    assert config.reward.runtime_env.env_vars == env_vars and validate(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("key", "uri", "as_shown"),
    [
        ("tracking.uri", "https://me:hush-1@mlflow.example/x", "https://***@mlflow.example/x"),
        ("tracking.uri", "postgresql://me:hush-1@db/mlflow", "postgresql://***@db/mlflow"),
        ("tracking.uri", "https://hush-1@mlflow.example", "https://***@mlflow.example"),
        ("tracking.uri", "mysql://db/mlflow?password=hush-1", "mysql://db/mlflow?password=***"),
        ("checkpoint.upload", "s3://me:hush-1@bucket/folder", "s3://***@bucket/folder"),
        ("checkpoint.upload", "s3://bucket/folder?region=eu&sig=hush-1", "s3://bucket/folder?region=eu&sig=***"),
    ],
)
def test_a_secret_in_a_uri_is_used_and_not_shown(key: str, uri: str, as_shown: str) -> None:
    config = load(None, [f"{key}={uri}"])
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    assert value == as_shown and value.reveal(key) == uri
    assert f"{name}: {as_shown}" in dump(config) and "hush-1" not in f"{dump(config)}{config}{config!r}"
    assert "hush-1" not in message(f"{key}={uri}", "student.steps=0") + message(f"{key}{uri}")


@pytest.mark.parametrize(
    "uri",
    [
        "off",
        "mlruns",
        "./mlruns",
        "http://127.0.0.1:5000",
        "sqlite:////data/a@b/mlflow.db?timeout=60",
        "databricks://prod",
        "postgresql://me@db:5432/mlflow",
        "postgresql+psycopg2://db/mlflow",
    ],
)
def test_a_tracking_uri_without_a_secret_is_taken(uri: str) -> None:
    assert load(None, [f"tracking.uri={uri}"]).tracking.uri == uri


@pytest.mark.parametrize(
    "key",
    [
        *("rollout.max_workers", "reward.max_workers", "learner.workers", "learner.threads"),
        *("teacher.batch", "evaluation.batch", "rollout.unit_groups", "student.lora.rank"),
    ],
)
def test_a_number_that_would_take_all_memory_is_refused(key: str) -> None:
    assert f"{key}=10001: input should be less than or equal to 10000" in message(f"{key}=10001")
    assert "less than or equal to 1000000000" in message("rollout.groups=1000000001")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("key", ["learner.lr", "student.tilt", "reward.terms.mse.weight", "reward.terms.x.options.a"])
def test_only_finite_numbers(key: str, value: str) -> None:
    assert f"{key}" in (found := message(f"{key}={value}")) and "finite" in found


def test_a_teacher_takes_only_finite_numbers_too() -> None:
    with pytest.raises(ConfigError, match=r"lr=inf: .*finite"):
        load(None, ["data=x", "out=y", "lr=.inf"], TeacherConfig)
    with pytest.raises(ConfigError, match=r"^data: missing"):
        load(None, ["out=y"], TeacherConfig)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.e-5", 1e-5), ("+.5e1", 5.0), ("3", 3.0), ("1.0e-05", 1e-5), ("1e5", 1e5)],
)
def test_numbers_in_any_spelling(text: str, value: float, write: Any) -> None:
    assert load(None, [f"learner.lr={text}"]).learner.lr == value
    assert load(write(f"learner: {{lr: {text}}}")).learner.lr == value
    nested = load(write(f"reward: {{terms: {{x: {{options: {{a: [{text}], b: {{c: {text}}}}}}}}}}}")).reward.terms["x"]
    assert nested.options == {"a": [value], "b": {"c": value}}


def test_words_stay_words(write: Any) -> None:
    assert load(write("tracking: {uri: off}")).tracking.uri == load(None, ["tracking.uri=off"]).tracking.uri == "off"
    assert load(None, ["run.name=2026-11-23"]).run.name == "2026-11-23"
    assert load(None, ["networks.compile=true"]).networks.compile is True
    assert load(None, ["learner.minibatch=null"]).learner.minibatch is None


def test_a_key_given_twice_is_an_error(write: Any) -> None:
    with pytest.raises(ConfigError, match="the key learner appears twice"):
        load(write("learner: {lr: 1e-3}\nrun: {seed: 1}\nlearner: {rounds: 3}\n"))


@pytest.mark.parametrize("text", ["learner: [", "- a\n- b\n", "\t- x"])
def test_a_file_that_is_no_mapping_is_named(text: str, write: Any) -> None:
    path = write(text)
    with pytest.raises(ConfigError, match=str(path)):
        load(path)


def test_an_empty_file_is_the_defaults(write: Any) -> None:
    assert load(write("# nothing\n")) == Config()


def test_terms_are_set_and_added_by_override(write: Any) -> None:
    path = write("reward: {terms: {mse: {weight: 1.0}, ssim: {weight: 0.5}}}")
    terms = load(path, ["reward.terms.mse.weight=2", "reward.terms.psnr.options.peak=1"]).reward.terms
    assert terms == {"mse": Term(weight=2.0), "ssim": Term(weight=0.5), "psnr": Term(options={"peak": 1})}


@pytest.mark.parametrize("override", ["learner.lr.x=1", "reward.terms.mse.weight.x=1"])
def test_nothing_lies_below_a_value(override: str, write: Any) -> None:
    path = write("learner: {lr: 1e-3}\nreward: {terms: {mse: {weight: 1.0}}}")
    above = override.rpartition(".x")[0]
    with pytest.raises(ConfigError, match=rf"override {override[:-2]}: {above}=.* is a value"):
        load(path, [override])


@pytest.mark.parametrize("override", ["learner.lr", "=3"])
def test_an_override_that_is_none(override: str) -> None:
    assert repr(override) in message(override)


def test_an_override_that_is_no_yaml() -> None:
    assert message("learner.lr=[1").startswith("override learner.lr: the value is not valid YAML (expected ',' or ']'")


def test_later_overrides_win() -> None:
    assert load(None, ["learner.lr=1", "learner.lr=2"]).learner.lr == 2


def test_every_key_is_explained_in_a_sentence() -> None:
    known = {**descriptions(), **descriptions(RuntimeEnv, "reward.runtime_env.")}
    assert not [key for key, text in known.items() if not text.endswith(".") or "  " in text]


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_an_explained_configuration_is_the_same(path: Path, write: Any) -> None:
    model = TeacherConfig if path.stem.startswith("teacher_") else Config
    config = load(path, model=model)
    text = explained(config)
    assert load(write(text), model=model) == config
    if model is Config:
        assert f"  # {descriptions()['learner.max_grad_norm']}\n  max_grad_norm: " in text


def test_the_described_keys_are_those_of_the_resolved_tree() -> None:
    def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
        below = (keys(v, f"{prefix}{k}.") if isinstance(v, dict) else set() for k, v in tree.items())
        return {f"{prefix}{k}" for k in tree}.union(*below)

    whole = Config(reward=Reward(runtime_env=RuntimeEnv())).model_dump()
    assert {key.replace("*", "mse") for key in descriptions()} == keys(whole) - {"reward.terms.mse"}


WORKERS = {"max_workers", "min_workers", "resources", "labels"}


def test_what_may_differ_when_a_run_is_resumed() -> None:
    assert set(changeable("resume")) == {
        "ray",
        "run.root",
        "checkpoint",
        "tracking.uri",
        "pipeline.timeout_s",
        "pipeline.colocate",
        "search.adaptive",
        *(f"{role}.{key}" for role in ("rollout", "reward") for key in WORKERS | {"cpus"}),
        *(f"learner.{key}" for key in ("cpus", "resources", "labels")),
    }
    assert may_differ("checkpoint.every", "resume") and not may_differ("learner.workers", "resume")


def test_what_may_differ_when_a_run_is_evaluated_again() -> None:
    workers = {f"{role}.{key}" for role in ("rollout", "reward") for key in WORKERS | {"gpus"}}
    assert set(changeable("evaluate")) == {"ray", "evaluation", "networks.precision", *workers}
    assert may_differ("rollout.resources.spot", "evaluate") and not may_differ("rollout.cpus", "evaluate")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "dumped.yaml"


words = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,11}\Z")
ambiguous = st.sampled_from(["off", "1e5", "1_0", "0x10", "2026-11-23", "null", "true", "1:30", "~", "<<", "=", ""])
unread = "\x85\u2028\u2029"  # PyYAML folds Unicode's own line breaks
printable = st.characters(codec="utf-8", exclude_characters=unread)
texts = st.one_of(words, ambiguous, st.text(printable, max_size=12))
paths = texts.filter(lambda text: bool(text.strip()) and not has_control_characters(text))
numbers = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.builds(Run, name=words, root=paths, seed=st.integers(0, 2**63 - 1)),
    st.dictionaries(
        texts,
        st.builds(Term, weight=st.floats(1e-9, 1e9), options=st.dictionaries(texts, json_values, max_size=3)),
        min_size=1,
        max_size=3,
    ),
    st.floats(1e-12, 1.0, exclude_min=True),
)
def test_dump_then_load_is_the_identity(scratch: Path, run: Run, terms: dict[str, Term], lr: float) -> None:
    config = Config(run=run, reward=Reward(terms=terms), learner=Learner(lr=lr))
    scratch.write_text(dump(config))
    assert load(scratch) == config


def test_the_tree_is_frozen_and_closed() -> None:
    def sections(model: type[Strict]) -> list[type[Strict]]:
        below = [f.annotation for f in model.model_fields.values()]
        nested = [k for k in below if isinstance(k, type) and issubclass(k, Strict)]
        return [model, *(s for k in nested for s in sections(k))]

    for section in sections(Config):
        assert section.model_config["frozen"] and section.model_config["extra"] == "forbid"


def test_a_configuration_does_not_change_and_shows_what_is_its_own() -> None:
    config = load("smoke", ["learner.lr=0.5"])
    with pytest.raises(ConfigError, match=r"lr=5: a configuration does not change; load_config\(config, 'SECTION.lr="):
        config.learner.lr = 5
    assert config.learner.lr == 0.5 and "lr: 0.5" in repr(config) == str(config)
    assert yaml.safe_load(repr(load("smoke")))["run"] == {"name": "smoke"}
