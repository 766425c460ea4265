"""`report.md`: the summary of a run as tables, with its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redif_ray.evaluation.judge_source import RANDOM_FEATURES
from redif_ray.evaluation.losses import losses
from redif_ray.evaluation.summary import Arm, Summary
from redif_ray.files import atomic_file
from redif_ray.learning.unlearned import unlearned

ARMS = {
    "teacher_full": "teacher, full steps",
    "teacher_best": "teacher, best named",
    "teacher_few": "untrained student",
    "warm_start": "after warm start",
    "student": "trained student",
}
GAPS = {"teacher_few": "the untrained student", "teacher_best": "the teacher's best named schedule at the same NFE"}
POOR = {"class_accuracy": 0.8, "coverage": 0.5}  # shares of what real images get, below which a teacher is called poor
FITS = {
    "class_accuracy": "class accuracy ↑",
    "caption_cosine": "caption cosine ↑",
}  # how well an image fits its condition
PICTURES = {
    "samples.png": "Images of the same noises.",
    "reward.png": "Reward by round.",
    "schedule.png": "The levels at which the student calls the network.",
}


def write_report(folder: str | Path, summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Path:
    """Write `report.md` into `folder` and return its path.

    summary: the fields of `evaluation.summary.Summary`. Raises pydantic's ValidationError if they do not fit it.
    metrics: the rows of metrics.jsonl.
    The report shows those of `PICTURES` that lie in `folder`.
    """
    folder = Path(folder)
    checked = Summary.model_validate(dict(summary))
    parts = [
        f"# {checked.name}: {checked.student_steps} steps",
        _headline(checked),
        _teacher(checked),
        "## Arms",
        _arms(checked),
        _fine_print(checked),
        _diversity(checked),
        *(f"![{text}]({name})\n\n{text}" for name, text in PICTURES.items() if (folder / name).is_file()),
        "## Pairs",
        _pairs(checked),
        "## Reward calibration",
        _calibration(checked),
        "## What the student gains",
        _gains(checked),
        "## Compute",
        _compute(checked),
        _busy(checked),
        "## Run",
        _run(checked, metrics),
    ]
    path = folder / "report.md"
    with atomic_file(path) as partial:
        partial.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def short_report(summary: Summary) -> str:
    """Return the headline, a word on the teacher and the table of the arms, in Markdown."""
    return "\n\n".join(part for part in (_headline(summary), _teacher(summary), _arms(summary)) if part)


def gap_closed(summary: Summary, start: str = "teacher_few") -> float | None:
    """Return the share of the Fréchet gap between arm `start` and the full teacher that the student closes.

    Return None if the arm was not measured or is no farther from the reference than the full teacher.
    """
    arms = summary.arms
    first: Arm | None = getattr(arms, start)
    if first is None or first.frechet <= arms.teacher_full.frechet:
        return None
    return (first.frechet - arms.student.frechet) / (first.frechet - arms.teacher_full.frechet)


def claims(summary: Summary) -> list[str]:
    """Return what the Fréchet distances say of the student, one clause for each of `GAPS` that was measured."""
    said, arms = [], summary.arms
    full, student = arms.teacher_full.frechet, arms.student.frechet
    for start, text in GAPS.items():
        share, first = gap_closed(summary, start), getattr(arms, start)
        if first is None:
            continue
        if share is None:
            beside = f"which is no farther from the reference than the full teacher ({full:.4g})"
            said.append(f"has no gap to close from {text} ({first.frechet:.4g}), {beside}")
        elif share < 0:
            said.append(f"ends farther from the reference than {text} ({student:.4g}, from {first.frechet:.4g})")
        elif share > 1:
            clear = arms.student.frechet_ci[1] < arms.teacher_full.frechet_ci[0]
            found = "passes the full teacher" if clear else "is level with the full teacher, within the intervals,"
            said.append(f"{found} ({student:.4g} to {full:.4g}), from {text} ({first.frechet:.4g})")
        else:
            said.append(f"closes {share:.0%} of the gap between {text} and the full teacher")
    return said


def _headline(summary: Summary) -> str:
    return f"In Fréchet distance the student {', and '.join(claims(summary))}, on seed {summary.seed} alone."


def poor_teacher(summary: Summary) -> str:
    """Return a sentence that says how poor the teacher is beside real images, or no text where it is not.

    What real images get is taken from the judge's own, where it has any, and is 1 for an accuracy that is not known.
    """
    full, real = summary.arms.teacher_full, summary.limits
    accuracy, best = full.class_accuracy, real.class_accuracy if real else None
    if accuracy is not None and accuracy < POOR["class_accuracy"] * (1 if best is None else best):
        beside = "" if best is None else f", and of {best:.0%} of the real images"
        return f"The teacher is poor: the judge recognises the class of {accuracy:.0%} of its images{beside}."
    if real is not None and full.coverage < POOR["coverage"] * real.coverage:
        return (
            f"The teacher is poor: its images come close to {full.coverage:.0%} of the real ones, where other real "
            f"images come close to {real.coverage:.0%}."
        )
    return ""


def _teacher(summary: Summary) -> str:
    """Return what the teacher itself is worth, since a student follows a bad one just as faithfully."""
    follows = "A student follows its teacher in this too."
    if (poor := poor_teacher(summary)) != "":
        return f"**{poor}** {follows} A better teacher comes first."
    if _against_teacher(summary):
        return (
            "The judge compares with the teacher's own images, so nothing here says how good the teacher is. The row "
            "of the full-step teacher is what a student gets that cannot be told from it."
        )
    full, real = summary.arms.teacher_full, summary.limits
    if real is None:
        return ""
    parts = [f"recall {full.recall:.2f} of {real.recall:.2f}", f"coverage {full.coverage:.2f} of {real.coverage:.2f}"]
    if full.class_accuracy is not None and real.class_accuracy is not None:
        parts.append(f"class accuracy {full.class_accuracy:.2f} of {real.class_accuracy:.2f}")
    return f"The teacher itself, beside what real images get: {', '.join(parts)}. {follows}"


def _arms(summary: Summary) -> str:
    rows, fits = [], [name for name in FITS if getattr(summary.arms.student, name) is not None]
    for key, label in ARMS.items():
        arm: Arm | None = getattr(summary.arms, key)
        if arm is not None:
            low, high = arm.frechet_ci
            rows.append(
                [
                    label,
                    str(arm.nfe),
                    f"{arm.frechet:.2f} [{low:.2f}, {high:.2f}]",
                    f"{1e3 * arm.kid:.2f} ± {1e3 * arm.kid_se:.2f}",
                    f"{arm.precision:.3f}",
                    f"{arm.recall:.3f}",
                    f"{arm.density:.3f}",
                    f"{arm.coverage:.3f}",
                    *("-" if (value := getattr(arm, name)) is None else f"{value:.3f}" for name in fits),
                ]
            )
    if (limits := summary.limits) is not None and not _against_teacher(summary):
        sets = [f"{value:.3f}" for value in (limits.precision, limits.recall, limits.density, limits.coverage)]
        label = "real images" if limits.count in (None, summary.held_out) else f"real images, {limits.count:,} each"
        fit = ["" if (value := getattr(limits, name, None)) is None else f"{value:.3f}" for name in fits]
        rows.append([label, "", f"{limits.frechet:.2f}", "", *sets, *fit])
    higher = ["precision ↑", "recall ↑", "density ↑", "coverage ↑", *(FITS[name] for name in fits)]
    return markdown_table(["arm", "NFE", "Fréchet ↓", "1000 KID ↓", *higher], rows)


def _fine_print(summary: Summary) -> str:
    against = "the teacher's images of as many other noises" if _against_teacher(summary) else "its real images"
    captions = summary.arms.student.caption_cosine is not None
    drawn = "resampled by caption with all its noises" if captions else "resampled by noise"
    text = (
        f"{summary.held_out:,} held-out noises an arm, seed {summary.seed}, exploration off. Features of judge "
        f"`{summary.judge}`, which gives no rewards, against {against}; squared Fréchet distance (not FID) "
        f"with its 95 % bootstrap interval at this n, {drawn}; unbiased KID ± its standard error, which assumes "
        "independent noises; precision, recall, density and coverage with k = 5."
    )
    if (limits := summary.limits) is None or _against_teacher(summary):
        return text
    count = summary.held_out if limits.count is None else limits.count
    text += f" The last row has {count:,} of the real images in the place of an arm's, and others as the reference."
    if count < summary.held_out:
        text += " There are no more of them, and fewer images are farther apart: its Fréchet distance is too large."
    return text


def _diversity(summary: Summary) -> str:
    found = summary.diversity
    if found is None:
        return ""
    change = found.student - found.teacher
    return (
        f"Diversity: two images of one condition and different noises are {found.student:.4f} apart with the trained "
        f"student and {found.teacher:.4f} with the teacher, a difference of {change:+.4f} ± {found.change_se:.4f}: "
        f"1 - cosine in `{found.encoder}`, over {found.conditions} conditions of {found.noises} noises each, with the "
        "standard error over conditions."
    )


def _against_teacher(summary: Summary) -> bool:
    """Tell whether the judge's reference are the teacher's images; older summaries do not say so."""
    return summary.reference == "teacher" or summary.judge == RANDOM_FEATURES


def _pairs(summary: Summary) -> str:
    arms = {label: arm for key, label in ARMS.items() if (arm := getattr(summary.arms, key)) is not None}
    names = list(summary.arms.student.paired)
    rows = [[label, *(_number(arm.paired.get(name)) for name in names)] for label, arm in arms.items()]
    table = markdown_table(["arm", *(_term(summary, name) for name in names)], rows)
    return (
        "Means over pairs with the full-step teacher's image of the same noise. Of rewards more is better, also of "
        f"those that are below 0, as minus a distance is.\n\n{table}"
    )


def _term(summary: Summary, name: str) -> str:
    """Return the name of what is measured, with a word before a term of the reward."""
    return f"reward: {name}" if name in summary.calibration else name


def _calibration(summary: Summary) -> str:
    head = ["term", "teacher with itself", "with its other seeds", "untrained student", "to gain"]
    rows = [
        [name, *(_number(value) for value in (c.self, c.other_seed, c.init, c.self - c.init))]
        for name, c in summary.calibration.items()
    ]
    return markdown_table(head, rows)


def _gains(summary: Summary) -> str:
    """Return the paired differences between the student and the arms that it started from, if the run noted them."""
    rows = [
        [f"{_term(summary, name)}, {over}", _number(c["change"]), f"[{_number(c['low'])}, {_number(c['high'])}]"]
        for over, entries in (summary.notes or {}).get("student_gain", {}).items()
        for name, c in entries.items()
    ]
    if not rows:
        return "Not noted."
    said = "Student minus the other arm on the same noises. Less is better of frechet, more of rewards."
    return f"{said}\n\n{markdown_table(['', 'change', '95 % interval'], rows)}"


def _compute(summary: Summary) -> str:
    rows = [[n, f"{s.seconds:,.0f}", f"{s.nfe:,.0f}", f"{s.flops:.3g}"] for n, s in summary.compute.items()]
    total = [sum(getattr(s, key) for s in summary.compute.values()) for key in ("seconds", "nfe", "flops")]
    rows.append(["total", f"{total[0]:,.0f}", f"{total[1]:,.0f}", f"{total[2]:.3g}"])
    table = markdown_table(["component", "worker seconds", "network calls", "FLOPs"], rows)
    timed = (summary.notes or {}).get("seconds_per_image")
    if timed is None:
        return table
    return (
        f"{table}\n\nAn image takes one worker {_ms(timed['student'])} with the student, {_ms(timed['teacher'])} "
        "with the full-step teacher."
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _busy(summary: Summary) -> str:
    workers = (summary.notes or {}).get("workers", {})
    rows = [[name, f"{work['busy']:.0%}", str(work["units"])] for name, work in workers.items()]
    return markdown_table(["worker", "busy", "units"], rows) if rows else ""


def _run(summary: Summary, metrics: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"- {sum(row['round'] >= 0 for row in metrics)} rounds; policy version {summary.policy_version}",
        f"- weights sha256 `{summary.weights_sha256}`",
    ]
    if idle := sum(unlearned(row) for row in metrics):
        lines.append(f"- {idle} of these rounds had nothing to learn from: the reward told no images of a group apart")
    if summary.mlflow and summary.mlflow.run_id:
        lines.append(f"- MLflow run `{summary.mlflow.run_id}` at `{summary.mlflow.tracking_uri}`")
    notes = summary.notes or {}
    if (best := notes.get("teacher_best")) is not None:
        lines.append(f"- the teacher's best named schedule at the same NFE: {best}")
    if (lost := notes.get("lost")) is not None:
        lines.append(f"- lost on the way: {losses(lost)}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
