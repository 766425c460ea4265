"""Text-to-image networks on the latents of a VAE. The family's own diffusers pipeline encodes the captions.

A process loads text encoders when it first has a caption to encode, and the VAE when it first decodes. Captions that
another process has encoded are read from the store.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from redif_ray.checkpoint import file_sha256
from redif_ray.data.encodings import EncodingStore
from redif_ray.data.targets import content_hash
from redif_ray.models.components import Parts, check_limit, check_tokens
from redif_ray.models.folder import (
    INDEX,
    flow_matching,
    load_network,
    load_scheduler,
    mu_by_tokens,
    read_index,
    without_weights,
)
from redif_ray.models.foreign import loading
from redif_ray.models.latents import check_scale, latent_shapes
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import SIZE_KEYS, Encoded, ModelError, stacked
from redif_ray.models.vae import VAE, LatentModel
from redif_ray.types import Condition

REMEMBERED = 64 * 2**20  # bytes on the device: 12 encoded captions of Stable Diffusion 3, 280 of 1.5
SHAPES: dict[tuple[object, ...], Encoded] = {}  # encodings on the device "meta", where long encoders take seconds
log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class TextModel(LatentModel):
    """A model whose condition is a caption; the condition None means no caption, as in guidance.

    frozen: tokenisers, text encoders and VAE. A family names its classes and parts, implements `output` and
    `encode_prompt`, and overrides what is otherwise with it.
    """

    takes_captions: ClassVar[bool] = True
    pipeline_kind: ClassVar[Any]  # a class of diffusers
    network_kind: ClassVar[Any]  # the class of the denoising network, of diffusers
    network_folder: ClassVar[str] = "transformer"
    names: ClassVar[tuple[str, ...]] = (VAE, "tokenizer", "text_encoder")  # parts that must exist
    optional: ClassVar[tuple[str, ...]] = ()  # parts that may be absent
    patch: ClassVar[int] = 1  # edge of the square of latents whose channels the network takes as one token's
    also_needs: ClassVar[tuple[str, ...]] = ()  # packages of the pipeline beside torch, diffusers and transformers
    known: dict[Condition, Encoded] = field(default_factory=dict, repr=False)  # by caption or edit, newest last
    store: EncodingStore | None = None  # encodings of all processes

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Self:
        """Load the model in `folder`, its networks in `dtype`. Raises ModelError."""
        network = load_network(cls.network_kind, folder, cls.network_folder, dtype)
        index, scheduler = read_index(folder), cls.read_scheduler(folder)
        frozen = Parts(folder, index, dtype, cls.names, optional=cls.optional)
        check_scale(frozen.configs[VAE], folder / VAE)
        shapes = cls.shapes(network, frozen.configs[VAE], folder / cls.network_folder)
        return cls(
            network=network,
            component=cls.network_folder,
            num_classes=None,
            index=index,
            frozen=frozen,
            dtype=dtype,
            **shapes,
            **cls.noise(scheduler, shapes["latent_shape"]),
        )

    @classmethod
    def read_scheduler(cls, folder: Path) -> Any:
        """Return the scheduler of the pipeline in `folder`."""
        return load_scheduler(folder)

    @classmethod
    def shapes(cls, network: Any, vae: Any, where: Path) -> dict[str, Any]:
        """Return `latent_shape` and `image_shape`; see `latent_shapes`. Raises ModelError for a network of others."""
        return latent_shapes(network, vae, where, cls.patch)

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        """Return the fields that follow from a scheduler, for latents of this shape; of (C,), where no size is known.

        Some pipelines shift the levels of larger images.
        """
        return flow_matching(scheduler)

    def make_pipeline(self, **parts: Any) -> Any:
        """Return a `pipeline_kind` with these tokenisers and text encoders, to encode captions with."""
        return self.pipeline_kind(**parts, vae=None, transformer=None, scheduler=self.scheduler)

    @abstractmethod
    def encode_prompt(self, caption: str | None) -> Encoded:
        """Return the network's inputs for one caption, or for none, made by `pipeline`: one row."""

    @property
    def pipeline_options(self) -> dict[str, Any]:
        """The arguments of a call of `pipeline_kind` without which it makes another image, whatever the guidance."""
        two_edges = isinstance(self.config.get("sample_size"), list | tuple)  # which some pipelines cannot multiply
        if self.size is None and not two_edges:
            return {}
        _, height, width = self.image_shape
        return {"height": height, "width": width}

    @property
    def token_limits(self) -> Mapping[str, int]:
        """The most tokens of a caption, by tokeniser, where the pipeline's limit is not the tokeniser's own."""
        return {}

    def pipeline_guidance(self, guidance: float) -> dict[str, Any]:
        """Return the arguments of a call of `pipeline_kind` for one caption that guide as `guided` does.

        They also hold what makes the call encode captions as `encode_prompt` does, where its defaults do not.
        """
        return {"guidance_scale": guidance}

    def at_size(self, height: int, width: int) -> Self:
        scale, own = self.scale, self.image_shape[1:]
        if (height, width) == own:
            return self
        if tuple(scale * edge for edge in self.latent_shape[1:]) != own:
            return super().at_size(height, width)  # a family with another layout of latents has to say how they grow
        multiple = self.size_multiple(scale)
        if height % multiple or width % multiple:
            near = " x ".join(str(max(multiple, round(edge / multiple) * multiple)) for edge in (height, width))
            raise ModelError(
                f"images of {height} x {width} pixels: a {type(self).__name__} takes multiples of {multiple}; set "
                f"{SIZE_KEYS} to such numbers, {near} for instance"
            )
        latent_shape = (self.latent_shape[0], height // scale, width // scale)
        image_shape = (self.image_shape[0], height, width)
        return replace(
            self,
            latent_shape=latent_shape,
            image_shape=image_shape,
            process=self.noise(self.scheduler, latent_shape)["process"],
            size=(height, width),
            known={},
        )

    def size_multiple(self, scale: int) -> int:
        """Return the number of which an image's height and width are multiples, in pixels.

        scale: pixels of the image along the edge of one latent.
        """
        return scale * self.patch

    def part(self, name: str) -> Any:
        """Return a tokeniser, text encoder or the VAE, loading it onto the network's device if it is not loaded yet."""
        if self.store and name not in self.frozen.loaded and self.frozen.kinds[name] is not None:
            log.warning("%s is loaded", self.frozen.folder / name)
        return super().part(name)

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline that encodes captions; it has no VAE and does not sample."""
        return self.make_pipeline(**self._checked_encoders())

    def _checked_encoders(self) -> dict[str, Any]:
        """Return the tokenisers and text encoders. Raises ModelError for those that do not fit together."""
        parts = {name: self.part(name) for name in self._encoders}
        for name, part in parts.items():
            if name in self.frozen.configs or part is None:
                continue
            if (encoder := parts.get(name.replace("tokenizer", "text_encoder"))) is not None:
                check_tokens(part, encoder, self.frozen.folder / name)
            if name not in self.token_limits:
                check_limit(part, self.frozen.folder / name)
        return parts

    @property
    def encoding_parts(self) -> list[str]:
        """The names of the parts that encode a condition."""
        return self._encoders

    @property
    def _encoders(self) -> list[str]:
        return [name for name in self.frozen.kinds if name != VAE]

    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        return stacked([self._encoded(condition) for condition in conditions])

    def null_conditions(self, batch: int) -> Encoded:
        return self.encode([None] * batch)

    def check_guidance(self) -> None:
        """Do nothing: every text-to-image network can be called without a caption."""

    def blank(self, batch: int) -> Encoded:
        empty = self
        if not self.frozen.empty:
            with without_weights():
                loaded = type(self).load(self.frozen.folder, self.dtype)
            empty = replace(loaded, latent_shape=self.latent_shape, image_shape=self.image_shape)
        encoded = empty.encode([self.example] * batch)
        return {name: torch.zeros_like(value, device=self.device) for name, value in encoded.items()}

    def cut_short(self, captions: Sequence[str]) -> list[str]:
        """Return the captions that every tokeniser would truncate."""
        cut = list(captions)
        for name in self._encoders:
            tokenizer = self.part(name) if name not in self.frozen.configs else None
            if tokenizer is None or not cut:
                continue
            limit = self.token_limits.get(name, tokenizer.model_max_length)
            with quiet():
                lengths = [len(ids) for ids in tokenizer(cut, truncation=False).input_ids]
            cut = [caption for caption, length in zip(cut, lengths, strict=True) if length > limit]
        return cut

    def unreadable(self, captions: Sequence[str]) -> list[str]:
        """Return the captions in which every tokeniser finds characters that are not in its vocabulary."""
        unread = list(captions)
        for name in self._encoders:
            tokenizer = self.part(name) if name not in self.frozen.configs else None
            if tokenizer is None or not unread:
                continue
            unknown = tokenizer.unk_token_id
            if unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):  # it takes bytes, and needs no such token
                return []
            with quiet():
                read = tokenizer(unread, truncation=False).input_ids
            unread = [caption for caption, ids in zip(unread, read, strict=True) if unknown in ids]
        return unread

    def parts_sha256(self, digest: Callable[[Path], str] = file_sha256) -> dict[str, str]:
        return self.frozen.files(list(self.frozen.kinds), digest) | {INDEX: content_hash(self._options)}

    @property
    def _options(self) -> dict[str, Any]:
        """The options in the index, without the classes of the parts, which are lists of words."""
        return {k: v for k, v in self.index.items() if not k.startswith("_") and not _is_class(v)}

    @torch.no_grad()
    def _encoded(self, condition: Condition) -> Encoded:
        """Encode one condition at a time, so that its encoding does not depend on the others of the batch."""
        self.check_condition(condition)
        if condition not in self.known:
            encoding = self._stored(condition)
            capacity = REMEMBERED // sum(value.nbytes for value in encoding.values())
            while self.known and len(self.known) >= capacity:
                self.known.pop(next(iter(self.known)))
            self.known[condition] = encoding
        return self.known[condition]

    def check_condition(self, condition: Condition) -> None:
        """Raise ModelError unless `condition` is one of this model's."""
        if not isinstance(condition, str | None):
            raise ModelError(f"condition {condition!r}: expected a caption, or None for none")

    def encode_condition(self, condition: Any) -> Encoded:
        """Return the network's inputs for one condition: one row."""
        return self.encode_prompt(condition)

    def _stored(self, condition: Any) -> Encoded:
        return self._without_data(condition) if self.frozen.empty else self._with_data(condition)

    def _without_data(self, condition: Any) -> Encoded:
        """Return the shapes of an encoding; the encoders are there after it, and have been called once in a process."""
        key = type(self), self.frozen.folder, self.dtype, self.image_shape, condition
        if key not in SHAPES:
            SHAPES[key] = self._with_data(condition)
        self._checked_encoders()
        return {name: torch.empty_like(value) for name, value in SHAPES[key].items()}

    def _with_data(self, condition: Any) -> Encoded:
        encoding = self.store.get(condition) if self.store else None
        if encoding is None:
            with quiet(), loading(f"a text encoder or tokeniser of {self.frozen.folder}"):
                encoding = self.encode_condition(condition)
            if self.store:
                self.store.put(condition, encoding)
        return {name: value.to(self.device).float() for name, value in encoding.items()}

    def keep_encodings(self, root: Path, digest: Callable[[Path], str] = file_sha256) -> None:
        """Share encodings with other processes through a folder in `root`, named by the hash of all that decides them.

        digest: sha256 of a file; the files of the parts that encode are hashed.
        """
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        rules = [type(self).__name__, str(self.dtype), self.image_shape, config, self._options]
        self.store = EncodingStore(root, content_hash([self.frozen.files(self.encoding_parts, digest), rules]))


def _is_class(entry: Any) -> bool:
    """Tell whether an entry of an index is the library and the class of a part, or null twice for an absent one."""
    return isinstance(entry, list) and all(isinstance(word, str | None) for word in entry)


def shifted_by_tokens(scheduler: Any, latent_shape: tuple[int, ...], patch: int) -> dict[str, Any]:
    """Return the fields of `flow_matching` where the scheduler may shift by the tokens of an image, patch^2 latents.

    Without a size there are no tokens, and the shift means nothing yet.
    """
    return flow_matching(scheduler, mu_by_tokens(scheduler, math.prod(latent_shape[1:]) // patch**2))
