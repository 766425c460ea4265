"""Phases, of which a method consists: rounds that are rolled out, scored and learned from in one way.

A round passes through three kinds of process, and a phase defines the work of each of them:

    the plan            `rounds`, `groups`, `siblings`, `unit_groups`        planning/rounds.py
    a rollout worker    `plays`, `stds`                                      workers/rollout.py
    a reward worker     `teacher_images`, `asks_...`, `score`                workers/reward.py, workers/scoring.py
    the learner         `learner_reads`, `reads_means`, `ema`, `update`      learner/learner.py, loop.py

Processes that only plan hold phases too, and torch takes seconds to import, so a method's file imports numeric code
inside the functions that use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from redif_ray.diffusion.noise import Stream
from redif_ray.rewards.names import read_teacher
from redif_ray.types import Scored, Seen, Slopes, Trajectories, WorkUnit

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from redif_ray.config import Config, Lora
    from redif_ray.diffusion.schedules import Schedule
    from redif_ray.diffusion.solvers import JumpSolver
    from redif_ray.learning.round_update import Learning, Round
    from redif_ray.rewards.base import Rewards

Product = Literal["targets", "trajectories", "scored"]


@dataclass(frozen=True, slots=True)
class Prices:
    """Costs of the parts of a run, in network calls on one image; a guided call counts as two.

    student, teacher: cost of one prediction of each. target: mean cost of the teacher's image of a group. backward:
    cost of a forward and a backward pass, relative to a forward pass. replayed: True where the learner predicts every
    state once more before it trains.
    """

    student: int
    teacher: int
    target: float
    backward: float
    replayed: bool


@dataclass(frozen=True, slots=True)
class Calls:
    """Network calls on single images that each role makes for all rounds of a phase."""

    rollout: float = 0.0
    reward: float = 0.0
    learner: float = 0.0


class Companion(Protocol):
    """A network that a phase trains beside the student, or the weights of an earlier student.

    The learner keeps it, and every rank has the same one.
    """

    def belongings(self) -> list[Any]:
        """Return the networks and optimisers that leave a shared device between the learner's turns."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state` from the tensors of a whole checkpoint."""
        ...


class Scoring(ABC):
    """The operations that a reward worker offers to a phase, for one work unit of R rows and G groups."""

    unit: WorkUnit
    final: np.ndarray | None  # [R, *latent]: the last latents, if the phase asks for images
    trajectories: Trajectories | None  # if the phase asks for jumps
    targets: np.ndarray | None  # [G, C, H, W]: the teacher's images, if the phase needs them, as they travel

    @abstractmethod
    def terms(self) -> dict[str, np.ndarray]:
        """Return every reward term of the student's images, [R] float32 each."""

    @abstractmethod
    def teacher_terms(self) -> dict[str, np.ndarray]:
        """Return every reward term of the teacher's image in the student's place, [R] float32 each."""

    @abstractmethod
    def images(self) -> np.ndarray:
        """Return the student's images, [R, C, H, W] float32 in [0, 1]."""

    @abstractmethod
    def jumps(self, substeps: int, solver: JumpSolver = "euler") -> np.ndarray:
        """Return the teacher's jump of `substeps` steps from each visited state, [N, R, *latent] float32.

        A jump ends at the noise level of the student's mean, which is below the next level where the step explores.
        """

    @abstractmethod
    def gradients(self) -> Slopes:
        """Return the reward terms around the last latents, and their gradients there."""

    @abstractmethod
    def denoised(self) -> np.ndarray:
        """Return the teacher's prediction of the clean image from the noised last latents, [R, *latent] float32.

        `learning.matching.noised` adds the noise, as draw 0 of the unit's round.
        """

    @abstractmethod
    def seen(self) -> Seen:
        """Return measurements of the student's images beside the teacher's, which the worker makes if need be."""

    @abstractmethod
    def diversity(self) -> np.ndarray:
        """Return how far apart the student's and the teacher's images of each condition are, [conditions, 2]."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Tell whether a term of the run is trained on the student's images."""


class Phase(ABC):
    """Rounds of one kind. A phase keeps no state: every process of a run builds its own from the configuration.

    first_round, first_group: number of rounds and of groups in the phases before this one; `methods.phases_of` sets
    them.
    """

    name: ClassVar[str]  # used in metrics, checkpoints and work units
    title: ClassVar[str]  # used in texts for people
    plays: ClassVar[bool] = True  # whether workers roll out trajectories and score them
    asks_images: ClassVar[bool] = True  # whether `score` asks for the student's images or for rewards
    reads_last: ClassVar[bool] = False  # whether trajectories carry the last latents where no step explores
    learner_reads: ClassVar[tuple[Product, ...]] = ("trajectories", "scored")
    optimises_reward: ClassVar[bool] = (
        True  # whether the student may lose modes for the reward, which the guard watches
    )
    reward_chooses: ClassVar[bool] = True  # whether the highest validation reward is the best checkpoint, or the last
    trains_rewards: ClassVar[bool] = False  # whether a learned reward term trains on the phase's images
    scores_in_learner: ClassVar[bool] = False  # whether the learner decodes and evaluates rewards itself
    encodes_images: ClassVar[bool] = False  # whether the learner turns the teacher's images into latents
    earlier_students: ClassVar[int] = 0  # copies of the trained weights that a companion keeps

    def __init__(self, config: Config, first_round: int = 0, first_group: int = 0) -> None:
        self.config, self.first_round, self.first_group = config, first_round, first_group

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Return the number of rounds."""

    @property
    @abstractmethod
    def groups(self) -> int:
        """Return the number of groups in a round; a group has one start latent, condition and teacher image."""

    @property
    def siblings(self) -> int:
        """Return the number of trajectories in a group."""
        return 1

    @property
    def alike(self) -> int:
        """Return the number of consecutive groups that have the same condition, and noises of their own."""
        return 1

    @property
    def unit_groups(self) -> int:
        """Return the number of groups in a work unit, which has as many rows as a unit of the policy phase."""
        return self.config.rollout.unit_groups * self.config.rollout.siblings // self.siblings

    @property
    def teacher_images(self) -> bool:
        """Tell whether each group needs the teacher's image."""
        return True

    @property
    def decodes(self) -> int:
        """Return the number of the student's images that a reward worker decodes for a group."""
        return self.siblings if self.plays and self.asks_images else 0

    @property
    def differentiates(self) -> int:
        """Return the number of a group's images through whose decoding a reward worker takes a gradient back."""
        return 0

    @property
    def steps_held(self) -> int:
        """Return the number of steps of a microbatch's trajectories whose activations the learner holds at a time."""
        return 1

    @property
    def encodes_in_worker(self) -> bool:
        """Tell whether a reward worker turns the teacher's image of each group into a latent."""
        return False

    @property
    def ema(self) -> float:
        """Return the decay of the averaged weights, in [0, 1); 0 keeps no average."""
        return 0.0

    @property
    def second_network(self) -> Lora | None:
        """Return the adapters of a companion's network, of rank 0 for a whole copy; None without such a network."""
        return None

    def companion(self, learning: Learning) -> Companion | None:
        """Return what the phase keeps beside the student, as it is at first; the learner keeps it in checkpoints."""
        return None

    @property
    def asks_jumps(self) -> bool:
        """Tell whether `score` asks for the teacher's jumps, so that the reward worker needs every state."""
        return False

    @property
    def reads_every_state(self) -> bool:
        """Tell whether the update reads states after the last step that explores; otherwise these do not travel."""
        return True

    @property
    def reads_means(self) -> bool:
        """Tell whether the update reads the means of the rollout, so that trajectories carry them."""
        return True

    def begins_anew(self, round: int) -> bool:
        """Tell whether the averaged weights begin anew with a round of the phase, because it pursues another aim."""
        return False

    def stds(self, schedule: Schedule, round: int) -> Tensor:
        """Return the std S of each transition of a round, [N] float64; 0 is a deterministic step."""
        import torch

        return torch.zeros(schedule.steps, dtype=torch.float64)

    def score(self, scoring: Scoring) -> Scored:
        """Return the scores that the phase asks of a reward worker for a work unit."""
        raise NotImplementedError(f"phase {self.name} asks no reward worker for scores")

    def check(self, rewards: Rewards) -> None:  # noqa: B027
        """Raise RewardError where the phase cannot learn from these rewards; the default accepts all."""

    @abstractmethod
    def calls(self, prices: Prices) -> Calls:
        """Count the network calls of all rounds, for the estimate of a run."""

    @abstractmethod
    def update(self, learning: Learning, round: Round) -> dict[str, float]:
        """Train the student on a round; return metrics, alike on every rank."""


class MethodPhase(Phase):
    """The phase after the warm start of a built-in method, whose rounds and average are those of `learner`."""

    @property
    def rounds(self) -> int:
        return self.config.learner.rounds

    @property
    def ema(self) -> float:
        return self.config.learner.ema


class RewardedPhase(MethodPhase):
    """The phase of a built-in method that needs the teacher's images only where a reward term reads them."""

    @property
    def teacher_images(self) -> bool:
        return read_teacher(self.config.reward.terms)


class Deploy(Phase):
    """Samples of the student as it is deployed: no exploration, scored against the teacher, not learned from."""

    name, title, learner_reads = "deploy", "deployment", ("scored",)
    teacher_images = False  # the reward worker that measures the samples makes them itself, and no image travels
    rounds = groups = 0

    def score(self, scoring: Scoring) -> Scored:
        if scoring.unit.stream == Stream.DIVERSITY:
            return Scored(scoring.unit, {}, None, None, diversity=scoring.diversity())
        return Scored(scoring.unit, {}, None, None, seen=scoring.seen())

    def calls(self, prices: Prices) -> Calls:
        return Calls()

    def update(self, *_: Any, **__: Any) -> dict[str, float]:
        raise NotImplementedError("nothing is learned from deployed samples")
