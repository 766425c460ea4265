from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redif_ray.data.encodings import EncodingStore, EncodingStoreError

TENSORS = {
    "states": torch.arange(6.0).reshape(1, 2, 3).transpose(1, 2),
    "pooled": torch.tensor([[0.1]]),
    "half": torch.tensor([[0.1, -0.0, 3e38]], dtype=torch.bfloat16),
}


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    store = EncodingStore(tmp_path, "abc")
    for caption in ("a cat", "", "日本 / .. \n", None):
        assert store.get(caption) is None
        store.put(caption, TENSORS)
        found = EncodingStore(tmp_path, "abc").get(caption)
        assert found is not None and all(torch.equal(found[name], value) for name, value in TENSORS.items())
        assert all(found[name].dtype == value.dtype for name, value in TENSORS.items())
        assert found["half"].signbit().tolist() == [[False, True, False]]
    assert len(list(store.folder.iterdir())) == 4 and EncodingStore(tmp_path, "other").get("a cat") is None


def test_constant_padding_takes_no_room(tmp_path: Path) -> None:
    """CLIP's 77 states of Stable Diffusion 3, whose upper channels are zeros, beside 256 states of T5."""
    states = torch.randn(1, 333, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    states[:, :77, 2048:] = 0
    store = EncodingStore(tmp_path, "abc")
    store.put("a cat", {"states": states})
    found = store.get("a cat")
    assert found is not None and torch.equal(found["states"], states)
    assert store.path("a cat").stat().st_size < 0.94 * states.nbytes


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    store = EncodingStore(tmp_path, "abc")
    store.put("a cat", TENSORS)
    store.path("a cat").write_bytes(store.path("a cat").read_bytes()[:-1])
    with pytest.raises(EncodingStoreError, match=f"{store.path('a cat')} is corrupt .*; delete it, and it is encoded"):
        store.get("a cat")
    store.folder.rename(tmp_path / "moved")
    with pytest.raises(EncodingStoreError, match=r"cannot write .*; free space or move teacher.store"):
        store.put("a dog", TENSORS)
    (tmp_path / "file").write_text("")
    with pytest.raises(EncodingStoreError, match=r"cannot be used: .*; set teacher.store to a folder"):
        EncodingStore(tmp_path / "file", "abc")
