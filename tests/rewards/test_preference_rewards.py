"""HPSv2 and ImageReward: the scores of the original packages on small networks, which tests/golden keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import original_rewards as original
from safetensors.torch import load_file, save_file
from tiny_encoders import write_clip
from torch import Tensor
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from redif_ray.config import Config
from redif_ray.planning.weight_bytes import encoder_bytes
from redif_ray.rewards.base import RewardError, RewardInputs
from redif_ray.rewards.open_clip import names_of_transformers

KEPT = json.loads(original.FILE.read_text())
CASES = [(name, column) for name in KEPT for column in range(3)]
ROUNDED = ("image_reward", 1)  # PIL rounds the pixels of an image that it resizes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP's configuration and tokeniser, without weights."""
    folder = tmp_path_factory.mktemp("base")
    words = [*original.CHARACTERS, *(f"{c}</w>" for c in original.CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    tower: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    CLIPConfig(
        projection_dim=24,
        vision_config={**tower, "hidden_size": 160, "intermediate_size": 640, "image_size": 28, "patch_size": 14},
        text_config={
            **tower,
            "hidden_size": 128,
            "intermediate_size": 512,
            "vocab_size": end + 1,
            "max_position_embeddings": original.HPS_TOKENS,
            "bos_token_id": end - 1,
            "eos_token_id": end,
        },
    ).save_pretrained(folder)
    CLIPTokenizer(vocab={t: i for i, t in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    BertTokenizer(vocab={word: i for i, word in enumerate(original.WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, base: Path, words: Path) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("weights")
    for name, kept in KEPT.items():
        save_file(original.weights(kept["shapes"]), folder / f"{name}.safetensors")
    return {
        "hps": {"model": str(folder / "hps.safetensors"), "base": str(base)},
        "image_reward": {"model": str(folder / "image_reward.safetensors"), "base": str(words)},
    }


@pytest.fixture
def score(build, options) -> Callable[..., Tensor]:
    """Score images of one size by a term, with further options."""

    def scored(name: str, images: Tensor, captions: Sequence[str] = original.CAPTIONS, **more: Any) -> Tensor:
        rewards = build(terms={name: options[name] | more}, shape=tuple(images.shape[1:]), captions=True)
        return rewards(RewardInputs(images, images, captions))[name]

    return scored


def rows(name: str, column: int) -> Tensor:
    """Return the kept image of a column, one row for each kept caption."""
    return original.images(original.SIZES[name])[column].expand(len(original.CAPTIONS), -1, -1, -1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), CASES)
def test_the_score_is_that_of_the_original_package(name, column, score):
    expected = torch.tensor([each[column] for each in KEPT[name]["scores"]])
    close = 5e-3 if (name, column) == ROUNDED else 2e-5 if name == "image_reward" else 1e-6
    torch.testing.assert_close(score(name, rows(name, column)), expected, rtol=0, atol=close)
    assert expected.unique().numel() == 3 and expected[:3].diff().abs().min() > 2 * close


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KEPT))
def test_how_many_images_a_forward_changes_nothing(name, score):
    images = torch.cat([rows(name, 0)[:2], 1 - rows(name, 0)[:2]])
    whole = score(name, images)
    torch.testing.assert_close(score(name, images, batch=3), whole, rtol=1e-5, atol=1e-5)
    assert (whole[:2] - whole[2:]).abs().min() > 1e-3


@pytest.mark.parametrize("name", list(KEPT))
def test_the_gradient_is_that_of_finite_differences(name, build, options):
    rewards = build(terms={name: options[name]}, shape=(3, 9, 7), captions=True)
    for network in rewards.networks():
        network.double()
    assert len(rewards.networks()) == 2  # so both move to a GPU, and leave it, with the worker
    rewards.require_differentiable("this test")
    images = (0.3 + 0.4 * original.images([(9, 7)])[0].double()).unsqueeze(0).requires_grad_()
    given = RewardInputs(images, images.detach(), ["a red cat"])
    assert torch.autograd.gradcheck(lambda x: rewards(replace(given, student=x))[name], images, fast_mode=True)


@pytest.mark.slow
def test_grey_images_are_repeated(score):
    for name in KEPT:
        grey = rows(name, 1)[:, :1]
        torch.testing.assert_close(score(name, grey), score(name, grey.expand(-1, 3, -1, -1)))


@pytest.mark.slow
def test_hps_in_the_layouts_that_there_are(score, options, base, tmp_path):
    """Files have the names of open_clip, alone or below `model`, and folders have those of transformers."""
    given, expected = load_file(options["hps"]["model"]), score("hps", rows("hps", 1))
    save_file({f"model.{name}": weight for name, weight in given.items()}, tmp_path / "model.safetensors")
    assert torch.equal(score("hps", rows("hps", 1), model=str(tmp_path)), expected)
    whole = CLIPModel(CLIPConfig.from_pretrained(base))
    wrong = whole.load_state_dict(names_of_transformers(given), strict=True)
    assert not wrong.missing_keys
    whole.save_pretrained(tmp_path / "transformers")
    torch.testing.assert_close(score("hps", rows("hps", 1), model=str(tmp_path / "transformers")), expected)


def test_image_reward_has_more_in_its_file_than_is_read(score, options, tmp_path):
    """The published one has the numbers of positions, and two projections of BLIP's that the score does not use."""
    given, expected = load_file(options["image_reward"]["model"]), score("image_reward", rows("image_reward", 0))
    unread = ("blip.vision_proj", "blip.text_proj")
    kept = {name: weight for name, weight in given.items() if not name.startswith(unread)}
    assert len(kept) == len(given) - 4
    kept["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(kept, tmp_path / "model.safetensors")
    assert torch.equal(score("image_reward", rows("image_reward", 0), model=str(tmp_path)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("hps", "visual.ln_post.bias", r"model='.*' is no fine-tune of base: .*not those of this CLIPVision.*post_lay"),
        ("hps", "ln_final.bias", r"not those of this CLIPText.*final_layer_norm"),
        (
            "image_reward",
            "blip.visual_encoder.pos_embed",
            r"model='.*' has no weight 'pos_embed'; expected those of Im",
        ),
        (
            "image_reward",
            "blip.text_encoder.encoder.layer.1.output.dense.bias",
            r"not those of this BlipText.*layer\.1",
        ),
        ("image_reward", "mlp.layers.2.weight", r"expected weight \[out, in\] and bias \[out\]"),
    ],
)
def test_a_file_that_lacks_a_weight(name, lost, message, score, options, tmp_path):
    given = load_file(options[name]["model"])
    save_file({each: weight for each, weight in given.items() if each != lost}, tmp_path / "part.safetensors")
    with pytest.raises(RewardError, match=rf"reward\.terms\.{name}: .*{message}"):
        score(name, rows(name, 0), model=str(tmp_path / "part.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KEPT))
def test_the_published_checkpoint_is_converted_by_the_command_that_is_told(name, score, options, tmp_path, monkeypatch):
    """HPSv2's is nested below `state_dict`; neither is read here."""
    given = load_file(options[name]["model"])
    file = tmp_path / "FILE.pth"
    torch.save({"state_dict": given, "epoch": 1} if name == "hps" else given, file)
    with pytest.raises(RewardError, match=r"expected a .safetensors file, since others may run code") as error:
        score(name, rows(name, 0), model=str(file))
    command = str(error.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    expected = score(name, rows(name, 0))
    assert torch.equal(score(name, rows(name, 0), model=str(tmp_path / "FILE.safetensors")), expected)


def test_what_is_beside_the_weights_and_does_not_fit(score, base, words, tmp_path):
    with pytest.raises(RewardError, match=r"reward\.terms\.image_reward: base='.*' knows .*the network 17, 2 of"):
        score("image_reward", rows("image_reward", 0), base=str(base))
    with pytest.raises(RewardError, match=r"base='/no/such': no such folder"):
        score("image_reward", rows("image_reward", 0), base="/no/such")
    with pytest.raises(RewardError, match=r"model='/no/such.safetensors': no such file"):
        score("hps", rows("hps", 0), model="/no/such.safetensors")
    with pytest.raises(RewardError, match=rf"base='{words}' cannot be loaded \(config.json.*give as `base`"):
        score("hps", rows("hps", 0), base=str(words))


def test_doctor_counts_the_weights_that_are_read(options, clip_base, tmp_path):
    """Those of the file or folder `model`, and none of the model `base`, which has weights of its own here."""
    config = Config.model_validate(
        {"reward": {"terms": {name: {"options": options[name] | {"base": str(clip_base)}} for name in KEPT}}}
    )
    numbers = {name: sum(math.prod(shape) for shape in kept["shapes"].values()) for name, kept in KEPT.items()}
    files = {name: Path(options[name]["model"]).stat().st_size for name in KEPT}
    assert files == pytest.approx({name: 4 * count for name, count in numbers.items()}, rel=0.02)
    assert encoder_bytes(config) == sum(files.values())
    (tmp_path / "model.safetensors").symlink_to(options["hps"]["model"])
    folder = Config.model_validate({"reward": {"terms": {"hps": {"options": {"model": str(tmp_path)}}}}})
    assert encoder_bytes(folder) == files["hps"]


def test_weights_in_16_bits_are_made_float32(build, options, tmp_path):
    for name in KEPT:
        halved = {each: weight.half() for each, weight in load_file(options[name]["model"]).items()}
        save_file(halved, tmp_path / f"{name}.safetensors")
        given = options[name] | {"model": str(tmp_path / f"{name}.safetensors")}
        rewards = build(terms={name: given}, shape=(3, *original.SIZES[name][0]), captions=True)
        dtypes = {weight.dtype for network in rewards.networks() for weight in network.parameters()}
        found = rewards(RewardInputs(rows(name, 0), rows(name, 0), original.CAPTIONS))[name]
        expected = torch.tensor([each[0] for each in KEPT[name]["scores"]])
        assert dtypes == {torch.float32}
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
