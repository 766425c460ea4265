"""The calls of networks on the device "meta" whose activations `planning.memory` counts."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_ray.learning.discriminator import Images, student_loss, teacher_loss
from redif_ray.models.folder import cast
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import DiffusionModel
from redif_ray.rewards.discriminator import DiscriminatorTerm


def ready(model: DiffusionModel) -> int:
    """Cast a network to its dtype of computation, as meta tensors have no autocast; return the bytes of what it cast.

    Trained weights get gradients, so that a peak leaves these out.
    """
    before = [(parameter, parameter.dtype) for parameter in model.network.parameters()]
    with quiet():
        cast(model.network, model.dtype)
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    return sum(p.numel() * p.element_size() for p, dtype in before if p.dtype != dtype)


@torch.no_grad()
def predict(model: DiffusionModel, rows: int, guidance: float) -> None:
    """Predict for `rows` images as a worker does."""
    _forward(model, rows, guidance)


@torch.no_grad()
def decode(model: DiffusionModel, rows: int) -> None:
    """Decode the latents of `rows` images."""
    model.decode(torch.empty(rows, *model.latent_shape, device="meta"))


@torch.no_grad()
def encode_images(model: DiffusionModel, rows: int) -> None:
    """Encode `rows` images to latents."""
    model.encode_images(torch.empty(rows, *model.image_shape, device="meta"))


def decode_and_back(model: DiffusionModel, rows: int) -> None:
    """Decode the latents of `rows` images and take a gradient of the images back to these."""
    latents = torch.empty(rows, *model.latent_shape, device="meta", requires_grad=True)
    torch.autograd.grad(model.decode(latents).sum(), latents)


def train(student: DiffusionModel, states: int, guidance: float) -> None:
    """Make the gradient of a microbatch of `states`."""
    _forward(student, states, guidance).sum().backward()


def learn(term: DiscriminatorTerm | None, states: int, teacher_images: int) -> None:
    """Train the learned reward on a microbatch, which peaks at the second gradient of the teacher's images."""
    if term is None:
        return
    term.network.requires_grad_(True)
    term.network.zero_grad()  # a second count would find the gradients of the first
    images = torch.empty(states, *term.setting.image_shape, device="meta")
    labels = torch.zeros(states, dtype=torch.int64, device="meta")
    student_loss(term.network, Images(images, labels, 1))[0].backward()
    loss, _, squares = teacher_loss(term.network, Images(images[:teacher_images], labels[:teacher_images], 1))
    (loss + squares.sum()).backward()


def _forward(model: DiffusionModel, rows: int, guidance: float) -> Tensor:
    with torch.no_grad():
        encoded = {name: value.to("meta") for name, value in model.encode([model.example] * rows).items()}
    x = torch.empty(rows, *model.latent_shape, device="meta")
    return model.predict(x, model.process.noisiest(), encoded, guidance=guidance).x0
