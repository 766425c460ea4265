"""What the coordinator has done again, when what was made is lost. Workers here are plain objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_workers import Reference, Worker, coordinator
from ray.exceptions import ObjectLostError, OwnerDiedError, RayError, RayTaskError

from redif_ray.diffusion.noise import Stream
from redif_ray.faults import ATTEMPTS, Fetched, RoundData, Stopping, fetched
from redif_ray.types import Work, WorkUnit


def references(data: RoundData | None) -> dict[int, tuple[str, ...]]:
    assert data is not None
    return {index: tuple(r.hex() for r in unit) for index, unit in data.references}


def test_what_a_rank_could_not_fetch_is_made_again_once(tmp_path: Path) -> None:
    found = coordinator(tmp_path)

    async def run() -> None:
        first = references(await found.round_for(1, 0, 2))
        assert sorted(first) == [0, 2] and sorted(references(await found.round_for(1, 1, 2))) == [1]
        second = references(await found.round_for(1, 0, 2, (first[2][1],)))
        assert second[0] == first[0] and not set(second[2]) & set(first[2])
        assert references(await found.round_for(1, 0, 2, (first[2][1],))) == second  # known already

    asyncio.run(run())
    assert found.writer.noted == ["unit"]
    assert [call for call in found.rollout.workers[0].calls if call == ("rollout", 2)] == [("rollout", 2)] * 2
    assert found.reward.workers[0].calls.count(("targets", 2)) == 3  # twice for this round, and ahead for the next


def test_of_two_ranks_each_loses_its_own(tmp_path: Path) -> None:
    found = coordinator(tmp_path)

    async def run() -> None:
        before = [references(await found.round_for(1, rank, 2)) for rank in (0, 1)]
        lost = [tuple(name for names in each.values() for name in names) for each in before]
        after = await asyncio.gather(*(found.round_for(1, rank, 2, lost[rank]) for rank in (0, 1)))
        known = {name for each in after for names in references(each).values() for name in names}
        assert not known & {*lost[0], *lost[1]}

    asyncio.run(run())
    assert found.writer.noted == ["unit"] * 3


@pytest.mark.parametrize("captions", [True, False])
def test_captions_are_encoded_before_a_unit_is_rolled_out(captions: bool, tmp_path: Path) -> None:
    """A call of its own encodes them where nobody asks for the teacher's images; elsewhere that call does."""
    found = coordinator(tmp_path, captions=captions)
    done = found.reward.workers[0].order

    async def made(work: Any) -> list[str]:
        done.clear()
        await work
        return [method for method, unit in done if unit == 0]

    async def run() -> None:
        assert [found.plan.phase(r).name for r in (0, 1)] == ["warm_start", "policy"]
        warm = await made(found.round_for(0, 0, 1))
        assert warm.index("rollout") < warm.index("score") and ("encode" in warm) == captions
        policy, deployed = await made(found.round_for(1, 0, 1)), await made(found.deploy(1, 10, 0, "deploy-0", None))
        assert "encode" not in policy
        if captions:
            assert warm[0] == "encode" and deployed == ["encode", "rollout", "score"]
        else:
            assert deployed == ["rollout", "score"]

    asyncio.run(run())


@pytest.mark.parametrize(("method", "calls"), [("redif", ["rollout", "score"]), ("draft", ["encode"])])
def test_nobody_is_asked_for_images_that_no_reward_reads(method: str, calls: list[str], tmp_path: Path) -> None:
    found = coordinator(tmp_path, f"method={method}", "reward.terms={classifier: {}}", "warm_start.rounds=0")

    async def run() -> None:
        data = await found.round_for(0, 0, 1)
        order = [method for method, unit in found.reward.workers[0].order if unit == 0]
        await asyncio.gather(*found.ahead.values(), *(batch.whole for batch in found.rounds.values()))
        assert order[: len(calls)] == calls and "targets" not in order
        assert len(data.metas) == len(data.references) == len(found.plan.units(0)) and all(data.metas)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("override", "kept"),
    [("pipeline.staleness=0", {2}), ("pipeline.staleness=1", {3}), ("pipeline.colocate=true", set())],
)
def test_targets_are_made_one_round_ahead_unless_workers_rest(override: str, kept: set[int], tmp_path: Path) -> None:
    """One round ahead of those that are played; images of these are let go once they are scored."""
    found = coordinator(tmp_path, override)

    async def run() -> None:
        await found.round_for(1, 0, 1)
        await asyncio.gather(*found.ahead.values(), *(batch.whole for batch in found.rounds.values()))

    asyncio.run(run())
    assert {round for round, _ in found.ahead} == kept
    resting = int("colocate" in override)
    assert (found.rollout.workers[0].rested, found.reward.workers[0].rested) == (resting, resting)


def test_a_larger_reference_is_made_even_of_as_many_work_units(tmp_path: Path) -> None:
    """A validation's 7 images and an evaluation's 9 are two units of 5 each; each is made once."""
    found = coordinator(tmp_path, "evaluation.judge=random-features", "evaluation.batch=5")

    async def run() -> list[int]:
        answers = [await found.reference(count) for count in (7, 9, 9)]
        return [sum(len(meta.unit.groups) for metas in data.metas for meta in metas) for data in answers]

    assert asyncio.run(run()) == [7, 9, 9]
    assert [method for method, _ in found.reward.workers[0].calls] == ["reference"] * 4


def test_the_writer_hears_of_what_the_driver_asked_for(tmp_path: Path) -> None:
    """The writer hears with the answer, not with the next round: a run may end after a call of the driver."""
    found, told, work = coordinator(tmp_path), list[Any](), Work("teacher", 2.0, 4, ended=10.0)
    found.writer = SimpleNamespace(spans=SimpleNamespace(remote=told.append))
    found.reward.workers[0].work = (work,)
    unit = WorkUnit(7, 0, "policy", Stream.TRAIN, (0,), (None,))
    asyncio.run(found.ask("targets", (unit,)))
    assert told == [[{"row": "worker", "stage": "targets", "round": 7, "start": 8.0, "seconds": 2.0}]]
    assert not found.spans


def lost_argument() -> Exception:
    return RayTaskError("score", "", OwnerDiedError("ab", b"", "")).as_instanceof_cause()


def test_what_a_worker_could_not_fetch_is_made_again(tmp_path: Path) -> None:
    found = coordinator(tmp_path)
    found.reward.workers[0].errors["score"] = [lost_argument()]
    asyncio.run(found.deploy(1, 10, 0, "deploy-0", None))
    assert found.writer.noted == ["unit"]
    assert found.rollout.workers[0].calls == [("rollout", 0)] * 2


def test_what_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    found = coordinator(tmp_path)
    found.reward.workers[0].errors["score"] = [lost_argument() for _ in range(ATTEMPTS)]
    with pytest.raises(RayError, match=f"work unit 0 of round 0 was lost {ATTEMPTS} times"):
        asyncio.run(found.deploy(1, 10, 0, "deploy-0", None))


def fetch(answers: list[RoundData | None], get: Callable[[Any], Any]) -> tuple[Fetched, list[tuple[str, ...]]]:
    asked: list[tuple[str, ...]] = []

    def ask(lost: tuple[str, ...]) -> RoundData | None:
        asked.append(lost)
        return answers[min(len(asked), len(answers)) - 1]

    return fetched(ask, get), asked


def answer(*names: str) -> RoundData:
    return RoundData((), tuple((i, (Reference(name),)) for i, name in enumerate(names)), 0.0)


def get(given: Any) -> Any:
    if not isinstance(given, list):
        return given
    if any(reference.name.startswith("dead") for reference in given):
        raise ObjectLostError("", b"", "")
    return [reference.name for reference in given]


def test_all_that_is_lost_is_asked_for_at_once() -> None:
    found, asked = fetch([answer("dead-1", "a", "dead-2"), answer("b", "a", "c")], get)
    assert asked == [(), ("dead-1", "dead-2")]
    assert found.parts == {0: ["b"], 1: ["a"], 2: ["c"]}
    with pytest.raises(ObjectLostError):
        fetch([answer("dead")], get)
    with pytest.raises(Stopping):
        fetch([None], get)


def test_who_came_later_works_and_leaves_where_a_lost_learner_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, later = coordinator(tmp_path), {"rollout-1": Worker(), "reward-1": Worker()}

    async def run() -> None:
        assert await found.grown({}) is None
        await found.begin({})
        await found.begun_with()
        assert await found.grown(later) is True
        await found.round_for(1, 0, 1)
        await found.learner_lost()
        assert await found.grown(later) is None  # it may be back in a moment
        monkeypatch.setattr("redif_ray.coordinator.coordinator.PATIENCE_SECONDS", 0.0)
        await found.round_for(1, 1, 2)  # of a rank that does not know yet
        assert await found.grown(later) is False
        await found.begun_with()
        assert await found.grown(later) is True

    asyncio.run(run())
    assert {method for method, _ in later["rollout-1"].calls} == {"rollout"}
    assert {method for method, _ in later["reward-1"].calls} <= {"targets", "score"} and later["reward-1"].calls
