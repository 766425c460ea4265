"""Terms that look through CLIP and DINO: small ones of transformers' own classes, saved in their real layout."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_encoders import EMBEDDING, TINY, save, write_clip
from tiny_models import normal
from tiny_pipelines import TOKENS, clip_tokenizer
from torch import Tensor
from transformers import (
    AutoModel,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from redif_ray.config import Config
from redif_ray.data.targets import TargetStore
from redif_ray.diffusion.noise import Stream
from redif_ray.planning import factory as pipeline
from redif_ray.rewards.base import RewardError, RewardInputs
from redif_ray.rewards.preparation import CLIP_MEAN, CLIP_STD
from redif_ray.rewards.pretrained import ImageEncoder

SHAPE = (3, 16, 16)
CAPTIONS = ["cat", "a dog", "cat", "a caption of more tokens than are read"]
DINO = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TINY, image_size=16, patch_size=8)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**TINY, image_size=16, patch_size=8, num_register_tokens=3)
    ),
    "dinov3_vit": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**TINY, intermediate_size=32, image_size=16, patch_size=8, num_register_tokens=2)
    ),
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session", params=list(DINO))
def dino_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(DINO[request.param], tmp_path_factory.mktemp(request.param), 0.4)
    BitImageProcessorPil(size={"shortest_edge": 20}, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The layout of LAION's improved aesthetic predictor, narrower."""
    widths, file = [EMBEDDING, 8, 6, 5, 4, 1], tmp_path_factory.mktemp("head") / "head.safetensors"
    layers = {}
    for i, number in enumerate((0, 2, 4, 6, 7)):
        layers[f"layers.{number}.weight"] = normal(widths[i + 1], widths[i], seed=50 + i)
        layers[f"layers.{number}.bias"] = normal(widths[i + 1], seed=60 + i)
    save_file(layers, file)
    return str(file)


def normalised(images: Tensor) -> Tensor:
    """CLIP's mean and std by hand, of images that have the network's size already."""
    return (images - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def cosine(x: Tensor, y: Tensor) -> np.ndarray:
    a, b = x.detach().double().numpy(), y.detach().double().numpy()
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@torch.no_grad()
def clip_embeddings(folder: Path, images: Tensor) -> Tensor:
    network = CLIPModel.from_pretrained(folder)
    return network.visual_projection(network.vision_model(normalised(images)).pooler_output)


@torch.no_grad()
def caption_embeddings(folder: Path, captions: list[str]) -> Tensor:
    """All captions in one padded batch."""
    network, tokenizer = CLIPModel.from_pretrained(folder), clip_tokenizer()
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    assert tokens.input_ids.shape[1] == TOKENS
    return network.text_projection(network.text_model(**tokens).pooler_output)


@pytest.fixture
def inputs(pair) -> RewardInputs:
    """Two groups of two siblings."""
    made = pair(shape=(4, *SHAPE), dtype=torch.float32)
    return RewardInputs(made.student, made.teacher[[0, 0, 1, 1]], CAPTIONS)


@pytest.mark.slow
def test_clip_is_the_cosine_of_transformers_own_image_features(inputs, build, clip_folder):
    rewards = build(terms={"clip": {"model": str(clip_folder)}}, shape=SHAPE)
    expected = cosine(clip_embeddings(clip_folder, inputs.student), clip_embeddings(clip_folder, inputs.teacher))
    np.testing.assert_allclose(rewards(inputs)["clip"], expected, atol=1e-5)
    assert expected.max() < 0.995 and np.ptp(expected) > 0.01
    own = rewards(replace(inputs, student=inputs.teacher))["clip"]
    np.testing.assert_allclose(own, 1, atol=1e-6)


def test_loading_is_quiet(build, clip_folder, capfd):
    build(terms={"text_image": {"model": str(clip_folder)}}, shape=SHAPE, captions=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_text_image_is_the_cosine_with_the_rows_caption(inputs, build, clip_folder):
    rewards = build(terms={"text_image": {"model": str(clip_folder)}}, shape=SHAPE, captions=True)
    captions = caption_embeddings(clip_folder, CAPTIONS)
    expected = cosine(clip_embeddings(clip_folder, inputs.student), captions)
    np.testing.assert_allclose(rewards(inputs)["text_image"], expected, atol=1e-5)
    assert np.ptp(cosine(captions, captions[:1])) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["10GB", "5KB"])
def test_pick_score_is_the_logit_of_the_whole_model(inputs, build, clip_folder, shard, tmp_path):
    """PickScore's program takes logit_scale.exp() * (text_embs @ image_embs.T), as transformers' CLIP does."""
    whole = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        whole.logit_scale.fill_(math.log(37.0))
    shutil.copytree(clip_folder, tmp_path / "pick")
    (tmp_path / "pick" / "model.safetensors").unlink()
    whole.save_pretrained(tmp_path / "pick", max_shard_size=shard)
    rewards = build(terms={"pick_score": {"model": str(tmp_path / "pick")}}, shape=SHAPE, captions=True)
    captions = caption_embeddings(clip_folder, CAPTIONS)
    expected = 37 * cosine(clip_embeddings(clip_folder, inputs.student), captions)
    np.testing.assert_allclose(rewards(inputs)["pick_score"], expected, rtol=1e-4, atol=1e-4)


def test_a_run_takes_captions_where_its_teacher_does(clip_folder):
    config = Config.model_validate({"reward": {"terms": {"text_image": {"options": {"model": str(clip_folder)}}}}})
    model: Any = SimpleNamespace(num_classes=None, image_shape=SHAPE, takes_captions=True)
    assert list(pipeline.rewards(config, model, "cpu").terms) == ["text_image"]
    model.takes_captions = False
    with pytest.raises(RewardError, match="needs captions; this teacher takes none"):
        pipeline.rewards(config, model, "cpu")


def test_a_captions_embedding_depends_on_no_other_and_is_made_once(inputs, build, clip_folder):
    rewards = build(terms={"text_image": {"model": str(clip_folder)}}, shape=SHAPE, captions=True)
    captions, calls = rewards.terms["text_image"]._captions, []
    captions.network.register_forward_hook(lambda *_: calls.append(1))
    together = captions(CAPTIONS)
    assert len(calls) == 3
    assert torch.equal(captions(CAPTIONS[::-1]).flip(0), together) and len(calls) == 3
    fresh = build(terms={"text_image": {"model": str(clip_folder)}}, shape=SHAPE, captions=True)
    alone = [fresh.terms["text_image"]._captions([caption]) for caption in reversed(CAPTIONS)]
    assert torch.equal(torch.cat(alone[::-1]), together)


@pytest.mark.parametrize("pooled", [False, True])
def test_dino_is_the_mean_cosine_of_patches_or_that_of_the_class_token(pooled, inputs, build, dino_folder):
    rewards = build(terms={"dino": {"model": str(dino_folder), "pooled": pooled}}, shape=SHAPE)
    network = AutoModel.from_pretrained(dino_folder)
    with torch.no_grad():  # CLIP's mean and std are what this preprocessor_config.json says
        x, y = (network(normalised(images)).last_hidden_state for images in (inputs.student, inputs.teacher))
    cosines = cosine(x, y)
    assert cosines.shape[1] == 1 + getattr(network.config, "num_register_tokens", 0) + 4
    expected = cosines[:, 0] if pooled else cosines[:, -4:].mean(1)
    np.testing.assert_allclose(rewards(inputs)["dino"], expected, atol=1e-5)
    assert expected.max() < 0.995 and np.ptp(expected) > 0.01


def test_dino_sees_the_border_unless_told_to_crop(inputs, build, dino_folder):
    student = inputs.teacher.clone()
    student[..., 0] = 1 - student[..., 0]
    changed = replace(inputs, student=student)
    whole = build(terms={"dino": {"model": str(dino_folder)}}, shape=SHAPE)(changed)["dino"]
    cropped = build(terms={"dino": {"model": str(dino_folder), "crop": True}}, shape=SHAPE)(changed)["dino"]
    assert (whole < cropped).all() and (whole < 0.999).all()


def test_aesthetic_is_laions_head_on_the_embedding_of_length_one(inputs, build, clip_folder, head_file):
    rewards = build(terms={"aesthetic": {"model": str(clip_folder), "head": head_file}}, shape=SHAPE)
    x = clip_embeddings(clip_folder, inputs.student).double().numpy()
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    for i in range(5):
        widths = [EMBEDDING, 8, 6, 5, 4, 1]
        weight, bias = normal(widths[i + 1], widths[i], seed=50 + i), normal(widths[i + 1], seed=60 + i)
        x = weight.double().numpy() @ x + bias.double().numpy()[:, None]
    np.testing.assert_allclose(rewards(inputs)["aesthetic"], x[0], rtol=1e-4, atol=1e-4)
    assert np.ptp(x) > 0.1


def test_aesthetic_takes_a_single_linear_layer(inputs, build, clip_folder, tmp_path):
    weight, bias = normal(1, EMBEDDING, seed=1), normal(1, seed=2)
    save_file({"weight": weight, "bias": bias}, tmp_path / "linear.safetensors")
    options = {"model": str(clip_folder), "head": str(tmp_path / "linear.safetensors")}
    x = clip_embeddings(clip_folder, inputs.student)
    expected = (x / x.norm(dim=1, keepdim=True)) @ weight[0] + bias
    got = build(terms={"aesthetic": options}, shape=SHAPE)(inputs)["aesthetic"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def every(build, clip_folder, head_file, tmp_path) -> Callable[..., Any]:
    """All terms of this file, whose options may be added to."""
    folder = save(DINO["dinov2_with_registers"], tmp_path / "dino", 0.4)
    BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    terms: dict[str, dict[str, Any]] = {
        "clip": {"model": str(clip_folder)},
        "text_image": {"model": f"{clip_folder}/"},
        "aesthetic": {"model": str(clip_folder), "head": head_file},
        "dino": {"model": str(folder)},
    }

    def make(*names: str, shape: tuple[int, ...] = SHAPE, **options: Any) -> Any:
        return build(terms={n: terms[n] | options for n in names or terms}, shape=shape, captions=True)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "text_image", "aesthetic", "dino"])
def test_gradient_equals_finite_differences(name, pair, every):
    rewards, small = every(name, shape=(3, 6, 5)), pair(shape=(2, 3, 6, 5))
    term = rewards.terms[name]
    encoder = term._encoder if name == "dino" else term._images
    encoder.network.double()
    rewards.require_differentiable("this test")
    assert not any(p.requires_grad for p in encoder.network.parameters())
    student = (0.3 + 0.4 * small.student).requires_grad_()  # the resize clamps nowhere
    given = replace(small, conditions=["cat", "dog"])
    assert torch.autograd.gradcheck(lambda x: rewards(replace(given, student=x))[name], student)


@pytest.mark.slow
def test_terms_that_look_through_one_network_share_it_and_its_features(inputs, every):
    rewards, rows = every(), []
    clips = [rewards.terms[name]._images for name in ("clip", "text_image", "aesthetic")]
    assert clips[0] is clips[1] is clips[2]
    clips[0].network.register_forward_hook(lambda *args: rows.append(len(args[-1][0])))
    first = rewards(inputs)
    assert rows == [4, 2]  # the students, and a teacher's image a group
    rewards(inputs)
    assert rows == [4, 2, 4, 2]  # nothing is left of another call
    moved = rewards(replace(inputs, student=inputs.student.flip(0)))
    torch.testing.assert_close(moved["aesthetic"], first["aesthetic"].flip(0))
    other = every()
    assert other.terms["clip"]._images is not clips[0]  # nothing is shared between runs


def test_the_teacher_is_looked_at_only_where_a_term_asks(inputs, every):
    rewards, rows = every("text_image", "aesthetic"), []
    rewards.terms["aesthetic"]._images.network.register_forward_hook(lambda *args: rows.append(len(args[-1][0])))
    rewards(inputs)
    assert rows == [4]


def test_no_gradient_flows_to_the_teacher(inputs, every):
    given = replace(inputs, paired=inputs.teacher.clone().requires_grad_())
    assert not any(value.requires_grad for value in every("clip", "dino")(given).values())


@pytest.mark.slow
def test_shared_features_carry_every_terms_gradient(inputs, every):
    student = inputs.student.requires_grad_()
    together = torch.autograd.grad(sum(v.sum() for v in every()(inputs).values()), student)[0]
    names = ("clip", "text_image", "aesthetic", "dino")
    alone = [torch.autograd.grad(every(name)(inputs)[name].sum(), student)[0] for name in names]
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().sum() > 0 for gradient in alone)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_how_many_images_a_forward_changes_nothing(batch, inputs, every):
    whole, parts = every(), every(batch=batch)
    rows: list[int] = []
    for encoder in (parts.terms["clip"]._images, parts.terms["dino"]._encoder):
        encoder.network.register_forward_hook(lambda *args: rows.append(len(args[-1][0])))
    for name, values in parts(inputs).items():
        torch.testing.assert_close(values, whole(inputs)[name], rtol=1e-5, atol=1e-5)
    assert max(rows) == batch


@pytest.mark.slow
def test_images_may_be_of_another_precision_than_the_network(inputs, every):
    double = replace(inputs, student=inputs.student.double(), paired=inputs.teacher.double())
    for name, values in every()(double).items():
        assert values.dtype == torch.float64
        torch.testing.assert_close(values.float(), every()(inputs)[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_grey_images_are_repeated(inputs, every):
    grey = RewardInputs(inputs.student[:, :1], inputs.teacher[:, :1], CAPTIONS)
    colour = RewardInputs(*(x.expand(-1, 3, -1, -1) for x in (grey.student, grey.teacher)), CAPTIONS)
    for name, values in every(shape=(1, 16, 16))(grey).items():
        torch.testing.assert_close(values, every()(colour)[name])
    with pytest.raises(RewardError, match=r"reward\.terms\.clip: images are \(2, 16, 16\); the encoder takes 1 or 3"):
        every("clip", shape=(2, 16, 16))


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("config.json", "cannot be loaded \\(config.json; the folder\\)"),
        ("model.safetensors", "CLIPVisionModelWithProjection from safetensors; the folder\\): .*safetensors"),
        ("preprocessor_config.json", "has no preprocessor_config.json, which says the size"),
        ("tokenizer.json", "the tokeniser knows 2 tokens, the network 190; copy its tokenizer.json"),
    ],
)
def test_folders_that_lack_a_part(without, message, build, clip_folder, tmp_path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / without).unlink()
    if without == "model.safetensors":
        torch.save(CLIPModel.from_pretrained(clip_folder).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match=f"reward.terms.text_image: model='{folder}'.*{message}"):
        build(terms={"text_image": {"model": str(folder)}}, shape=SHAPE, captions=True)


def test_weights_of_another_network(build, clip_folder, dino_folder, tmp_path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    shutil.copy(dino_folder / "model.safetensors", folder)
    with pytest.raises(RewardError, match=r"reward\.terms\.clip: .*the weights are not those of its config.json"):
        build(terms={"clip": {"model": str(folder)}}, shape=SHAPE)


def test_networks_of_another_kind(build, clip_folder, dino_folder):
    with pytest.raises(RewardError, match=r"reward\.terms\.dino: .*is a clip; expected one of: dinov2, .*dinov3_vit"):
        build(terms={"dino": {"model": str(clip_folder)}}, shape=SHAPE)
    with pytest.raises(RewardError, match=r"reward\.terms\.clip: .*is a dino.*; expected one of: clip"):
        build(terms={"clip": {"model": str(dino_folder)}}, shape=SHAPE)


@pytest.mark.parametrize("model", ["/no/such/folder", "./clip", "~/no_such_clip", "a/b/c", ""])
def test_paths_are_not_looked_for_on_a_hub(model, build):
    with pytest.raises(RewardError, match=rf"reward\.terms\.clip: model='{model}': no such folder; expected one that"):
        build(terms={"clip": {"model": model}}, shape=SHAPE)


def test_a_hub_that_is_away(build, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardError, match=r"model='nobody/no-such-clip' cannot be loaded .*on the hub.*hf download ID"):
        build(terms={"clip": {"model": "nobody/no-such-clip"}}, shape=SHAPE)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": (1, 5), "bias": (1,)}, "takes 5 numbers, model=.* gives 12; set option `model`"),
        ({"weight": (1, EMBEDDING)}, "expected weight .* and bias"),
        ({"weight": (2, EMBEDDING), "bias": (2,)}, "end in one number"),
        ({"0.weight": (3, EMBEDDING), "0.bias": (3,), "1.weight": (1, 4), "1.bias": (1,)}, "that follow each other"),
        ({}, "expected weight"),
    ],
)
def test_heads_that_do_not_fit(tensors, message, build, clip_folder, tmp_path):
    head = tmp_path / "head.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, head)
    with pytest.raises(RewardError, match=rf"reward\.terms\.aesthetic: head='{head}'.*{message}"):
        build(terms={"aesthetic": {"model": str(clip_folder), "head": str(head)}}, shape=SHAPE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("head.pth", b"", "expected a .safetensors file, .*convert it: python -c .*weights_only=True.*save_file"),
        ("head.bin", b"", "expected a .safetensors file"),
        ("head.safetensors", None, "no such file"),
        ("head.safetensors", b"junk", "is not a whole safetensors file"),
    ],
)
def test_files_that_are_no_safetensors(name, content, message, build, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RewardError, match=rf"reward\.terms\.aesthetic: head='{tmp_path / name}'.*{message}"):
        build(terms={"aesthetic": {"head": str(tmp_path / name)}}, shape=SHAPE)


def test_the_teachers_features_are_kept_and_taken_up(inputs, build, clip_folder, tmp_path):
    """By whoever looks through the same network in the same way; to the bit what was computed."""
    store = TargetStore(tmp_path, {"teacher": "abc"})
    kept = store.features(Stream.TRAIN, [0, 1], ["a", "b"])
    options = {"clip": {"model": str(clip_folder)}}
    first, second = (build(shape=SHAPE, terms=options) for _ in range(2))
    expected = first(inputs)
    assert torch.equal(first(replace(inputs, kept=kept))["clip"], expected["clip"])
    calls: list[int] = []
    second.terms["clip"]._images.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(second(replace(inputs, kept=kept))["clip"], expected["clip"]) and len(calls) == 1
    images = second.terms["clip"]._images
    assert images.identity == first.terms["clip"]._images.identity
    others = [
        ImageEncoder("dino", images.network, images.preparation, images.forward),
        ImageEncoder("clip", images.network, replace(images.preparation, mode="bilinear"), images.forward),
    ]
    assert len({images.identity, *(other.identity for other in others)}) == 3
