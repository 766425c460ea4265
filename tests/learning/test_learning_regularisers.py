from __future__ import annotations

import math

import pytest
import torch
from learning_toy import values
from scipy import integrate, stats
from torch import Tensor

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.learning.regularisers import divergence
from redif_ray.user_code.errors import UserCodeError

MEAN = torch.tensor([[0.3, -0.2, 0.5], [0.0, 0.1, -0.4]], dtype=torch.float64)
REF = torch.tensor([[0.1, 0.0, 0.2], [0.3, 0.1, -0.2]], dtype=torch.float64)
STD = torch.tensor([0.7, 0.5], dtype=torch.float64)
KINDS = ("kl", "chi2", "renyi", "power", "js")


@pytest.mark.parametrize(
    ("kind", "order"),
    [("kl", 0.5), ("chi2", 0.5), ("renyi", 0.3), ("renyi", 1.7), ("power", 0.3), ("power", -0.5), ("js", 0.5)],
)
def test_against_monte_carlo(kind: str, order: float) -> None:
    """Definitions by sampling, over D = 3 dimensions."""
    n = 60_000
    z = torch.from_numpy(noise.normal(n * 3, Stream.CALIBRATION, seed=2)).double().reshape(n, 3)
    found = divergence(kind, MEAN, REF, STD, order=order, tempered=False)
    for row, value in enumerate(found.tolist()):
        p, q = (torch.distributions.Normal(m[row], STD[row]) for m in (MEAN, REF))
        x, y = MEAN[row] + STD[row] * z, REF[row] + STD[row] * z  # x from p, y from q
        r = (p.log_prob(y) - q.log_prob(y)).sum(1)
        at_p = (p.log_prob(x) - q.log_prob(x)).sum(1)
        samples = {
            "kl": at_p,
            "chi2": (2 * r).exp() - 1,
            "renyi": (order * r).exp(),
            "power": ((order * r).exp() - 1) / (order * (order - 1)),
            "js": (torch.log(2 / (1 + (-at_p).exp())) + torch.log(2 / (1 + r.exp()))) / 2,
        }[kind]
        estimate, error = float(samples.mean()), float(samples.std()) / math.sqrt(n)
        if kind == "renyi":
            estimate, error = math.log(estimate) / (order - 1), error / estimate / abs(order - 1)
        assert value == pytest.approx(estimate, abs=4 * error) and 10 * error < value


@pytest.mark.parametrize("d", [1e-4, 0.05, 0.5, 1.5, 4.0, 10.0, 30.0])
def test_js_against_numerical_integration(d: float) -> None:
    p, q = stats.norm(0, 1), stats.norm(d, 1)

    def integrand(x: float) -> float:
        m = (p.pdf(x) + q.pdf(x)) / 2
        return sum(f.pdf(x) * math.log(f.pdf(x) / m) if f.pdf(x) > 0 else 0.0 for f in (p, q)) / 2

    expected, _ = integrate.quad(integrand, -9, d + 9, points=[0, d / 2, d], limit=200, epsabs=1e-12)
    mean = torch.tensor([[d * 0.5]], dtype=torch.float64)
    found = divergence("js", mean, torch.zeros(1, 1), torch.tensor([0.5]), tempered=False)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert 0 <= found.item() <= math.log(2)


@pytest.mark.parametrize("kind", [*KINDS, "mse"])
@pytest.mark.parametrize("tempered", [True, False])
def test_live_gradient_against_finite_differences(kind: str, tempered: bool) -> None:
    def value(mean: Tensor) -> Tensor:
        return divergence(kind, mean, REF, STD, order=0.3, tempered=tempered)

    mean = MEAN.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, mean)
    assert bool((torch.autograd.grad(value(mean).sum(), mean)[0].abs().sum(1) > 1e-3).all())


def test_tempered_forms() -> None:
    d2 = ((MEAN - REF) / STD[:, None]).square()
    torch.testing.assert_close(divergence("kl", MEAN, REF, STD), divergence("kl", MEAN, REF, STD, tempered=False) / 3)
    torch.testing.assert_close(divergence("kl", MEAN, REF, STD), d2.mean(1) / 2)
    chi2 = divergence("chi2", MEAN, REF, STD, tempered=False)
    torch.testing.assert_close(divergence("chi2", MEAN, REF, STD), (1 + chi2) ** (1 / 3) - 1)
    # js of the tempered shift is that of one dimension with the root mean square shift
    one = divergence("js", d2.mean(1, keepdim=True).sqrt(), torch.zeros(2, 1), torch.ones(2), tempered=False)
    torch.testing.assert_close(divergence("js", MEAN, REF, STD), one)


@pytest.mark.parametrize("kind", [*KINDS, "mse"])
def test_zero_with_zero_gradient_at_the_reference(kind: str) -> None:
    mean = MEAN.float().requires_grad_()
    value = divergence(kind, mean, MEAN.float(), STD)
    (gradient,) = torch.autograd.grad(value.sum(), mean)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-12, rtol=0)
    assert not gradient.any()


def test_tempered_does_not_overflow() -> None:
    mean = values(512, 1).reshape(1, 512)
    reference, std = torch.zeros(1, 512), torch.tensor([0.5])
    assert math.isinf(divergence("chi2", mean, reference, std, tempered=False).item())
    assert math.isfinite(divergence("chi2", mean, reference, std).item())


def test_mse_needs_no_noise_and_the_others_do() -> None:
    found = divergence("mse", MEAN, REF, torch.zeros(2))
    torch.testing.assert_close(found, (MEAN - REF).square().mean(1))
    with pytest.raises(ValueError, match="deterministic"):
        divergence("kl", MEAN, REF, torch.tensor([0.5, 0.0]))
    with pytest.raises(UserCodeError, match=r"learner\.regulariser\.kind=hellinger: .* or one of kl, chi2"):
        divergence("hellinger", MEAN, REF, STD)
