"""Terms that need no encoder, against independent formulas, finite differences and their documented ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage, stats

from redif_ray.config import Term
from redif_ray.rewards.base import RewardError, RewardInputs, build_terms

DIFFERENTIABLE = ["mse", "psnr", "ssim", "gradient_mse", "blurred_mse"]
PAIR = [*DIFFERENTIABLE, "histogram_kl"]
ALL = [*PAIR, "jpeg_compressibility"]
RANGES = {  # of images of one channel
    "mse": (-1, 0),
    "psnr": (0, 60),
    "ssim": (-1, 1),
    "gradient_mse": (-4, 0),
    "blurred_mse": (-1, 0),
    "histogram_kl": (-np.log1p(1e6) / (1 + 32e-6), 0),
    "jpeg_compressibility": (-np.inf, 0),
}
TOP = {"mse": 0, "psnr": 60, "ssim": 1, "gradient_mse": 0, "blurred_mse": 0, "histogram_kl": 0}


def value(rewards, name, student, teacher):
    student, teacher = torch.as_tensor(student), torch.as_tensor(teacher)
    return rewards(RewardInputs(student, teacher, [None] * len(student)))[name].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_equals_finite_differences(name, pair, build):
    rewards, inputs = build(name), pair(shape=(2, 2, 12, 13))
    rewards.require_differentiable("this test")
    assert torch.autograd.gradcheck(
        lambda x: rewards(RewardInputs(x, inputs.teacher, inputs.conditions))[name], inputs.student.requires_grad_()
    )


@pytest.mark.parametrize("name", ["histogram_kl", "jpeg_compressibility"])
def test_the_others_declare_that_they_have_none(name, pair, build):
    rewards, inputs = build(name, shape=(1, 8, 8)), pair(shape=(2, 1, 8, 8))
    inputs.student.requires_grad_()
    assert not rewards.terms[name].differentiable and not rewards(inputs)[name].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_a_row_is_scored_by_itself_and_keeps_its_dtype(name, dtype, pair, build):
    rewards, inputs = build(name, shape=(3, 12, 13)), pair(shape=(3, 3, 12, 13), dtype=dtype)
    together = rewards(inputs)[name]
    alone = torch.cat(
        [rewards(RewardInputs(inputs.student[i : i + 1], inputs.teacher[i : i + 1], [None]))[name] for i in range(3)]
    )
    assert together.dtype == dtype and len(set(together.tolist())) == 3
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", PAIR)
def test_the_teacher_itself_scores_highest(name, pair, build):
    rewards, inputs = build(name), pair()
    best = value(rewards, name, inputs.teacher, inputs.teacher)
    np.testing.assert_allclose(best, TOP[name], atol=1e-12)
    near = value(rewards, name, 0.95 * inputs.teacher + 0.05 * inputs.student, inputs.teacher)
    far = value(rewards, name, 0.05 * inputs.teacher, inputs.teacher)
    assert (far < near).all() and (near < best).all()


UNIT = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
IMAGE = arrays(np.float32, (2, 1, 8, 8), elements=UNIT, fill=UNIT)


@pytest.mark.slow
@given(student=IMAGE, teacher=IMAGE)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_values_stay_in_the_documented_range_and_below_the_teachers_own(student, teacher):
    rewards = build_terms({n: Term() for n in ALL}, num_classes=0, image_shape=(1, 8, 8), device="cpu")
    inputs = RewardInputs(torch.tensor(student), torch.tensor(teacher), [None, None])
    own = rewards(RewardInputs(inputs.teacher, inputs.teacher, inputs.conditions))
    for name, values in rewards(inputs).items():
        low, high = RANGES[name]
        assert (values >= low - 1e-5).all() and (values <= high + 1e-5).all(), name
        if name in PAIR:
            assert (values <= own[name] + 1e-5).all(), name


def test_extremes_reach_the_documented_bounds(build):
    black, white = np.zeros((1, 2, 12, 13)), np.ones((1, 2, 12, 13))
    stripes = np.broadcast_to((np.arange(12)[:, None] + np.arange(13)) % 2, black.shape).astype(float)
    for name, student, teacher in [
        ("mse", black, white),
        ("psnr", black, white),
        ("blurred_mse", black, white),
        ("histogram_kl", black, white),
        ("gradient_mse", stripes, 1 - stripes),
    ]:
        rewards = build(name)
        low = 2 * RANGES[name][0] if name == "histogram_kl" else RANGES[name][0]  # a sum over two channels
        np.testing.assert_allclose(value(rewards, name, student, teacher), low, err_msg=name)


def test_mse_and_psnr_by_hand(pair, build):
    inputs = pair()
    mse = ((inputs.student.numpy() - inputs.teacher.numpy()) ** 2).reshape(3, -1).mean(1)
    rewards = build("mse", "psnr")
    np.testing.assert_allclose(value(rewards, "mse", inputs.student, inputs.teacher), -mse)
    np.testing.assert_allclose(value(rewards, "psnr", inputs.student, inputs.teacher), 20 * np.log10(1 / np.sqrt(mse)))
    tenth = np.full((1, 2, 12, 13), 0.1)
    assert value(rewards, "psnr", tenth + 0.1, tenth) == pytest.approx(20)
    assert value(rewards, "psnr", tenth + 1e-4, tenth) == 60


def ssim_of_plane(x, y):
    def mean(image):  # 11 taps: scipy cuts at int(truncate sigma + 0.5) = 5
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    ux, uy = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - ux * ux, mean(y * y) - uy * uy, mean(x * y) - ux * uy
    return np.mean((2 * ux * uy + 1e-4) * (2 * vxy + 9e-4) / ((ux**2 + uy**2 + 1e-4) * (vx + vy + 9e-4)))


def test_ssim_equals_an_independent_one(pair, build):
    inputs = pair(shape=(3, 2, 17, 14))
    student = (0.5 * inputs.student + 0.5 * inputs.teacher).numpy()
    expected = [
        np.mean([ssim_of_plane(x, y) for x, y in zip(a, b, strict=True)])
        for a, b in zip(student, inputs.teacher.numpy(), strict=True)
    ]
    got = value(build("ssim", shape=(2, 17, 14)), "ssim", student, inputs.teacher)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("edge", [7, 8])
def test_ssim_of_a_small_image_uses_the_largest_odd_window(edge, pair, build):
    inputs = pair(shape=(1, 1, edge, edge))
    one = np.exp(-((np.arange(7) - 3) ** 2) / 4.5)
    weights = np.outer(one, one) / one.sum() ** 2
    x, y = inputs.student.numpy()[0, 0], inputs.teacher.numpy()[0, 0]
    found = []
    for i in range(edge - 6):
        for j in range(edge - 6):
            a, b = x[i : i + 7, j : j + 7], y[i : i + 7, j : j + 7]
            ua, ub = (weights * a).sum(), (weights * b).sum()
            va, vb, vab = ((weights * p).sum() for p in ((a - ua) ** 2, (b - ub) ** 2, (a - ua) * (b - ub)))
            found.append((2 * ua * ub + 1e-4) * (2 * vab + 9e-4) / ((ua**2 + ub**2 + 1e-4) * (va + vb + 9e-4)))
    got = value(build("ssim", shape=(1, edge, edge)), "ssim", inputs.student, inputs.teacher)
    assert got == pytest.approx(np.mean(found), rel=1e-10)


def test_gradient_mse_sees_edges_only(pair, build):
    inputs, rewards = pair(), build("gradient_mse")
    error = inputs.student.numpy() - inputs.teacher.numpy()
    expected = [-(np.mean(np.diff(e, axis=1) ** 2) + np.mean(np.diff(e, axis=2) ** 2)) / 2 for e in error]
    np.testing.assert_allclose(value(rewards, "gradient_mse", inputs.student, inputs.teacher), expected)
    ramp = np.broadcast_to(np.arange(13) / 12, (1, 2, 12, 13)).copy()
    assert value(rewards, "gradient_mse", ramp, np.zeros_like(ramp)) == pytest.approx(-((1 / 12) ** 2) / 2)
    half = inputs.teacher / 2
    np.testing.assert_allclose(value(rewards, "gradient_mse", half + 0.3, half), 0, atol=1e-15)
    with pytest.raises(RewardError, match="2 x 2"):
        build("gradient_mse", shape=(1, 1, 8))


@pytest.mark.parametrize(("options", "sigma", "radius"), [({}, 2.0, 6), ({"sigma": 1.2}, 1.2, 4)])
def test_blurred_mse_equals_scipys_filter(options, sigma, radius, pair, build):
    inputs, rewards = pair(), build(terms={"blurred_mse": options})
    student, teacher = (
        ndimage.gaussian_filter(image.numpy(), sigma, axes=(2, 3), mode="mirror", radius=radius)
        for image in (inputs.student, inputs.teacher)
    )
    expected = -((student - teacher) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(value(rewards, "blurred_mse", inputs.student, inputs.teacher), expected, rtol=1e-10)


def test_blurred_mse_refuses_a_blur_wider_than_the_image(build):
    with pytest.raises(RewardError, match=r"reward\.terms\.blurred_mse: sigma=4 reaches 12 pixels.*edge 12"):
        build(terms={"blurred_mse": {"sigma": 4.0}})


def test_histogram_kl_equals_scipys_entropy(pair, build):
    inputs = pair()
    student, teacher = inputs.student.numpy() ** 2, inputs.teacher.numpy()
    student[:, :, 0, 0] = 1.0  # the right end belongs to the last bin

    def smoothed(plane):
        return np.histogram(plane, bins=32, range=(0, 1))[0] / plane.size + 1e-6

    expected = [
        -sum(stats.entropy(smoothed(t), smoothed(s)) for s, t in zip(a, b, strict=True))  # entropy normalises
        for a, b in zip(student, teacher, strict=True)
    ]
    np.testing.assert_allclose(value(build("histogram_kl"), "histogram_kl", student, teacher), expected, rtol=1e-10)


def test_histogram_kl_ignores_where_pixels_are(pair, build):
    inputs = pair()
    mirrored = inputs.teacher.flip(3)
    np.testing.assert_allclose(value(build("histogram_kl"), "histogram_kl", mirrored, inputs.teacher), 0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_compressibility_is_the_size_of_the_file(channels, pair, build, tmp_path):
    inputs = pair(shape=(2, channels, 24, 16))
    pixels = np.round(inputs.student.numpy() * 255).astype(np.uint8)
    sizes = []
    for i, image in enumerate(pixels):
        file = tmp_path / f"{i}.jpg"
        Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(file, quality=95)
        sizes.append(-file.stat().st_size / 1000)
    got = value(build("jpeg_compressibility", shape=(channels, 24, 16)), "jpeg_compressibility", *[inputs.student] * 2)
    np.testing.assert_allclose(got, sizes)


def test_jpeg_compressibility_prefers_flat_images(pair, build):
    noise = pair(shape=(1, 1, 24, 24)).student
    batch = torch.cat([torch.full_like(noise, 0.5), 0.5 + 0.1 * (noise - 0.5), noise])
    flat, weak, strong = value(build("jpeg_compressibility", shape=(1, 24, 24)), "jpeg_compressibility", batch, batch)
    assert flat > weak > strong
    with pytest.raises(RewardError, match="1 or 3 channels"):
        build("jpeg_compressibility", shape=(2, 24, 24))
