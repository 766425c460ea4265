"""`redif check-family` accepts the families of this package and refuses families that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline
from tiny_flux import write_chroma, write_flux, write_kontext
from tiny_flux_2 import write_flux_2_klein
from tiny_krea_2 import write_krea_2
from tiny_lumina_2 import write_lumina_2
from tiny_models import write_unet
from tiny_pipelines import write_sd, write_sd3, write_sdxl
from tiny_pixart import write_pixart
from tiny_qwen_image import write_qwen_image
from tiny_sana import write_sana
from tiny_z_image import write_z_image
from typer.testing import CliRunner

from redif_ray.cli import app
from redif_ray.job.check_family import CHECKS, Finding, check_family

pytestmark = pytest.mark.slow
RIGHT: dict[str, tuple[Callable[[Path], Path], tuple[int, int] | None]] = {
    "unet": (write_unet, None),
    "sd": (write_sd, None),
    "sdxl": (write_sdxl, None),
    "sd3": (write_sd3, None),
    "sana": (write_sana, None),
    "pixart": (write_pixart, None),
    "lumina 2": (write_lumina_2, None),
    "flux": (write_flux, (32, 48)),
    "flux kontext": (write_kontext, (32, 48)),
    "chroma": (write_chroma, (32, 48)),
    "flux 2 klein": (write_flux_2_klein, (32, 48)),
    "qwen image": (write_qwen_image, (32, 48)),
    "z image": (write_z_image, (32, 32)),
    "krea 2": (write_krea_2, (32, 48)),
}
NOT_MADE = {"the network has no guidance", "the network is unconditional"}  # of these families
HEAD = """
from dataclasses import replace
import torch
from redif_ray.diffusion.levels import FlowMatching
from redif_ray.models.stable_diffusion_3 import StableDiffusion3


class Wrong(StableDiffusion3):
"""
WRONG = {  # what is wrong: the body of the class, and the check that finds it
    "the sign of the output": (
        "    def output(self, x, t, encoded):\n        return -super().output(x, t, encoded)\n",
        "is the one that diffusers' pipeline makes at the same levels",
    ),
    "time that runs the other way": (
        "    def output(self, x, t, encoded):\n        return super().output(x, 1000 - t, encoded)\n",
        "is the one that diffusers' pipeline makes at the same levels",
    ),
    "a time scale of 1": (
        "    def output(self, x, t, encoded):\n        return super().output(x, t / 1000, encoded)\n",
        "is the one that diffusers' pipeline makes at the same levels",
    ),
    "latents whose height and width are exchanged": (
        "    def output(self, x, t, encoded):\n        return super().output(x.mT, t, encoded).mT\n",
        "is the one that diffusers' pipeline makes at the same levels",
    ),
    "the statistics of the VAE": (
        "    def to_vae(self, latents):\n        return latents / self.part('vae').config.scaling_factor\n",
        "is the one that diffusers' pipeline makes at the same levels",
    ),
    "the kind of guidance": (
        "    def guided(self, cond, uncond, w):\n        return cond + w * (cond - uncond)\n",
        "The guided image is the one",
    ),
    "no caption": (
        "    def encode_prompt(self, caption):\n        return super().encode_prompt(caption or 'nothing')\n",
        "The guided image is the one",
    ),
    "the shift of the levels": (
        "    @classmethod\n    def load(cls, folder, dtype):\n"
        "        return replace(super().load(folder, dtype), process=FlowMatching(shift=1.0))\n",
        "are the pipeline's own where a user names none",
    ),
    "another time scale in 16 bits": (
        "    def output(self, x, t, encoded):\n"
        "        return super().output(x, t / (1 + 7 * (self.dtype == torch.bfloat16)), encoded)\n",
        "In bfloat16 the prediction is the same up to rounding",
    ),
    "captions that see each other": (
        "    def encode(self, conditions):\n        rows = super().encode(conditions)\n"
        "        return {k: v - v.mean(0, keepdim=True) / 2 for k, v in rows.items()}\n",
        "does not depend on the other rows of its call",
    ),
    "captions that the network does not get": (
        "    def output(self, x, t, encoded):\n"
        "        return super().output(x, t, {k: torch.zeros_like(v) for k, v in encoded.items()})\n",
        "The prediction depends on the condition",
    ),
    "encodings longer than counted": (
        "    def encode_prompt(self, caption):\n        found = super().encode_prompt(caption)\n"
        "        states = found['encoder_hidden_states']\n"
        "        return found | {'encoder_hidden_states': states[:, :5] if self.device.type == 'meta' else states}\n",
        "shapes of weights and encodings are the real ones",
    ),
    "blocks of another network": (
        "    def blocks(self):\n        return [torch.nn.Linear(2, 2)]\n",
        "The blocks of a sharded network",
    ),
    "a gradient that is cut": (
        "    def output(self, x, t, encoded):\n        return super().output(x, t, encoded).detach()\n",
        "its gradient reaches the weights",
    ),
}


@pytest.mark.parametrize("name", mostly_long(RIGHT, lambda name: name == "sd3"))
def test_a_right_family_passes_every_check(name: str, tmp_path: Path) -> None:
    write, size = RIGHT[name]
    findings = list(check_family(str(write(tmp_path / name)), size=size))
    assert_right(findings)
    assert len(findings) == len(CHECKS)


def assert_right(findings: list[Finding]) -> None:
    """Assert that all checks were made and passed, but for those that such a model cannot have."""
    assert [f.text for f in findings if f.passed is False] == []
    assert {f.text for f in findings if f.passed is None} <= NOT_MADE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("wrong") / "sd3")


def own(body: str, path: Path) -> str:
    path.write_text(f"{HEAD}{body}\n\nload = Wrong.load\n")
    return f"{path}:load"


@pytest.mark.parametrize("what", mostly_long(WRONG, lambda what: "guidance" in what or "shift" in what))
def test_a_wrong_family_is_refused_by_the_check_that_names_it(what: str, folder: Path, tmp_path: Path) -> None:
    body, check = WRONG[what]
    failed = [f for f in check_family(str(folder), own(body, tmp_path / "wrong.py")) if f.passed is False]
    assert any(check in f.name for f in failed), failed


def test_an_editing_family_that_does_not_see_its_picture_is_refused(tmp_path: Path) -> None:
    family = tmp_path / "blind.py"
    family.write_text(
        "import torch\nfrom redif_ray.models.flux_kontext import FluxKontext\n\n\nclass Blind(FluxKontext):\n"
        "    def output(self, x, t, encoded):\n"
        "        return super().output(x, t, encoded | {'picture': torch.zeros_like(encoded['picture'])})\n\n\n"
        "load = Blind.load\n"
    )
    folder = write_kontext(tmp_path / "kontext")
    failed = [f.name for f in check_family(str(folder), f"{family}:load", size=(32, 48)) if f.passed is False]
    assert any("pictures of two conditions alone" in name for name in failed), failed


def test_a_folder_of_16_bits_is_checked_in_float32(tmp_path: Path) -> None:
    folder = write_sdxl(tmp_path / "half", dtype=torch.float16)
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    findings = list(check_family(str(tmp_path / "variant")))
    assert_right(findings)


def test_the_same_family_as_a_users_own_passes(folder: Path, tmp_path: Path) -> None:
    findings = list(check_family(str(folder), own("    pass\n", tmp_path / "right.py")))
    assert_right(findings)


def test_the_command_prints_each_check_and_ends_with_an_error(folder: Path, tmp_path: Path) -> None:
    wrong = own(WRONG["the kind of guidance"][0], tmp_path / "wrong.py")
    result = CliRunner().invoke(app, ["check-family", str(folder), "--family", wrong])
    assert result.exit_code != 0 and "1 checks failed" in str(result.exception)
    marks = [line.split()[0] for line in result.output.splitlines() if line.startswith(("ok ", "wrong "))]
    assert len(marks) == len(CHECKS) and marks.count("wrong") == 1


def test_what_cannot_be_compared_is_not_called_right() -> None:
    result = CliRunner().invoke(app, ["check-family", "fashion-mnist"])
    lines = result.output.splitlines()
    assert result.exit_code == 0 and sum(line.startswith("not made") for line in lines) == 3
    assert lines[-1] == f"{len(CHECKS) - 3} checks passed, 3 could not be made"
