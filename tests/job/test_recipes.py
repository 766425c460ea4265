"""Every shipped recipe, on a small pipeline of its family: loaded, checked, counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import mostly_long
from tiny_dit import write_latent_dit
from tiny_edits import write_edits
from tiny_encoders import write_clip, write_dino
from tiny_flux import write_flux, write_kontext
from tiny_flux_2 import write_flux_2_klein
from tiny_krea_2 import write_krea_2
from tiny_loras import write_lora
from tiny_pipelines import write_edm, write_sd, write_sd3, write_sdxl
from tiny_qwen_image import write_qwen_image
from tiny_sana import write_sana
from tiny_z_image import write_z_image

from redif_ray.config import load
from redif_ray.job.preflight import preflight
from redif_ray.planning.memory import footprints

EDM = [f"edm_imagenet64_{n}step" for n in (4, 8, 16)]  # which differ in numbers alone
CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES: dict[str, Callable[[Path], Path]] = {
    "sd15_coco_5step": write_sd,
    "sdxl_4step_lora": write_sdxl,
    "sdxl_4step_cluster": write_sdxl,
    "sdxl_style_4step_lora": write_sdxl,
    "sd35_4step_lora": write_sd3,
    "sd35_text_4step": write_sd3,
    "z_image_4step_lora": write_z_image,
    "flux1_dev_4step_lora": write_flux,
    "flux1_kontext_4step_lora": write_kontext,
    "flux2_klein_4step_lora": write_flux_2_klein,
    "qwen_image_4step_lora": write_qwen_image,
    "krea_2_4step_lora": write_krea_2,
    "sana_4step_lora": write_sana,
    "dit_xl_4step": write_latent_dit,
    **dict.fromkeys(EDM, lambda folder: write_edm(folder, channels=3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_long(RECIPES, lambda name: name not in ("sdxl_4step_lora", *EDM[1:])))
def test_a_recipe_suits_its_family(name: str, tmp_path: Path) -> None:
    """On a machine without GPUs and without the encoders' weights; all else as it stands."""
    lines = (json.dumps({"caption": f"a picture of {i}", "text": str(i)}) for i in range(60))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    clip, teacher = write_clip(tmp_path / "clip"), RECIPES[name](tmp_path / "teacher")
    source = [] if name.startswith(("edm", "dit")) else [f"conditions.source={tmp_path / 'captions.jsonl'}"]
    if "kontext" in name:
        source = [f"conditions.source={write_edits(tmp_path / 'edits')}"]
    if load(name).teacher.size is not None:
        source += ["teacher.height=32", "teacher.width=32"]
    if "style" in name:
        source.append(f"teacher.lora={write_lora(teacher, 'sdxl', tmp_path / 'style')}")
    config = load(
        name,
        [
            f"teacher.model={teacher}",
            f"reward.terms.clip.options.model={clip}",
            f"evaluation.judge={clip}",
            *([f"evaluation.diversity.encoder={write_dino(tmp_path / 'dino')}"] if "flux1" in name else []),
            *source,
        ],
    )
    own = {label: term for label, term in config.reward.terms.items() if label == "clip"}
    without = config.conditions.model_copy(update={"metadata": ()})  # only the term that is left out here reads it
    here = config.model_copy(update={"reward": config.reward.model_copy(update={"terms": own}), "conditions": without})
    drawn = preflight(here)
    assert len(drawn.training) > 1 and footprints(here).trained > 0
    assert {"clip", "dino"} <= set(config.reward.terms)
    assert config.ray.address == "auto" or config.learner.gpus + config.rollout.gpus <= 1
    assert config.student.steps == int(name.partition("_")[2].split("step")[0].split("_")[-1])


def test_no_recipe_is_left_out() -> None:
    own = {
        "fashion_mnist",
        "fashion_mnist_2step",
        "fashion_mnist_8step",
        "fashion_mnist_paper",
        "fashion_mnist_searched",
        "fashion_mnist_regression",
        "fashion_mnist_draft",
        "fashion_mnist_output",
        "fashion_mnist_contrast",
        "fashion_mnist_matching",
        "fashion_mnist_consistency",
        "fashion_mnist_progressive",
        "fashion_mnist_search",
        "fashion_mnist_sweep",
        "fashion_mnist_options",
        "teacher_fashion_mnist",
        "emoji_4step",
        "smoke",
    }
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - own == set(RECIPES)


@pytest.mark.parametrize("name", [*RECIPES, "fashion_mnist", "fashion_mnist_paper", "fashion_mnist_searched"])
def test_a_header_says_what_to_expect(name: str) -> None:
    header = [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3
    assert any(word in " ".join(header) for word in ("Expected", "Memory", "Fréchet"))
