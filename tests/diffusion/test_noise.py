from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al., SC 2011, ten rounds, from the paper."""
    (c0, c1, c2, c3), (k0, k1), mask = counter, key, 2**64 - 1
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


def test_the_reference_philox_knows_the_published_answer() -> None:
    assert philox4x64([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


def test_bits_are_philox_of_the_ids() -> None:
    words = noise.bits(8, Stream.EXPLORATION, seed=11, round=5, group=7, sibling=3, step=2)
    expected = [philox4x64([block, 2, 3, 7], [11, 4 << 32 | 5]) for block in (1, 2)]
    assert words.tolist() == expected[0] + expected[1]


def test_golden_bytes() -> None:
    z = noise.normal(1000, Stream.TRAIN, seed=1, group=2)
    assert z.dtype == np.float32
    assert hashlib.sha256(z.tobytes()).hexdigest() == "75a83409ec47c904ce04ce78c9d6b96e1bd400c2c7bced4872c3381fc3b6467a"
    order = noise.permutation(1000, Stream.TRAIN, seed=1, group=2)
    assert order.dtype == np.int64
    golden = "80a66d117a7e7b3b0dfd088952607e8ffb42167371d8f4c2981ad53ee549e06f"
    assert hashlib.sha256(order.tobytes()).hexdigest() == golden


def test_normals_are_box_muller_of_the_bits() -> None:
    u = [int(w) >> 11 for w in noise.bits(6, Stream.TRAIN, seed=3)]
    expected = [
        math.sqrt(-2 * math.log(1 - u[i] / 2**53)) * turn(2 * math.pi * u[3 + i] / 2**53)
        for turn in (math.cos, math.sin)
        for i in range(3)
    ]
    np.testing.assert_allclose(noise.normal(5, Stream.TRAIN, seed=3), expected[:5], rtol=1e-6)


def test_normals_are_standard() -> None:
    z = noise.normal(200_001, Stream.HELD_OUT, seed=2**63)
    assert z.shape == (200_001,)
    assert stats.kstest(z.astype(np.float64), "norm").pvalue > 0.01
    assert abs(np.corrcoef(z[:100_000], z[100_001:])[0, 1]) < 0.01  # cosine and sine halves


def test_uniforms_and_permutations_cover_their_range() -> None:
    u = noise.uniform(50_000, Stream.TEACHER_LEVEL, seed=4)
    assert 0 <= u.min() < 1e-3 and 1 - 1e-3 < u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 0.01
    firsts = [int(noise.permutation(5, Stream.MINIBATCH, seed=0, round=r)[0]) for r in range(2000)]
    assert stats.chisquare(np.bincount(firsts, minlength=5)).pvalue > 0.01
    assert sorted(noise.permutation(100, Stream.MINIBATCH, seed=0).tolist()) == list(range(100))


def test_every_id_gives_other_numbers() -> None:
    base = {"seed": 1, "round": 2, "group": 3, "sibling": 4, "step": 5}
    draws = [noise.bits(64, stream, **base) for stream in Stream]
    draws += [noise.bits(64, Stream.TRAIN, **(base | {name: value})) for name in base for value in (0, 6, 1 << 31)]
    words = list(itertools.chain.from_iterable(d.tolist() for d in draws))
    assert len(set(words)) == len(words) == 64 * (len(Stream) + 15)


def test_stream_numbers_never_change() -> None:
    assert [s.name for s in sorted(Stream)][:13] == [
        "TRAIN",
        "VALIDATION",
        "HELD_OUT",
        "SEARCH",
        "EXPLORATION",
        "MINIBATCH",
        "CONDITION",
        "RESAMPLE",
        "TEACHER_DATA",
        "TEACHER_LEVEL",
        "TEACHER_NOISE",
        "TEACHER_DROPOUT",
        "CALIBRATION",
    ]
    assert sorted(Stream) == list(range(len(Stream)))


@pytest.mark.parametrize("name, value", [("round", 1 << 32), ("seed", -1), ("group", 1 << 64), ("step", -2)])
def test_ids_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}"):
        noise.bits(1, Stream.TRAIN, **({"seed": 0} | {name: value}))


def test_a_row_does_not_depend_on_its_batch() -> None:
    whole = noise.initial_noise([5, 6, 7], (1, 3, 3), seed=9)
    assert whole.shape == (3, 1, 3, 3) and whole.dtype == torch.float32
    assert torch.equal(noise.initial_noise([6], (1, 3, 3), seed=9), whole[1:2])
    assert not torch.equal(noise.initial_noise([6], (1, 3, 3), seed=9, stream=Stream.HELD_OUT), whole[1:2])
    ids = {"seed": 9, "round": 1, "step": 2}
    rows = noise.exploration_noise([5, 5, 6], [0, 1, 1], (4,), **ids)
    assert torch.equal(noise.exploration_noise([6], [1], (4,), **ids), rows[2:])
    assert len({tuple(r.tolist()) for r in rows}) == 3


def test_antithetic_siblings_are_opposite_pairs() -> None:
    ids = {"seed": 9, "round": 1, "step": 2}
    z = noise.exploration_noise([4] * 4, [0, 1, 2, 3], (50,), antithetic=True, **ids)
    assert torch.equal(z[1], -z[0]) and torch.equal(z[3], -z[2]) and not torch.equal(z[0].abs(), z[2].abs())
    plain = noise.exploration_noise([4, 4], [0, 2], (50,), **ids)
    assert torch.equal(z[::2], plain)


def test_a_pair_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second sibling of a pair is drawn even where the first one is in another work unit."""
    drawn, normal = [], noise.normal

    def noted(count: int, stream: Stream, **ids: int) -> np.ndarray:
        drawn.append((ids["group"], ids["sibling"]))
        return normal(count, stream, **ids)

    ids = {"seed": 9, "round": 1, "step": 2}
    whole = noise.exploration_noise([4] * 4 + [5] * 2, [0, 1, 2, 3, 0, 1], (50,), antithetic=True, **ids)
    monkeypatch.setattr(noise, "normal", noted)
    again = noise.exploration_noise([4] * 4 + [5] * 2, [0, 1, 2, 3, 0, 1], (50,), antithetic=True, **ids)
    assert torch.equal(again, whole) and drawn == [(4, 0), (4, 2), (5, 0)]
    assert torch.equal(noise.exploration_noise([4], [3], (50,), antithetic=True, **ids), whole[3:4])


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise.initial_noise([0], (4,), seed=0)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
