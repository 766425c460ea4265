"""What a run prints at its end fits a terminal of 80 columns, whole."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from redif_ray.evaluation.table import result_table


def arm(frechet: float, nfe: int) -> dict[str, Any]:
    return {
        "nfe": nfe,
        "frechet": frechet,
        "frechet_ci": [0.97 * frechet, 1.03 * frechet],
        "kid": 0.0807,
        "kid_se": 0.0063,
        "recall": 0.641,
        "paired": {"pixel_mse": 0.01278, "judge_cosine": 0.9},
    }


def test_it_fits_80_columns() -> None:
    full, best, student = arm(111.4, 20), arm(0.1237, 4), arm(113.4, 4)
    arms = {"teacher_full": full, "teacher_best": best, "warm_start": None, "student": student}
    seconds = {"teacher": 0.1244, "student": 0.0049}
    summary = {
        "held_out": 2000,
        "size": [1024, 1024],
        "judge": "fashion-mnist-b",
        "arms": arms,
        "diversity": {"student": 0.30514, "teacher": 0.41239, "change_se": 0.00822},
        "notes": {"seconds_per_image": seconds},
    }
    console = Console(width=80, file=StringIO())
    console.print(result_table(summary))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert "2000 held-out noises, 1024 x 1024 pixels, judge fashion-mnist-b" in lines
    assert "NFE ms Fréchet 1000 KID recall mse" in lines
    assert "teacher, full steps 20 124.4 111 [108, 115] 80.7 ± 6.3 0.641 0.01278" in lines
    assert "teacher, best named 4 4.9 0.124 [0.12, 0.127] 80.7 ± 6.3 0.641 0.01278" in lines
    told = "Images of one condition are 0.305 apart with the student, 0.412 with the teacher, ± 0.008 between them."
    assert told in " ".join(lines)
    assert not any(line.startswith(("after warm start", "untrained")) or "…" in line for line in lines)
