"""Training of the discriminator on one round: it learns to tell the student's images from the teacher's.

    loss = mean over student images of softplus(D(x)) + mean over teacher images of softplus(-D(y)) + r1 / 2 |dD/dy|^2

This is the non-saturating logistic loss with R1, the gradient penalty on the real images alone (Mescheder et al.,
arXiv 1801.04406). |dD/dy|^2 is summed over the values of an image in [0, 1].
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redif_ray.learning.gradients import AllReduce, Gradients
from redif_ray.learning.step import optimiser_step
from redif_ray.models.discriminator import Discriminator

TEACHER_PASS = 6.5  # counted FLOPs of `teacher_loss` with its backward pass, in forward passes; `student_loss` takes 3
BETAS = (0.0, 0.99)  # Adam without momentum, which makes adversarial training oscillate (Mescheder et al., section 4)


def optimiser(network: Discriminator, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=lr, betas=BETAS)


@dataclass(frozen=True, slots=True)
class Images:
    """The student's or the teacher's images that one rank holds.

    images: [n, C, H, W] in [0, 1]. labels: class of each image, [n]; None: no labels. total: images of all ranks.
    """

    images: Tensor
    labels: Tensor | None
    total: int

    def split(self, size: int) -> list[Images]:
        labels = [None] * -(-len(self.images) // size) if self.labels is None else self.labels.split(size)
        return [Images(x, y, self.total) for x, y in zip(self.images.split(size), labels, strict=True)]


def student_loss(network: Discriminator, student: Images) -> tuple[Tensor, Tensor]:
    """Return (this rank's share of the round's loss, logits [n])."""
    logits = network(student.images, student.labels)
    return functional.softplus(logits).sum() / student.total, logits


def teacher_loss(network: Discriminator, teacher: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Return (this rank's share of the round's loss, logits [n], |dD/dy|^2 [n] with its gradient)."""
    images = teacher.images.detach().requires_grad_()
    logits = network(images, teacher.labels)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    penalty = gradient.square().flatten(1).sum(1)
    return functional.softplus(-logits).sum() / teacher.total, logits, penalty


class DiscriminatorUpdater:
    """Trains the discriminator on the images of a round. Its whole state is in the network and the optimiser.

    Every step uses all images of the round, in microbatches. Each rank takes the images that it holds, divides by the
    count of the whole round, and gradients are summed over ranks, so every rank ends with the same network.
    """

    def __init__(
        self,
        network: Discriminator,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        r1: float,
        microbatch: int,
        all_reduce: AllReduce | None = None,
    ) -> None:
        self.network, self.optimizer, self.steps, self.r1 = network, optimizer, steps, r1
        self.microbatch, self.all_reduce = microbatch, all_reduce

    def run(self, student: Images, teacher: Images, *, where: str) -> dict[str, float]:
        """Train on a round; return metrics of the whole round, alike on every rank.

        student: images ordered by group as `teacher` is, equally many in each group. where: start of an error's text.
        The metrics are loss and penalty as means over the steps, and three fractions measured before training on these
        images: the student's and the teacher's images that are classified correctly, and `ranked`, the student's images
        with a lower logit than the teacher's image of their group, which does not depend on what the images show.

        Raises FloatingPointError where the loss or a gradient is not finite.
        """
        started = time.perf_counter()
        self.network.requires_grad_(True)
        rows = []
        for step in range(self.steps):
            gradients = Gradients(self.optimizer, self.all_reduce)
            values = self._backward(gradients, student, teacher)
            rows.append(values)
            losses = {"student": float(values[0]), "teacher": float(values[1]), "penalty": float(values[2])}
            optimiser_step(gradients, losses, float("inf"), f"{where}, discriminator step {step}")
        self.network.requires_grad_(False)
        sums = torch.stack(rows)
        if self.all_reduce is not None:
            self.all_reduce([sums])
        loss, penalty = float(sums[:, :2].sum(1).mean()), float(sums[:, 2].mean())
        shares = dict(zip(("student_accuracy", "teacher_accuracy", "ranked"), sums[0, 3:].tolist(), strict=True))
        return {"loss": loss, "penalty": penalty, **shares, "seconds": time.perf_counter() - started}

    def _backward(self, gradients: Gradients, student: Images, teacher: Images) -> Tensor:
        """Add this rank's share to the gradients; return its shares of two losses, penalty, three fractions, [6]."""
        values, of_student, of_teacher = torch.zeros(6, dtype=torch.float64, device=student.images.device), [], []
        for part in student.split(self.microbatch):
            loss, logits = student_loss(self.network, part)
            gradients.add(loss, last=False)
            values[0] += loss.detach()
            of_student.append(logits.detach())
        for part in (parts := teacher.split(self.microbatch)):
            loss, logits, squares = teacher_loss(self.network, part)
            penalty = squares.sum() / part.total
            gradients.add(loss + self.r1 / 2 * penalty, last=part is parts[-1])
            values[1] += loss.detach()
            values[2] += penalty.detach()
            of_teacher.append(logits.detach())
        below, above = torch.cat(of_student), torch.cat(of_teacher)
        values[3], values[4] = (below < 0).sum() / student.total, (above > 0).sum() / teacher.total
        values[5] = (below.reshape(len(above), -1) < above[:, None]).sum() / student.total
        return values
