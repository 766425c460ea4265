"""What `Rewards` refuses: images, conditions, values, names and options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from redif_ray.config import Term
from redif_ray.rewards.base import TERMS, RewardError, RewardInputs, Rewards, Setting, build_terms

SETTING = Setting(4, (2, 12, 13), torch.device("cpu"))


@dataclass
class Constant:
    """A term that returns what it is told to."""

    value: Any
    differentiable: bool = False
    needs: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, inputs: RewardInputs) -> Any:
        return self.value


def test_terms_come_back_by_label_in_the_order_of_the_configuration(pair, build):
    raw = build("ssim", "mse", "psnr")(pair())
    assert list(raw) == ["ssim", "mse", "psnr"] and all(v.shape == (3,) for v in raw.values())


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: 2 * x - 1, r"span \[-0\.99.*expected \[0, 1\].*\(x \+ 1\) / 2"),
        (lambda x: x * 255, "expected \\[0, 1\\]"),
        (lambda x: x.index_fill(0, torch.tensor([1]), float("nan")), "span \\[nan, nan\\]"),
        (lambda x: x - x.min() - 2e-6, "span \\[-2e-06"),
        (lambda x: x - x.max() + 1 + 1e-4, r"1\.0001\]; expected \[0, 1\]"),
        (lambda x: x[:, :1], r"shape \[3, 1, 12, 13\]; expected \[3, 2, 12, 13\]"),
        (lambda x: x[:2], r"shape \[2, 2, 12, 13\]; expected \[3,"),
        (lambda x: x[0], "shape"),
        (lambda x: (x * 255).to(torch.uint8), "torch.uint8; expected float32"),
        (lambda x: x.half(), "torch.float16; expected float32"),
    ],
)
def test_images_that_no_term_may_see(role, spoil, message, pair, build):
    inputs = pair()
    with pytest.raises(RewardError, match=f"{role} images.*{message}"):
        build("mse")(replace(inputs, **{role.replace("teacher", "paired"): spoil(getattr(inputs, role))}))


def test_a_term_that_reads_the_teacher_s_images_says_that_they_are_absent(pair, build):
    alone = replace(pair(), paired=None)
    with pytest.raises(RewardError, match="the teacher's images are not made for these terms"):
        build("mse")(alone)


def test_rounding_outside_the_range_is_allowed(pair, build):
    inputs = pair(dtype=torch.float32)
    inputs.student[0, 0, 0, 0], inputs.student[0, 0, 0, 1] = 1 + 2.0**-21, -5e-7
    raw = build("mse", "ssim", "blurred_mse", "histogram_kl")(inputs)
    assert all(torch.isfinite(values).all() for values in raw.values())


def test_no_images_at_all(build):
    empty = torch.empty(0, 2, 12, 13)
    with pytest.raises(RewardError, match="no student images"):
        build("mse")(RewardInputs(empty, empty, []))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([0.5, float("nan"), 1.0]), "'score' is nan at row 1"),
        (torch.tensor([0.5, 1.0, -float("inf")]), "'score' is -inf at row 2"),
        (torch.ones(3, 1), r"'score' returned shape \[3, 1\]; expected \[3\]"),
        (torch.tensor(1.0), r"'score' returned shape \[\]; expected \[3\]"),
        (torch.ones(3, dtype=torch.int64), "'score' returned torch.int64; expected a float tensor"),
        ([1.0, 1.0, 1.0], "'score' returned list; expected a float tensor"),
        (None, "'score' returned NoneType"),
    ],
)
def test_values_that_are_no_reward(value, message, pair):
    with pytest.raises(RewardError, match=message):
        Rewards({"score": Constant(value)}, SETTING)(pair())


def test_a_term_that_fails_is_named(pair):
    class Broken(Constant):
        def __call__(self, inputs: RewardInputs) -> Any:
            raise KeyError("sky")

    with pytest.raises(KeyError, match="sky") as caught:
        Rewards({"score": Broken(None)}, SETTING)(pair())
    assert caught.value.__notes__ == ["in reward term 'score'"]


def test_a_gradient_that_was_promised_must_come(pair):
    inputs = pair()
    inputs.student.requires_grad_()
    rewards = Rewards({"score": Constant(torch.ones(3), differentiable=True)}, SETTING)
    with pytest.raises(RewardError, match="'score' declares itself differentiable"):
        rewards(inputs)
    with torch.no_grad():
        assert rewards(inputs)["score"].tolist() == [1, 1, 1]


def test_values_take_the_students_dtype(pair):
    rewards = Rewards({"score": Constant(torch.ones(3, dtype=torch.float16))}, SETTING)
    assert rewards(pair(dtype=torch.float32))["score"].dtype == torch.float32


@pytest.mark.parametrize("condition", [4, -1, None, "a boot", 1.0, True])
def test_a_term_of_classes_needs_a_class_in_every_row(condition, pair):
    rewards = Rewards({"score": Constant(torch.ones(3), needs=frozenset({"class"}))}, SETTING)
    assert rewards(pair())
    with pytest.raises(RewardError, match=r"of row 2: expected an int in \[0, 4\)"):
        rewards(replace(pair(), conditions=[0, 3, condition]))


def test_a_term_of_classes_needs_a_teacher_of_classes(build):
    with pytest.raises(RewardError, match=r"reward\.terms\.classifier needs class conditions"):
        build("classifier", shape=(1, 28, 28), num_classes=0)


@pytest.mark.parametrize("condition", [None, 3])
def test_a_term_of_captions_needs_a_caption_in_every_row(condition, pair):
    rewards = Rewards({"score": Constant(torch.ones(3), needs=frozenset({"caption"}))}, SETTING)
    assert rewards(replace(pair(), conditions=["a", "", "b"]))
    with pytest.raises(RewardError, match=f"condition {condition} of row 1: expected a caption"):
        rewards(replace(pair(), conditions=["a", condition, "b"]))


def test_a_term_of_captions_needs_a_teacher_of_captions(build):
    with pytest.raises(RewardError, match=r"reward\.terms\.text_image needs captions; this teacher takes none"):
        build("text_image")


def test_an_arm_without_gradients_names_every_term_that_has_none(build):
    build("mse", "ssim").require_differentiable("method=draft")
    mixed = build("mse", "histogram_kl", "jpeg_compressibility", shape=(1, 8, 8))
    with pytest.raises(RewardError, match=r"draft.*remove from reward\.terms: histogram_kl, jpeg_compressibility$"):
        mixed.require_differentiable("method=draft")


def test_names_in_the_table_are_the_terms_own():
    assert all(term.name == name for name, term in TERMS.items())
    assert set(TERMS) == {
        "mse",
        "psnr",
        "ssim",
        "gradient_mse",
        "blurred_mse",
        "feature_cosine",
        "classifier",
        "histogram_kl",
        "jpeg_compressibility",
        "clip",
        "text_image",
        "pick_score",
        "hps",
        "image_reward",
        "dino",
        "perception",
        "lpips",
        "aesthetic",
        "discriminator",
    }


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(build):
    with pytest.raises(RewardError, match=r"'gradient_mes' \(did you mean 'gradient_mse'\?\); known: mse,.*callable"):
        build("gradient_mes")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mse", {"sigma": 2}, "mse has no option 'sigma'; expected: none"),
        ("mse", {"callable": "math:sin"}, "mse has no option 'callable'"),
        ("mse", {"setting": 1}, "mse has no option 'setting'"),
        ("blurred_mse", {"sigme": 2.0}, "no option 'sigme' \\(did you mean 'sigma'\\?\\); expected: sigma"),
        ("blurred_mse", {"sigma": 0.0}, "blurred_mse.options.sigma=0.0: .*greater than 0"),
        ("blurred_mse", {"sigma": "wide"}, "blurred_mse.options.sigma='wide': .*number"),
        ("discriminator", {"width": 0}, "discriminator.options.width=0: .*greater than 0"),
        ("discriminator", {"loss": "hinge"}, "no option 'loss'; expected: lr, steps, width, r1, conditional"),
        ("feature_cosine", {"pooled": "maybe"}, "feature_cosine.options.pooled='maybe'"),
        ("feature_cosine", {"encoder": "dino"}, "encoder 'dino'; expected one of: classifier-a, efficientnet-lite0"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit(name, options, message, build):
    with pytest.raises(RewardError, match=message):
        build(terms={name: options})


def test_an_option_without_a_default_must_be_given(build):
    with pytest.raises(RewardError, match=r"reward\.terms\.aesthetic needs its option 'head'"):
        build("aesthetic")


def test_no_terms_at_all():
    with pytest.raises(RewardError, match="at least one"):
        build_terms({}, num_classes=0, image_shape=(1, 8, 8), device="cpu")


def test_a_whole_number_may_stand_for_a_float():
    rewards = build_terms(
        {"blurred_mse": Term(options={"sigma": 2})}, num_classes=0, image_shape=(1, 8, 8), device="cpu"
    )
    assert rewards.terms["blurred_mse"].sigma == 2.0
