"""YAML within bounds: what is not plain data, or too much of it, is one short error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from redif_ray import yaml12
from redif_ray.cli import main
from redif_ray.config import ConfigError, load
from redif_ray.yaml12 import Dumper, YamlError


def bomb(letters: str = "bcdefghi") -> str:
    """Lists of nine aliases of the list before: 9^9 values in 305 characters."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("a" + letters, letters, strict=False):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 2000))])
BOUNDED = [
    (bomb(), "more than 20000 values, each alias replaced"),
    (CHAIN, "more than 50 deep"),
    ("[" * 100_000, "more than 50 deep"),
    ("a: " + "{a: " * 60 + "1" + "}" * 60, "more than 50 deep"),
    ("[" + "x," * 20_001 + "]", "more than 20000 values"),
    ("a" * (2**18 + 1), "expected at most 262144"),
    ("a: &a [*a]", "an alias stands for a value that holds the alias itself"),
    ("9" * 10_000, "a whole number of 10000 digits; expected at most 300"),
    ("!!int x", "does not suit its tag"),
    ("!!binary aGk=", "could not determine a constructor"),
    ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
    ("? [a]\n: 1", "a key is a list or a mapping"),
    ("a: \x00", "special characters are not allowed"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "problem"), BOUNDED, ids=[problem[:30] for _, problem in BOUNDED])
def test_what_is_bounded_is_one_line_at_once(text: str, problem: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(YamlError, match=problem) as told:
        yaml12.load(text)
    assert time.monotonic() - began < 10 and "\n" not in str(told.value) and len(str(told.value)) < 200
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"run\.yaml is not valid YAML: .*{problem}"):
        load(tmp_path / "run.yaml")


def test_a_bomb_below_a_known_key_is_an_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text("reward: {terms: {mine: {options: {\n" + bomb().replace("\n", ",\n") + "}}}}\n")
    monkeypatch.setattr("sys.argv", ["redif", "distill", str(path), "--print-config"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "bomb.yaml is not valid YAML: line 6: more than 20000 values" in " ".join(capsys.readouterr().err.split())


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"huge\.yaml holds more than the 262144 characters of a configuration"):
        load(path)


def test_aliases_and_merges_within_the_bounds_are_read() -> None:
    text = "a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: [*a, *a]"
    once = {"x": 1, "y": [2]}
    assert yaml12.load(text) == {"a": once, "b": {"x": 3, "y": [2]}, "c": [once, once]}


@pytest.mark.parametrize(
    "text", ["no", "0100", "1_000", "1:30", "2026-11-23", "~", "1e5", "0o7", "=", "<<", "0x1", "off"]
)
def test_a_text_is_written_so_that_every_reader_takes_it_for_one(text: str) -> None:
    written = yaml.dump([text], Dumper=Dumper)
    assert yaml12.load(written) == yaml.safe_load(written) == [text]


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfrun: {seed: 5}\n")
    assert load(tmp_path / "run.yaml").run.seed == 5
