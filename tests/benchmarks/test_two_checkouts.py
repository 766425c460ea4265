"""The comparison of two checkouts tells ratios turn by turn, of the same recipes."""

from __future__ import annotations

from benchmarks.versions import HERE, SHORT, Timed, table
from redif_ray.config import load


def test_a_table_compares_the_turns_of_each_recipe() -> None:
    work = {"targets": 8.0, "rollout": 2.0, "score": 0.1, "update": 10.0, "validation": 1.0, "evaluation": 4.0}
    before, now = Timed(100.0, 60.0, work, -0.5), Timed(50.0, 45.0, {**work, "targets": 2.0}, -0.25)
    rows = [line.split(" | ") for line in table({"emoji_4step": [(before, now), (before, before)]}).splitlines()]
    told = {row[0].strip("| "): row[1:] for row in rows}
    assert told["`emoji_4step`: whole run, s"][:3] == ["100", "75", "0.75"]
    assert told["of it targets, s"][3].startswith("0.25, 1.00")
    assert "of it score, s" not in told and told["work of all processes, s"][:2] == ["25", "22"]
    assert "-0.50000 and -0.25000" in told["reward of the last validation"][3]


def test_shortened_recipes_are_shipped_ones() -> None:
    for recipe, settings in SHORT.items():
        assert load(recipe, settings).learner.rounds < load(recipe).learner.rounds
        assert (HERE / "configs" / f"{recipe}.yaml").exists()
