"""Silence for diffusers and transformers: no progress bars, and no warning for each truncated caption."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet(least: int = logging.ERROR) -> Iterator[None]:
    """Log only errors and draw no progress bars in this block: a run has many processes and many captions.

    least: the level of what is logged; `logging.CRITICAL` where the libraries raise the errors that they log.
    """
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(least)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
