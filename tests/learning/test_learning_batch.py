from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from redif_ray.diffusion.noise import Stream
from redif_ray.learning.batch import assemble
from redif_ray.types import Condition, Scored, Trajectories, WorkUnit

UNITS = [  # the last is short
    WorkUnit(5, i, "policy", Stream.TRAIN, groups, conditions, 2)
    for i, (groups, conditions) in enumerate([((0, 1), (7, 8)), ((2, 3), (9, 7)), ((4,), (8,))])
]


def part(
    unit: WorkUnit, *, anchors: bool = True, weights: str = "abc", shared: int = 1, last: bool = True
) -> tuple[Trajectories, Scored]:
    """Every number says which (step, row) it belongs to; in the first `shared` steps it is the first sibling's row."""
    row = 4 * unit.index + np.arange(unit.rows, dtype=np.float32)
    grid = 100 * np.arange(4, dtype=np.float32)[:, None] + row
    grid[:shared] = grid[:shared, ::2].repeat(2, 1)
    latents = np.repeat(grid[:, :, None], 3, 2)
    for array in (latents, grid):
        array.setflags(write=False)  # as Ray hands them over
    states = latents if last else latents[:3]
    means = latents[:3] + 0.25 if last else None
    trajectories = Trajectories(unit, 5, weights, states[:shared, ::2].copy(), states[shared:], grid[:3] + 0.5, means)
    scored = Scored(
        unit, {"mse": row}, np.zeros((len(unit.groups), 1, 2, 2), np.float32), latents[:3] + 0.75 if anchors else None
    )
    return trajectories, scored


def encode(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    return {"label": torch.tensor([int(c or 0) for c in conditions])}


@pytest.mark.parametrize(
    ("indices", "rows"), [([2, 0, 1], range(10)), ([2, 0], [0, 1, 2, 3, 8, 9]), ([1], [4, 5, 6, 7])]
)
def test_rows_stay_with_their_values_in_any_order(indices: list[int], rows: Sequence[int]) -> None:
    advantages = torch.arange(10.0).reshape(5, 2)
    batch = assemble(
        [UNITS[i] for i in (1, 2, 0)],
        [part(UNITS[i]) for i in indices],
        weights_sha256="abc",
        encode=encode,
        advantages=advantages,
        gate=torch.arange(10) % 3 == 0,
    )
    row = torch.tensor(list(rows))
    assert batch.total_rows == 10 and torch.equal(batch.rows, row) and batch.dimensions == 3
    grid = 100 * torch.arange(4.0)[:, None] + row
    grid[0] = row // 2 * 2
    assert batch.means is not None
    torch.testing.assert_close(batch.latents, grid[:, :, None].expand(4, len(row), 3))
    torch.testing.assert_close(batch.means[..., 1], grid[:3] + 0.25)
    torch.testing.assert_close(batch.log_probs, grid[:3] + 0.5)
    assert batch.anchors is not None and batch.gate is not None
    torch.testing.assert_close(batch.anchors[..., 2], grid[:3] + 0.75)
    torch.testing.assert_close(batch.advantages, row.float())
    torch.testing.assert_close(batch.gate, (row % 3 == 0).float())
    classes = torch.tensor([7, 7, 8, 8, 9, 9, 7, 7, 8, 8])
    assert torch.equal(batch.encoded["label"], classes[row])
    assert batch.origin is not None
    assert torch.equal(batch.rows[batch.origin], row // 2 * 2)  # of two siblings, the first


def test_without_advantages_and_anchors() -> None:
    batch = assemble(UNITS, [part(s, anchors=False) for s in UNITS], weights_sha256="abc", encode=encode)
    assert batch.anchors is None and batch.gate is None and not batch.advantages.any()


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_states_that_siblings_share_are_joined_to_the_others(shared: int) -> None:
    """With results and means, and without both."""
    for last in (True, False):
        parts = [part(s, shared=shared, last=last) for s in UNITS]
        batch = assemble(UNITS, parts, weights_sha256="abc", encode=encode)
        row, steps = torch.arange(10.0), 4 if last else 3
        grid = 100 * torch.arange(4.0)[:, None] + row
        grid[:shared] = 100 * torch.arange(4.0)[:shared, None] + row // 2 * 2
        torch.testing.assert_close(batch.latents, grid[:steps, :, None].expand(steps, 10, 3))
        assert (batch.means is not None) == last


def test_strangers_are_refused() -> None:
    def join(parts: list[tuple[Trajectories, Scored]], **options: Tensor) -> None:
        assemble(UNITS, parts, weights_sha256="abc", encode=encode, **options)

    with pytest.raises(ValueError, match=r"work unit 1 of round 5 .* weights xyz.* expected abc"):
        join([part(UNITS[0]), part(UNITS[1], weights="xyz")])
    with pytest.raises(ValueError, match="work unit 0 of round 5 comes twice"):
        join([part(UNITS[0]), part(UNITS[0])])
    with pytest.raises(ValueError, match="is not in this round"):
        join([part(dataclasses.replace(UNITS[0], round=4))])
    with pytest.raises(ValueError, match="scores of another unit"):
        join([(part(UNITS[0])[0], part(UNITS[1])[1])])
    with pytest.raises(ValueError, match="got no work unit"):
        join([])
    with pytest.raises(ValueError, match="only 1 of 2 work units carry anchors"):
        join([part(UNITS[0]), part(UNITS[1], anchors=False)])
    with pytest.raises(ValueError, match="10 rows; found 4 values"):
        join([part(UNITS[0])], advantages=torch.zeros(4))


def test_shapes_that_do_not_fit_are_named() -> None:
    batch = assemble(UNITS, [part(s) for s in UNITS], weights_sha256="abc", encode=encode)
    with pytest.raises(ValueError, match=r"latents has shape \[4, 9, 3\]; expected it to begin with \[4, 10\]"):
        dataclasses.replace(batch, latents=batch.latents[:, :9])
    with pytest.raises(ValueError, match=r"latents has shape \[8, 10, 3\]; expected it to begin with \[4, 10\]"):
        dataclasses.replace(batch, latents=torch.cat([batch.latents, batch.latents]))
    with pytest.raises(ValueError, match=r"encoded\[label\]"):
        dataclasses.replace(batch, encoded={"label": torch.zeros(3)})
