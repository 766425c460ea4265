"""Lumina-Image 2.0 (arXiv 2503.21758): a transformer over the tokens of caption and image, trained by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor

from redif_ray.models.folder import flow_matching, mu_by_tokens
from redif_ray.models.latents import check_axes
from redif_ray.models.protocol import Encoded
from redif_ray.models.text import TextModel

TOKENS = 256  # of a caption with the system's prompt before it


class Lumina2(TextModel):
    """The transformer of Lumina2Pipeline: a language model's states of a caption that follows the system's prompt."""

    pipeline_kind: ClassVar[Any] = Lumina2Pipeline
    network_kind: ClassVar[Any] = Lumina2Transformer2DModel
    token_limits: ClassVar[dict[str, int]] = {"tokenizer": TOKENS}

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        model = super().load(folder, dtype)
        if model.device.type == "meta":
            network: Any = model.network
            network.rope_embedder = _with_data(network.rope_embedder)
        return model

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return flow_matching(scheduler, mu_by_tokens(scheduler, latent_shape[0]))  # the pipeline counts channels

    def at_size(self, height: int, width: int) -> Self:
        check_axes(self.config.axes_lens, height, width, self.size_multiple(self.scale))
        return super().at_size(height, width)

    def size_multiple(self, scale: int) -> int:
        return scale * int(self.config.patch_size)

    def cut_short(self, captions: Sequence[str]) -> list[str]:
        opening = f"{self.make_pipeline(tokenizer=None, text_encoder=None).system_prompt} <Prompt Start> "
        cut = super().cut_short([opening + caption for caption in captions])
        return [caption.removeprefix(opening) for caption in cut]

    def encode_prompt(self, caption: str | None) -> Encoded:
        """Return the states and their mask. No caption is an empty one without the system's prompt."""
        *known, empty, empty_mask = self.pipeline.encode_prompt(
            caption or "", do_classifier_free_guidance=caption is None, device=self.device, max_sequence_length=TOKENS
        )
        states, mask = (empty, empty_mask) if caption is None else known
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        """Return minus the network's output, which points from noise to data, at its time 1 - sigma."""
        time = 1 - timestep.float() / self.scheduler.config.num_train_timesteps
        mask = encoded["encoder_attention_mask"].bool()
        return -self.call_network(x, time, **encoded | {"encoder_attention_mask": mask}).sample

    def guided(self, cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
        """Return uncond + w (cond - uncond), each row of latents scaled to the norm that it has in `cond`."""
        found = super().guided(cond, uncond, guidance)
        return found * (cond.norm(dim=-1, keepdim=True) / found.norm(dim=-1, keepdim=True))


def _with_data(positions: Any) -> Any:
    """Return the module of a network's positions with its table, for captions of the full length.

    The network asks the mask for the captions' lengths, which no mask on the device "meta" tells.
    """
    made = type(positions)(positions.theta, positions.axes_dim, positions.axes_lens, positions.patch_size)
    made.register_forward_pre_hook(_at_full_length)
    return made


def _at_full_length(_: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return inputs[0], torch.ones(inputs[1].shape, dtype=torch.bool)
