"""Secrets of URIs and headers are used and shown nowhere. `tests/job/test_secrets_of_a_run.py` looks at a whole run."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.outcomes import of_command
from pydantic import BaseModel

from redif_ray.cli import main
from redif_ray.config import Config, ConfigError, dump, explained, load
from redif_ray.config.overrides import _alternatives
from redif_ray.config.uris import Uri, guarded, revealed
from redif_ray.errors import UserError
from redif_ray.masking import MASK, learn, masked
from redif_ray.planning.paths import absolute
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.status import status
from redif_ray.tracking import flatten

SECRET = "hunter-4711"
FORMS = (
    "postgresql://me:{}@db.example/x",
    "https://{}@here.example/x",
    "https://me:{}@here.example:8080/x?region=eu",
    "https://here.example/x?token={}",
    "https://here.example/x?region=eu&X-Amz-Signature={}&X-Amz-Expires=3600",
    "https://here.example/x?sv=2026&sig={}",
    "https://here.example/x?code={}",
    "https://here.example/x?{}",
    "https://here.example/x#access_token={}",
    "https://here.example/x#{}",
    "https://here.example/#/route?key={}",
    "s3://AKIA:{}@bucket/x",
    "s3://bucket/x?endpoint_override=http%3A%2F%2Fme%3A{}%40here",
    "foo+https://me:{}/with/slashes@here.example",
)
OTHER_PLACES = ("reward.terms.mine.options.url", "reward.terms.mine.options.nested.list")


def uri_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the type `Uri`, so that a new one is covered by itself."""
    for name, field in model.model_fields.items():
        for kind in _alternatives(field.annotation):
            if isinstance(kind, type) and issubclass(kind, Uri):
                yield f"{prefix}{name}"
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from uri_keys(kind, f"{prefix}{name}.")


KEYS = (*uri_keys(), *OTHER_PLACES)


def test_the_keys_that_may_hold_secrets() -> None:
    assert {"tracking.uri", "checkpoint.upload", "ray.address", "conditions.source"} <= set(KEYS)


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_wherever_it_stands(form: str) -> None:
    text = form.format("fresh-0815")
    for around in ("{}", "see '{}'.", "a {}, b", '{{"uri": "{}"}}', "({})"):
        assert "fresh-0815" not in masked(around.format(text))
        assert masked(masked(text)) == masked(text)
    assert MASK in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "off",
        "sqlite:////data/a@b/mlflow.db?timeout=60",
        "databricks://prod",
        "postgresql://me@db:5432/mlflow",
        "abfs://container@account.dfs.core.windows.net/x",
        "gs://anonymous@bucket/x?scheme=http&endpoint_override=127.0.0.1:1",
        "http://127.0.0.1:5000/#/experiments/1/runs/abc",
        "http://localhost:5000/x@y",
        "git+https://code.example/own.git@v1#egg=own&subdirectory=src/own",
        f"https://code.example/own.whl#sha256={'0a' * 32}",
        "see https://docs.example/guide.html#closed-ports, and 'https://docs.example/#tokens'.",
        "such as Bearer and a token; is it so? yes=no",
        "learner.lr=1e-5: expected {0: 1}, <b> & 'c'; see a#b",
        "git+ssh://git@host.example/org/repo@main#egg=name",
        "git+https://git@host.example/org/repo",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Max retries exceeded with url: /score?token=fresh-0816 (Caused by X)",
        "{'Authorization': 'Bearer fresh-0816', 'Accept': '*/*'}",
        'X-Api-Key: "fresh-0816"',
        "cookie=session fresh-0816",
        "sent Bearer fresh-0816-and-more to it",
        "host=db user=me password=fresh-0816 dbname=x",
        "host=db user=me password='a fresh-0816' dbname=x",
        "MLFLOW_TRACKING_PASSWORD=fresh-0816",
        "Server=db;Uid=me;Pwd='fresh-0816';Database=x",
    ],
)
def test_headers_and_parts_of_uris_are_masked(text: str) -> None:
    assert "fresh-0816" not in masked(text)


def test_what_was_learnt_is_masked_in_every_spelling_and_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    learn("postgresql://me:learnt%40817@db/x")
    assert masked("for learnt@817, learnt%40817 and me") == f"for {MASK}, {MASK} and me"
    try:
        raise OSError("password learnt@817 is wrong")
    except OSError:
        logging.getLogger("some.library").warning("GET %s", "https://h/?x=learnt@817", exc_info=True)
    text = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert "password *** is wrong" in text and "learnt@" not in text
    assert "learnt" not in str(UserError("learnt@817")) and "learnt" not in repr(ConfigError("learnt@817"))


@pytest.mark.parametrize("key", ["run.root", "teacher.model", "conditions.source"])
def test_a_path_is_written_as_it_is(key: str) -> None:
    path = "/data/lr=1;seed=12345678?x=y#z"
    assert f": {path}\n" in dump(load("smoke", [f"{key}={path}"]))
    assert masked("12345678") == "12345678"


def test_words_in_a_query_are_no_secret_elsewhere() -> None:
    learn("http://localhost:8000/score?model=clip-large-model&token=plain-words")
    assert masked("runs/clip-large-model of plain-words") == f"runs/clip-large-model of {MASK}"


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_a_planted_secret_is_used_and_shown_nowhere(key: str, tmp_path: Path) -> None:
    """In what a command prints, in its errors, in what is written of a configuration, and in a traceback."""
    for form in FORMS:
        uri = form.format(SECRET)
        given = f"{key}=[{uri!r}]" if key.endswith("list") else f"{key}={uri}"
        config = load("smoke", [given])
        for text in (
            dump(config),
            explained(config),
            repr(config),
            str(config),
            str(flatten(config)),
            repr(config.model_dump()),
        ):
            assert SECRET not in text
            assert MASK in text
        assert uri in str(revealed(config.model_dump(), ""))
        assert uri in str(revealed(pickle.loads(pickle.dumps(config)).model_dump(), ""))
        assert Config.model_validate(config.model_dump()) == config
        for more in (["student.steps=0"], ["learner.lrr=1"], [f"{key}.x=1"], [f"run {uri}"], ["exploration.eta=0"]):
            with pytest.raises(ConfigError) as told:
                load("smoke", [given, *more])
            assert SECRET not in "".join(traceback.format_exception_only(told.value))


@pytest.mark.slow
def test_a_planted_secret_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    planted = [f"{key}={FORMS[i].format(SECRET)}" for i, key in enumerate(uri_keys())]
    options = [f"reward.terms.mine.options.{name}" for name in ("url=https://here/x?k=", "api_key=", "auth_token=")]
    planted += [f"{option}{SECRET}" for option in options]
    for words in (["--print-config"], ["student.steps=0"], ["teacher.model=no", f"run.root={tmp_path}"]):
        monkeypatch.setattr("sys.argv", ["redif", "distill", "smoke", *planted, *words])
        with pytest.raises(SystemExit):
            main()
        out = capsys.readouterr()
        assert out.out or out.err
        assert SECRET not in out.out + out.err
    assert SECRET not in of_command("doctor", "smoke", *planted).text
    assert SECRET not in of_command("status", f"https://me:{SECRET}@here").text


def test_a_crash_is_printed_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise LookupError(f"no route to https://me:{SECRET}@here")

    monkeypatch.setattr("redif_ray.trials.status.show", crash)
    monkeypatch.setattr("sys.argv", ["redif", "status", "anything"])
    with pytest.raises(SystemExit) as end:
        main()
    err = capsys.readouterr().err
    assert end.value.code == 1 and "LookupError: no route to https://***@here" in err and SECRET not in err


@pytest.mark.parametrize("key", uri_keys())
def test_a_uri_may_come_from_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown by the variable's name, and another process, which lacks the variable, gets its value."""
    uri = f"https://me:{SECRET}@here.example/x?token={SECRET}"
    config = load("smoke", [f"{key}=env:PLACE_OF_MINE"])
    with pytest.raises(ConfigError, match=rf"{key}=env:PLACE_OF_MINE: the environment variable .* is not set"):
        absolute(config)
    monkeypatch.setenv("PLACE_OF_MINE", f" {uri}\n")
    assert key.rpartition(".")[2] + ": env:PLACE_OF_MINE" in dump(absolute(config))
    sent = pickle.dumps(config)
    monkeypatch.delenv("PLACE_OF_MINE")
    assert uri in str(revealed(pickle.loads(sent).model_dump(), ""))
    assert "env:PLACE_OF_MINE" in dump(pickle.loads(sent)) and SECRET not in dump(pickle.loads(sent))


def test_options_of_rewards_are_guarded_by_their_names() -> None:
    options = {"api_key": SECRET, "headers": {"Authorization": f"Bearer {SECRET}"}, "header_env": "NAME", "size": 3}
    assert guarded(options) == {"api_key": MASK, "headers": {"Authorization": MASK}, "header_env": "NAME", "size": 3}
    assert revealed(guarded(options), "") == options
    database = {"dsn": f"host=db password={SECRET}", "more": [f"Authorization: Bearer {SECRET}"], "note": "a, b=c"}
    assert SECRET not in str(guarded(database)) and guarded(database)["note"] == "a, b=c"
    assert revealed(guarded(database), "") == database


def test_a_resumed_run_takes_the_secret_that_is_given_now(tmp_path: Path) -> None:
    """Another secret is no other configuration, and config.yaml alone has none to go on with."""
    place = [f"run.root={tmp_path}", "run.name=first"]
    uris = ["tracking.uri=http://me:{}@h:1", "reward.terms={{mine: {{options: {{url: 'http://h/s?token={}'}}}}}}"]

    def config(secret: str) -> Config:
        return load("smoke", [*place, *(uri.format(secret) for uri in uris)])

    RunFolder.open(config(SECRET), resume=False).close()
    written = (tmp_path / "first/config.yaml").read_text()
    assert SECRET not in written and "uri: http://***@h:1" in written and "url: http://h/s?token=***" in written
    RunFolder.open(config("another-secret"), resume=True).close()
    with pytest.raises(ConfigError, match=r"^reward.terms.mine.options.url=http://h/s.token=\*\*\*: the secret"):
        absolute(load(tmp_path / "first/config.yaml", ["tracking.uri=off"]))
    with pytest.raises(ConfigError, match=r"^tracking.uri=http://\*\*\*@h:1: .* give it again by tracking.uri=\.\.\."):
        absolute(load(tmp_path / "first/config.yaml", ["reward.terms={mse: {}}"]))
    (tmp_path / "first/run.json").write_text('{"mlflow_run_id": "7"}')
    assert status(tmp_path / "first")[1]["MLflow"] == "run 7 at http://***@h:1"
