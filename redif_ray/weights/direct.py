"""Weights that are read out of the memory of the process that published them, by NIXL, and not by the object store.

One-sided: the reader does the work and gets the error; publisher and other readers notice neither its success nor its
death. Nothing tells a reader that memory was let go meanwhile, so what was read must be verified (`weights.fetch`).
"""

from __future__ import annotations

import importlib
import logging
import time
import uuid
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from redif_ray.config import ConfigError
from redif_ray.weights.store import Address

BACKEND = "UCX"
LOOK_SECONDS = 0.001


class ReadError(RuntimeError):
    """A read that failed, as a rule because the publisher's process went."""


class Offer:
    """Weights on the CPU that others may read until `withdraw`; nobody may change or free them before."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
        tensors, agent = list(self.weights.values()), _agent(answers=True)
        self._memory = agent.register_memory(tensors)
        self.address = Address(
            agent.name,
            agent.get_partial_agent_metadata(self._memory, inc_conn_info=True, backends=[BACKEND]),
            agent.get_serialized_descs(agent.get_xfer_descs(tensors)),
            tuple((name, tuple(w.shape), str(w.dtype).removeprefix("torch.")) for name, w in self.weights.items()),
        )

    def withdraw(self) -> None:
        """Let go of the memory: reads of it fail from now on, or bring other bytes."""
        _agent(answers=True).deregister_memory(self._memory)
        self.weights = {}


def read(address: Address) -> dict[str, Tensor]:
    """The weights that lie at `address`, as tensors of their own on the CPU, unverified. Raises ReadError."""
    agent = _agent(answers=False)
    weights = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in address.tensors}
    tensors = list(weights.values())
    memory, transfer = agent.register_memory(tensors), None
    try:
        agent.add_remote_agent(address.connection)
        places = agent.deserialize_descs(address.places)
        transfer = agent.initialize_xfer("READ", agent.get_xfer_descs(tensors), places, address.agent)
        state = agent.transfer(transfer)
        while state == "PROC":
            time.sleep(LOOK_SECONDS)
            state = agent.check_xfer_state(transfer)
    except Exception as error:  # NIXL's errors have no class of their own in common
        raise ReadError(f"NIXL could not read from {address.agent} ({type(error).__name__}: {error})") from error
    finally:
        if transfer is not None:
            agent.release_xfer_handle(transfer)
        agent.remove_remote_agent(address.agent)
        agent.deregister_memory(memory)
    if state != "DONE":
        raise ReadError(f"NIXL could not read from {address.agent} (state {state})")
    return weights


def require() -> None:
    """Raises ConfigError where NIXL is not installed, or lacks a library of its own."""
    try:
        importlib.import_module("nixl._api")
    except ImportError as error:
        raise ConfigError(
            f"pipeline.weights=direct: the package nixl cannot be imported ({error}); on every node of the learner "
            "and of rollout workers `pip install redif-ray[direct]`, or set pipeline.weights=store"
        ) from error


@cache
def _agent(*, answers: bool) -> Any:
    """This process's, made once. answers: to readers, by a thread that is awake all the time; a reader needs none."""
    require()
    from nixl._api import nixl_agent, nixl_agent_config

    logging.getLogger("nixl").setLevel(logging.WARNING)
    return nixl_agent(uuid.uuid4().hex, nixl_agent_config(enable_prog_thread=answers, backends=[BACKEND]))
