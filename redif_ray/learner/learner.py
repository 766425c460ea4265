"""The learner: Ray Train ranks that pull rounds, update the student, publish its weights and keep checkpoints.

Round r is rolled out with the weights after r - staleness rounds. A checkpoint holds everything that decides the next
weights, including the older versions with which later rounds are rolled out; a restarted learner begins at the newest
checkpoint and asks for its rounds again. Ranks may shard the student (`learner.fsdp`): every call that gathers it is
made on all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from redif_ray.checkpoint import load_checkpoint, pack, save_checkpoint
from redif_ray.config import LEARNED, Config
from redif_ray.diffusion.noise import Stream
from redif_ray.faults import Fetched, Stopping, fetched
from redif_ray.learner.compute import Accounts
from redif_ray.learner.judge import judge_of
from redif_ray.learner.learned_reward import learned_reward
from redif_ray.learner.ranks import Ranks
from redif_ray.learner.ray_train import Outcome
from redif_ray.learner.trainee import Trainee
from redif_ray.learner.validation import Validator
from redif_ray.learning.round_update import Round
from redif_ray.methods import Phase
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.sharding import shard, whole
from redif_ray.models.student import enable_checkpointing, get_weights
from redif_ray.planning import factory
from redif_ray.planning.rounds import Phases
from redif_ray.runs.backup_thread import uploader
from redif_ray.runs.folder import check_seen, latest_checkpoint, prune_checkpoints, round_of
from redif_ray.runs.gauges import RoundGauges
from redif_ray.runs.timeline import Stages, spans
from redif_ray.weights.publisher import Publisher
from redif_ray.weights.store import POLICY, learned_key
from redif_ray.weights.versions import Versions
from redif_ray.workers.offload import Belonging, Offload, home


class Learner:
    """One rank of the learner.

    job: `config`, handles of the `coordinator`, the metrics `writer` and the store of `weights`, the run's `folder` and
    its `token`, and the round `until` which to train.
    """

    def __init__(self, job: Mapping[str, Any], rank: int, world: int) -> None:
        config: Config = job["config"]
        torch.set_num_threads(config.learner.threads)
        self.config, self.ranks = config, Ranks(rank, world)
        self.coordinator, self.writer = job["coordinator"], job["writer"]
        self.publisher = Publisher(job["weights"])
        self.folder, self.token, self.until = Path(job["folder"]), job["token"], int(job["until"])
        device, offload = factory.device(config.learner.gpus), config.pipeline.colocate
        teacher = factory.frozen(config, home(device, offload))
        self.student = factory.student(config, teacher)
        if config.learner.activation_checkpointing:
            enable_checkpointing(self.student)
        self.plan = Phases(config)
        self.versions = Versions(
            self.plan, self.publisher if self.ranks.first else None, factory.travelling_dtypes(config, self.student)
        )
        self.accounts = Accounts(config)
        self.learned = learned_reward(config, teacher, device, self.ranks.all_reduce)
        reference = self._share_out(teacher) if config.learner.fsdp else teacher
        self.trainee = Trainee(config, self.student, reference, self.ranks)
        self.validator: Validator | None = None
        self.round = 0
        self.best: dict[str, float] | None = None
        self.logged: list[Any] = []  # references of rows that the writer has not confirmed yet
        self.stages, self.gauges = Stages(f"learner-{rank}", self.writer), RoundGauges(config.run.name)
        lost = self.writer.lost.remote
        self.uploader = uploader(config, self.folder, lambda: lost("upload")) if self.ranks.first else None
        self.trainee.start(self.plan.phase(0))
        self.offload = Offload(device, self._belongings, taken=offload)
        self.offload.rest()

    @property
    def phase(self) -> Phase:
        """Return the phase that trains the student now."""
        return self.trainee.phase

    def _belongings(self) -> list[Belonging]:
        """Return everything that this rank keeps on its device and moves to host memory between its turns."""
        return [*self.trainee.belongings(), *([] if self.learned is None else self.learned.belongings())]

    def _share_out(self, teacher: DiffusionModel) -> DiffusionModel | None:
        """Shard the student, and the teacher where a regulariser uses it; return the teacher then, else None.

        The two have no parameters in common.
        """
        shard(self.student)
        if self.config.learner.regulariser.kind == "none":
            return None
        shard(teacher)
        return teacher

    def run(self) -> Outcome:
        """Train until the round `until`, or until the coordinator says that the run is to stop."""
        check_seen(self.token)
        calibration = ray.get(self.coordinator.begun_with.remote())
        if calibration is None:
            newest = latest_checkpoint(self.folder / "checkpoints")
            return Outcome(0 if newest is None else round_of(newest), True, self.accounts.ledger.state())
        if self.ranks.first:
            judge = judge_of(self.coordinator, self.config.validation.groups, self.accounts)
            self.validator = Validator(self.config, calibration, judge)
        self.offload.wake()
        restored = self._restore()
        self._begin()
        if not restored:
            self._first_validation()
        while self.round < self.until:
            round, started = self.round, time.perf_counter()
            if self.plan.phase(round) is not self.phase:
                self.trainee.start(self.plan.phase(round))
            data = self._data(round)
            if data is None:
                self._checkpoint()
                return Outcome(round, True, self.accounts.ledger.state())
            with self.stages.stage("update", round):
                metrics = self._train(round, data)
            data.parts.clear()  # lets the object store free the round
            self.round += 1
            self.versions.add(self.round, self._current())
            self._after_round(round, metrics, data, started)
        self.stages.send()
        ray.get(self.logged)
        return Outcome(self.round, False, self.accounts.ledger.state())

    def _data(self, round: int) -> Fetched | None:
        """Return a round's data, or None on every rank if the coordinator told one of them to stop."""
        try:
            with self._workers_turn():
                data = self._ask(self.coordinator.round_for, round, self.ranks.rank, self.ranks.world)
        except Stopping:
            data = None
        return None if self.ranks.any(data is None, self.student.device) else data

    def _ask(self, method: Any, *arguments: Any) -> Fetched:
        return fetched(lambda lost: method.remote(*arguments, lost), self.publisher.get)

    @contextmanager
    def _workers_turn(self) -> Iterator[None]:
        """Leave the devices to the workers while the block runs.

        Where devices are shared, all ranks enter and leave together: the workers of each device serve all of them.
        """
        with self.offload.resting():
            self._meet()
            try:
                yield
            finally:
                self._meet()

    def _meet(self) -> None:
        if self.offload.taken:
            self.ranks.wait()

    def _train(self, round: int, data: Fetched) -> dict[str, float]:
        """Update the student and the learned reward on a round; return the metrics."""
        behaviour = self.versions.policy(round)
        made_by = self.versions.checksum(self.plan.version(round))
        metrics = self.trainee.update(Round(round, data.metas, data.parts, behaviour, made_by))
        metrics |= {"seconds/fetch": data.fetch_seconds, "staleness": float(round - self.plan.version(round))}
        if self.learned is not None and self.phase.trains_rewards:
            metrics |= self.learned.update(round, data.metas, data.parts, self.versions.learned(round))
        self.accounts.add_round(data, metrics)
        return metrics

    def _after_round(self, round: int, metrics: dict[str, float], data: Fetched, started: float) -> None:
        """Validate, log and checkpoint on rank 0; every rank calls this, to gather the weights together."""
        last = self.round == self.until
        boundary = self.round < self.plan.rounds and self.plan.phase(self.round) is not self.phase
        validates = last or boundary or self.round % self.config.validation.every == 0
        deployed = self.trainee.deployed(keep=self.ranks.first) if validates else {}
        scores = self._validate(deployed) if validates else {}
        if self.ranks.first:
            self._log_round(round, metrics | scores, data, started)
        if boundary:
            self._save(self.phase.name, pack("deploy", deployed), {"version": self.round})
        if last or self.round % self.config.checkpoint.every == 0:
            self._checkpoint()

    def _log_round(self, round: int, metrics: dict[str, float], data: Fetched, started: float) -> None:
        row: dict[str, Any] = {"round": round, "phase": self.phase.name, "policy_version": self.round, **metrics}
        seconds = time.perf_counter() - started
        groups = len({g for metas in data.metas for g in metas[0].unit.groups})
        row |= {"groups_per_second": groups / seconds, "seconds/round": seconds, "seconds/gather": data.gather_seconds}
        if self.offload.taken:
            row["seconds/offload"], self.offload.seconds = self.offload.seconds, 0.0
        row |= {f"compute/{name}_nfe": entry["nfe"] for name, entry in self.accounts.ledger.state().items()}
        self.gauges.set(row, [*spans(m for metas in data.metas for m in metas), *self.stages.passed])
        self._log(row)

    def _log(self, row: dict[str, Any]) -> None:
        """Send a row to the writer, and raise the writer's error for an earlier row."""
        rows = [*self.logged, self.writer.log.remote(row)]
        confirmed, self.logged = ray.wait(rows, num_returns=len(rows), timeout=0)
        ray.get(confirmed)
        self.stages.send()

    def _validate(self, deployed: Mapping[str, Tensor]) -> dict[str, float]:
        """Measure reward and recall on rank 0 and keep the best student. Raises GuardError for one that lost modes."""
        scores, collapsed = self._deploy(deployed), None
        if self.validator is not None:
            self._keep_best(scores["validation/reward"], deployed)
            collapsed = self.validator.collapsed(scores, self.round) if self.phase.optimises_reward else None
        if self.ranks.any(collapsed is not None, self.student.device):
            self._checkpoint()
        if collapsed is not None:
            raise collapsed
        return scores

    def _keep_best(self, reward: float, deployed: Mapping[str, Tensor]) -> None:
        if self.phase is not self.plan.phases[-1]:
            return
        if self.best is None or reward > self.best["reward"] or not self.phase.reward_chooses:
            self.best = {"reward": reward, "round": float(self.round)}
            self._save("best", pack("deploy", deployed), {"version": self.round, "reward": reward})

    def _deploy(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Return reward and recall at eta 0 of `weights` on the validation noises, and log a picture of the samples.

        Rank 0 measures them; the other ranks, for which the result is empty, leave their devices to the workers.
        """
        if self.validator is None:
            with self._workers_turn():
                return {}
        self.versions.deploy(self.round, weights)
        count = self.config.validation.groups
        key, learned = f"deploy-{self.round}", learned_key(self.config, self.round)
        with self.stages.stage("validation", self.round):
            with self._workers_turn():
                data = self._ask(self.coordinator.deploy, int(Stream.VALIDATION), count, self.round, key, learned)
            scores, picture = self.validator(data)
        self.accounts.add_evaluation(meta for metas in data.metas for meta in metas)
        self.writer.image.remote("validation/samples", picture, self.round)
        return scores

    def _begin(self) -> None:
        """Publish all weights that later rounds are rolled out with, before any rank asks for a round."""
        if self.ranks.first:
            ray.get(self.coordinator.restart.remote())
        self.versions.begin(self.round, self._current())
        self.ranks.wait()

    def _current(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights to publish, by kind."""
        learned = {} if self.learned is None else {LEARNED: self.learned.weights()}
        return learned | {POLICY: get_weights(self.student)}

    def _checkpoint(self) -> None:
        tensors = self.trainee.state(keep=self.ranks.first)
        if not self.ranks.first:
            return
        if self.learned is not None:
            tensors |= self.learned.state()
        stale, keys = self.versions.state(self.round)
        tensors |= stale
        meta = {
            "round": self.round,
            "phase": self.phase.name,
            "best": self.best,
            "stale": keys,
            "running": self.trainee.running.state_dict(),
            "ledger": self.accounts.ledger.state(),
            "weights_sha256": self.versions.checksum(self.round),
            "guard": self.validator.start_recall if self.validator else None,
        }
        self._save(f"round-{self.round:06d}", tensors, meta)
        self._upload()
        prune_checkpoints(self.folder / "checkpoints", self.config.checkpoint.keep)

    def _save(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if self.ranks.first:
            with self.stages.stage("checkpoint", self.round):
                save_checkpoint(self.folder / "checkpoints" / name, tensors, meta)

    def _upload(self) -> None:
        """Hand the newest checkpoint to the uploader, which waits for the rows of its rounds while training goes on."""
        if self.uploader is not None:
            rows = list(self.logged)
            self.uploader.hand(ready=lambda: ray.get(rows))

    def leave(self) -> None:
        """Stop the uploader; the driver uploads what is missing."""
        if self.uploader is not None:
            self.uploader.leave()

    def _restore(self) -> bool:
        """Restore the newest checkpoint; return False where there is none yet."""
        path = latest_checkpoint(self.folder / "checkpoints")
        if path is None:
            return False
        tensors, meta = load_checkpoint(path)
        self.round, self.best = int(meta["round"]), meta["best"]
        self.trainee.start(self.plan.named(meta["phase"]))
        self.trainee.load(tensors)
        if self.learned is not None:
            self.learned.load(tensors)
        self.versions.load(tensors, meta.get("stale", []))
        self.trainee.running.load_state_dict(meta["running"])
        self.accounts.load(meta["ledger"])
        if self.validator is not None:
            self.validator.start_recall = float(meta["guard"])
        self._upload()
        return True

    def _first_validation(self) -> None:
        """Validate and log the untrained student: the first point of the curves, and the guard's reference recall."""
        scores = self._deploy(whole(self.trainee.parameters, keep=self.ranks.first))
        if self.validator is None:
            return
        self.validator.start_recall = scores["validation/recall"]
        terms = self.validator.calibration.items()
        scores |= {f"calibration/{term}/{point}": value for term, points in terms for point, value in points.items()}
        self._log({"round": -1, "phase": "start", "policy_version": 0, **scores})
