"""A run says what a cluster lacks before it uses the cluster."""

from __future__ import annotations

import logging

import pytest
import ray

from redif_ray.cluster import connect


def test_a_store_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": 300e6})
    connect.warn_of_small_store(300 * 10**6)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        connect.warn_of_small_store(461_373_441)
    assert "hold 300 MB together and this run keeps up to 461 MB" in caplog.messages[0]
    assert "ray.object_store_mb=462" in caplog.messages[0]
