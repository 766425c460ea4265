"""The driver computes in one thread, with torch and with NumPy's linear algebra."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from redif_ray.job.session import one_thread


def blas() -> set[int]:
    np.linalg.eigvalsh(np.eye(2))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_both_take_one_thread_in_the_block_and_as_many_as_before_after_it() -> None:
    before = torch.get_num_threads()
    with threadpool_limits(2, "blas"):
        outside = blas()
        with one_thread():
            assert blas() == {1} and torch.get_num_threads() == 1
        assert blas() == outside and torch.get_num_threads() == before
