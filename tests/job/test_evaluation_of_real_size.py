"""The memory that an evaluation takes in the driver does not grow with the number and the size of the images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("evaluation_probe.py")
GROWTH_MB = 300  # for any number of images of 1,024 pixels in each of five arms


@pytest.mark.long
def test_the_driver_holds_no_images(tmp_path: Path) -> None:
    """Twice as many images, 1.3 GB more an arm, take no more."""
    grown = {count: _grown(count, tmp_path) for count in (100, 200)}
    print(f"the driver grew by {grown} MB")
    assert grown[100] <= GROWTH_MB and grown[200] <= grown[100] + 30


def _grown(count: int, folder: Path) -> int:
    done = subprocess.run([sys.executable, str(PROBE), str(count), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])
