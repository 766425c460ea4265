"""The summary's schema, the report and the pictures."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError

from redif_ray.diffusion import noise, schedules
from redif_ray.diffusion.levels import VariancePreserving
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation import plots, summary
from redif_ray.evaluation.report import gap_closed, write_report
from redif_ray.evaluation.summary import Summary, schema


def arm(frechet: float, nfe: int = 4) -> dict[str, Any]:
    return {
        "nfe": nfe,
        "frechet": frechet,
        "frechet_ci": [frechet - 1, frechet + 1],
        "kid": 0.0123,
        "kid_se": 0.0004,
        "precision": 0.71,
        "recall": 0.62,
        "density": 1.01,
        "coverage": 0.83,
        "class_accuracy": 0.9,
        "caption_cosine": None,
        "paired": {"pixel_mse": 0.0123},
    }


RESULT: dict[str, Any] = {
    "schema": 1,
    "name": "demo",
    "student_steps": 4,
    "seed": 0,
    "held_out": 2000,
    "size": [28, 28],
    "judge": "fashion-mnist-b",
    "reference": "real",
    "arms": {
        "teacher_full": arm(10.0, 20),
        "teacher_few": arm(30.0),
        "teacher_best": arm(20.0),
        "warm_start": None,
        "student": arm(14.0),
    },
    "limits": {
        "count": 2000,
        "frechet": 0.4,
        "precision": 0.9,
        "recall": 0.91,
        "density": 1.0,
        "coverage": 0.97,
        "class_accuracy": 0.94,
    },
    "diversity": {
        "encoder": "dinov2-base",
        "conditions": 32,
        "noises": 4,
        "student": 0.3051,
        "teacher": 0.4123,
        "change_se": 0.0082,
    },
    "calibration": {"mse": {"self": 0.0, "other_seed": -0.08, "init": -0.03, "spread": 0.01}},
    "compute": {
        "teacher": {"seconds": 12.0, "nfe": 3000.0, "flops": 2e12},
        "update": {"seconds": 30.0, "nfe": 1000.0, "flops": 3e12},
    },
    "policy_version": 120,
    "weights_sha256": "a" * 64,
    "mlflow": {"tracking_uri": "sqlite:///x.db", "run_id": "abc"},
    "notes": {
        "teacher_best": "euler on karras",
        "lost": {"rollout": 1},
        "seconds_per_image": {"teacher": 0.0312, "student": 0.0061},
        "workers": {"rollout-0": {"busy": 0.87, "units": 64}},
        "student_gain": {"over the warm start": {"frechet": {"change": -3.61, "low": -4.6, "high": -2.65}}},
    },
}
ROWS: list[dict[str, Any]] = [{"round": -1, "phase": "start", "validation/reward": -0.3}] + [
    {
        "round": i,
        "phase": "warm_start" if i < 20 else "policy",
        "reward/mean": -1 / (i + 5),
        **({"validation/reward": -0.9 / (i + 5)} if i % 10 == 9 else {}),
    }
    for i in range(80)
]


def test_shipped_schema_is_the_models() -> None:
    shipped = Path(summary.__file__).with_name("summary.schema.json")
    assert json.loads(shipped.read_text()) == schema()
    assert "schema" in schema()["required"]


def test_summary_survives_json() -> None:
    found = Summary.model_validate(json.loads(json.dumps(RESULT)))
    assert found.model_dump(mode="json", by_alias=True) == RESULT


def test_the_diversity_is_told_where_it_was_measured(tmp_path: Path) -> None:
    text = write_report(tmp_path, RESULT, ROWS).read_text()
    assert "are 0.3051 apart with the trained student and 0.4123 with the teacher" in text
    assert "a difference of -0.1072 ± 0.0082" in text and "32 conditions of 4 noises" in text
    older = {key: value for key, value in RESULT.items() if key != "diversity"}
    assert "Diversity" not in write_report(tmp_path, older, ROWS).read_text()


def test_how_images_fit_their_conditions_is_shown_where_it_is_known(tmp_path: Path) -> None:
    tree = copy.deepcopy(RESULT)
    for found in tree["arms"].values():
        if found:
            found |= {"class_accuracy": None, "caption_cosine": 0.3456}
    text = write_report(tmp_path, tree | {"reference": "teacher"}, ROWS).read_text()
    assert "caption cosine ↑" in text and "| 0.346 |" in text and "class accuracy" not in text
    assert "against the teacher's images of as many other noises" in text
    old = {key: value for key, value in RESULT.items() if key != "reference"}
    text = write_report(tmp_path, old, ROWS).read_text()
    assert "class accuracy ↑" in text and "caption" not in text and "against its real images" in text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema"),
        (("arms", "student", "recall"), 1.2, "recall"),
        (("arms", "student", "frechet"), float("nan"), "frechet"),
        (("arms", "student", "fid"), 1.0, "fid"),
        (("weights_sha256",), "abc", "weights_sha256"),
        (("arms", "teacher_few"), None, "teacher_few"),
    ],
)
def test_summary_refuses(path: tuple[str, ...], value: Any, message: str) -> None:
    tree = copy.deepcopy(RESULT)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ValidationError, match=message):
        Summary.model_validate(tree)


def test_gap_closed_by_hand() -> None:
    found = Summary.model_validate(RESULT)
    assert gap_closed(found) == pytest.approx((30 - 14) / (30 - 10))
    assert gap_closed(found, "teacher_best") == pytest.approx((20 - 14) / (20 - 10))
    assert gap_closed(found, "warm_start") is None
    no_gap = copy.deepcopy(RESULT)
    no_gap["arms"]["teacher_few"] = arm(9.0)
    assert gap_closed(Summary.model_validate(no_gap)) is None


def reported(folder: Path, student: float = 14.0, **changes: Any) -> str:
    """Return the report of a student at this distance, with changes to the full teacher or, as a mapping, the rest."""
    tree = copy.deepcopy(RESULT)
    tree["arms"]["student"] = arm(student)
    full = {key: changes.pop(key) for key in ("coverage", "class_accuracy") if key in changes}
    tree["arms"]["teacher_full"] |= full
    return write_report(folder, tree | changes, ROWS).read_text()


def test_no_gap_is_promised_that_is_not_there(tmp_path: Path) -> None:
    assert "104" not in (text := reported(tmp_path, student=9.2))
    assert "is level with the full teacher, within the intervals, (9.2 to 10), from the untrained student (30)" in text
    clear = reported(tmp_path, student=7.5)
    assert "passes the full teacher (7.5 to 10), from the untrained student (30)" in clear
    worse = reported(tmp_path, student=35.0)
    assert "ends farther from the reference than the untrained student (35, from 30)" in worse and "-25%" not in worse
    arms = RESULT["arms"] | {"teacher_few": arm(8.0)}
    level = "has no gap to close from the untrained student (8), which is no farther from the reference than the full"
    assert f"{level} teacher (10)" in reported(tmp_path, arms=arms)


def test_what_the_teacher_is_worth(tmp_path: Path) -> None:
    good = reported(tmp_path)
    assert "what real images get: recall 0.62 of 0.91, coverage 0.83 of 0.97, class accuracy 0.90 of 0.94." in good
    assert "poor" not in good
    poor = reported(tmp_path, class_accuracy=0.49)
    assert "**The teacher is poor: the judge recognises the class of 49% of its images, and of 94% of the real" in poor
    assert "its images come close to 40% of the real ones" in reported(tmp_path, coverage=0.4)
    assert "the class of 49% of its images.**" in reported(tmp_path, class_accuracy=0.49, limits=None)
    unknown = reported(tmp_path, reference="teacher", judge="random-features", limits=None)
    assert "nothing here says how good the teacher is" in unknown and "poor" not in unknown


def test_the_row_of_real_images_says_how_many_it_compares(tmp_path: Path) -> None:
    same = reported(tmp_path)
    assert "| real images |  | 0.40 |" in same and "The last row has 2,000 of the real images" in same
    assert "| 0.940 |" in same and "expect no better" not in same and "too large" not in same
    fewer = reported(tmp_path, limits=RESULT["limits"] | {"count": 500})
    assert "| real images, 500 each |" in fewer and "its Fréchet distance is too large" in fewer
    old = {key: value for key, value in RESULT["limits"].items() if key not in ("count", "class_accuracy")}
    assert "| real images |" not in reported(tmp_path, reference="teacher", limits=old)


def test_report_says_what_the_summary_says(tmp_path: Path) -> None:
    plots.reward_curve(tmp_path / "reward.png", ROWS)
    text = write_report(tmp_path, RESULT, ROWS).read_text()
    lines = text.splitlines()
    assert "80% of the gap between the untrained student" in text and "60% of the gap" in text
    student = next(line for line in lines if line.startswith("| trained student"))
    assert [cell.strip() for cell in student.strip("|").split("|")] == [
        "trained student",
        "4",
        "14.00 [13.00, 15.00]",
        "12.30 ± 0.40",
        "0.710",
        "0.620",
        "1.010",
        "0.830",
        "0.900",
    ]
    assert "after warm start" not in text
    assert "| total | 42 | 4,000 | 5e+12 |" in lines
    assert "| mse | 0 | -0.08 | -0.03 | 0.03 |" in lines
    assert "| frechet, over the warm start | -3.61 | [-4.6, -2.65] |" in lines
    assert (
        "| rollout-0 | 87% | 64 |" in lines
        and "- lost on the way: 1 rollout; started again, and no result has changed" in lines
    )
    assert "- 80 rounds; policy version 120" in lines
    assert "- the teacher's best named schedule at the same NFE: euler on karras" in lines
    assert "An image takes one worker 6.1 ms with the student, 31.2 ms with the full-step teacher." in lines
    assert "(reward.png)" in text and "(samples.png)" not in text  # only pictures that are there
    for head, rule in pairwise(lines):
        if rule.startswith("| ---"):
            assert head.count("|") == rule.count("|")


def test_report_without_the_optional_parts(tmp_path: Path) -> None:
    bare = {k: v for k, v in RESULT.items() if k not in ("limits", "notes", "mlflow")}
    bare["arms"] = {k: v for k, v in RESULT["arms"].items() if k != "teacher_best"}
    text = write_report(tmp_path, bare, []).read_text()
    assert "real images would get" not in text and "MLflow" not in text and "| worker |" not in text


def test_report_refuses_a_wrong_summary(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="judge"):
        write_report(tmp_path, {k: v for k, v in RESULT.items() if k != "judge"}, [])
    assert not (tmp_path / "report.md").exists()


def ink(path: Path) -> float:
    """Share of pixels that are not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


@pytest.mark.slow
def test_pictures_are_drawn_and_leave_no_trace(tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    process = VariancePreserving(torch.linspace(0.999, 0.01, 1000))
    own, others = schedules.build(process, 4, "uniform_trailing"), [schedules.build(process, 4, "karras")]
    plots.reward_curve(tmp_path / "reward.png", ROWS)
    plots.schedule(tmp_path / "schedule.png", own, others)
    assert ink(tmp_path / "reward.png") > 0.02 and ink(tmp_path / "schedule.png") > 0.02
    plots.schedule(tmp_path / "alone.png", own)
    assert ink(tmp_path / "alone.png") < ink(tmp_path / "schedule.png")
    assert dict(mpl.rcParams) == settings


def figure_of(rows: list[dict[str, Any]], best: float | None, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: figures.append(figure))
    plots.reward_curve("", rows, best)
    return figures[0]


def test_neither_spikes_nor_the_start_squash_the_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = copy.deepcopy(ROWS)
    rows[60]["reward/mean"] = -50.0
    figure = figure_of(rows, 0.0, monkeypatch)
    (axes,) = figure.axes
    raw, smooth = axes.lines[:2]
    assert axes.get_yscale() == "log" and raw.get_ydata().max() == 50 and smooth.get_ydata().max() < 0.2
    assert not axes.texts  # phases are named in the legend, where short ones cannot cover each other
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "training, with exploration, running median",
        "validation, without exploration",
        "warm start",
        "policy gradient",
    ]
    (axes,) = figure_of(rows, -1.0, monkeypatch).axes  # a reward that passes the teacher's has no gap to plot
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "linear" and -0.5 < low < -0.2 and 0.05 > high > -0.05


def test_side_by_side_shows_every_image_in_its_place(tmp_path: Path) -> None:
    """Flat images of known grey levels are found again, left to right and top to bottom."""
    levels = np.array([[0.0, 0.2, 0.4], [0.6, 0.1, 0.3]])
    flat = np.broadcast_to(levels[:, :, None, None, None], (2, 3, 1, 28, 28))
    plots.side_by_side(tmp_path / "samples.png", [("teacher", torch.tensor(flat[0])), ("student", flat[1])])
    grey = np.asarray(Image.open(tmp_path / "samples.png").convert("L"), np.float64) / 255
    for row, expected in enumerate(levels):
        line = grey[len(grey) // 4 + row * len(grey) // 2, grey.shape[1] // 2 :]  # labels lie in the left half
        near = [int(np.argmin(np.abs(expected - v))) for v in line if np.abs(expected - v).min() < 0.01]
        assert near == sorted(near) and np.bincount(near, minlength=3).min() > 20

    colour = noise.uniform(3 * 8 * 8, Stream.RESAMPLE, seed=0, round=51).reshape(1, 3, 8, 8)
    plots.side_by_side(tmp_path / "colour.png", [("a", colour), ("b", colour)])
    shown = np.asarray(Image.open(tmp_path / "colour.png").convert("RGB")).astype(int)
    assert (shown.max(2) - shown.min(2)).max() > 100


def test_plots_refuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold none of reward/mean"):
        plots.reward_curve(tmp_path / "x.png", [{"round": 0, "phase": "policy"}])
    with pytest.raises(ValueError, match="expected one shape"):
        plots.side_by_side(tmp_path / "x.png", [("a", torch.zeros(2, 1, 4, 4)), ("b", torch.zeros(3, 1, 4, 4))])


def test_rewards_are_told_from_distances_in_the_tables(tmp_path: Path) -> None:
    tree = copy.deepcopy(RESULT)
    term = next(iter(tree["calibration"]))
    tree["arms"]["student"]["paired"][term] = -0.0123
    change = {"change": 0.01, "low": 0.005, "high": 0.02}
    text = reported(tmp_path, arms=tree["arms"], notes={"student_gain": {"over the warm start": {term: change}}})
    assert f"| reward: {term} |" in text and f"| reward: {term}, over the warm start | 0.01 |" in text
    assert f"| pixel_mse | reward: {term} |" in text
