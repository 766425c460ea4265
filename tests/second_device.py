"""A second device on a machine that has none: its tensors lie in host memory, and do with the CPU's what CUDA's would.

An operation on tensors of both is an error, but where CUDA takes it too: copies, the CPU's scalars in arithmetic, the
CPU's indices into the device's tensors. Results are real, so that what is computed there can be compared.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, library
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "standin"
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = (NAME, pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU]))  # of tests that a GPU can take, too
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
READING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
# Conjugation and negation by a bit of a tensor, which nothing here would read, and by numbers.
BY_A_BIT = {aten._conj.default: aten._conj_physical.default, aten._neg_view.default: aten.neg.default}
WAITS: Counter[str] = Counter()  # operations for whose result the CPU would wait until the device has computed it
CROSSINGS: Counter[str] = Counter()  # copies of a tensor to the device, "in", and back, "out"
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


class There(Tensor):
    """A tensor of the second device, `held` in host memory."""

    held: Tensor

    def __new__(cls, held: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, other: There) -> None:
        """Take the other's values, dtype and shape, as `parameter.data = parameter.data.float()` does."""
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    def item(self) -> Any:
        return self._read().item()

    def tolist(self) -> Any:
        return self._read().tolist()

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __bool__(self) -> bool:
        return bool(self._read())

    def _read(self) -> Tensor:
        WAITS["read"] += 1
        return self.held

    def __repr__(self, **_: Any) -> str:
        return f"There({self.held!r})"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    _check(func, args, kwargs)
    if _waits(func, args, kwargs):
        WAITS[str(func)] += 1
    if func in COPIES:
        CROSSINGS[_crosses(func, args, kwargs)] += 1
    device = kwargs.get("device")
    here, options = tree_map_only(There, lambda t: t.held, (args, kwargs))
    if device is not None:
        options["device"] = torch.device("cpu")
    found = BY_A_BIT.get(func, func)(*here, **options)
    out = kwargs.get("out")
    if isinstance(out, There) and out.shape != out.held.shape:  # as `arange`, whose `out` is empty at first
        out.data = There(out.held)
    if func in COPIES[:1] or func._schema.is_mutable:  # what was written to
        return out if out is not None else args[0] if func._schema.returns else None
    there = torch.device(device).type == NAME if device is not None else _any(There, (args, kwargs))
    return tree_map_only(Tensor, There, found) if there else found


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Raise what CUDA would."""
    device = kwargs.get("device")
    there = _any(There, (args, kwargs)) or (device is not None and torch.device(device).type == NAME)
    if not there or func in COPIES:
        return
    if _any(Generator, (args, kwargs)):
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of the CPU")
    if func in INDEXING and isinstance(args[0], There):  # by indices of either, but of values of its own
        args = (args[0], *args[2:])
    for tensor in tree_leaves((args, kwargs)):
        scalar = isinstance(tensor, Tensor) and tensor.ndim == 0 and torch.Tag.pointwise in func.tags
        if isinstance(tensor, Tensor) and not isinstance(tensor, There) and not scalar:
            raise RuntimeError(f"{func}: tensors of {NAME} and of the CPU, of shape {list(tensor.shape)}")


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether CUDA would let the CPU wait: for a result, or for a copy between memories, either way.

    Only a copy to the device that is asked not to block lets the CPU go on. The CPU's indices are copied first.
    """
    if func in COPIES:
        blocks = not (kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:3] == (True,)))
        return (way := _crosses(func, args, kwargs)) == "out" or (way == "in" and blocks)
    if func in INDEXING:
        given = [index for index in args[1] if index is not None]
        counted = any(isinstance(index, There) and index.dtype == torch.bool for index in given)
        return counted or (isinstance(args[0], There) and any(not isinstance(index, There) for index in given))
    return func in READING and isinstance(args[0], There)


def _crosses(func: Any, args: Any, kwargs: Any) -> str:
    """Return "in" for a copy to the device, "out" for one to main memory, "" for one within a memory."""
    device = kwargs.get("device")
    if func is aten.copy_.default:
        leaves, arrives = isinstance(args[1], There), isinstance(args[0], There)
    else:
        leaves = isinstance(args[0], There)
        arrives = leaves if device is None else torch.device(device).type == NAME
    return "" if leaves == arrives else "in" if arrives else "out"


def _any(kind: type, tree: Any) -> bool:
    return any(isinstance(leaf, kind) for leaf in tree_leaves(tree))


class _Module(_DummyBackendModule):
    """Not what others of the process would compute on by default."""

    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(target: There, source: Tensor, *_: Any) -> There:
    if not isinstance(source, There):
        CROSSINGS["in"] += 1
        WAITS["copy_"] += 1
    target.held.copy_(source.held if isinstance(source, There) else source)
    return target


_setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
_fallback = library.Library("_", "IMPL")
_fallback.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
_own = library.Library("aten", "IMPL", "PrivateUse1")  # what torch calls below Python: torch.tensor, for one
_own.impl("empty_strided", _empty_strided)
_own.impl("copy_", _copy)
