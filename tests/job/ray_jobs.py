"""Scripts of jobs/, submitted to the cluster that this process has joined."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.job_submission import JobStatus, JobSubmissionClient


def ran(script: str, *options: str) -> str:
    """The log of a job that succeeded, with this checkout as its working directory, which Ray uploads."""
    client = JobSubmissionClient(f"http://{ray.worker._global_node.webui_url}")  # type: ignore[attr-defined]
    command = " ".join([sys.executable, script, *options])
    here = Path(__file__).parents[2]
    job = submitted(client, entrypoint=command, runtime_env={"working_dir": str(here)})
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    log = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    return log


def submitted(client: JobSubmissionClient, **job: Any) -> str:
    """The id of the job. Ray's agent may still be on its way up, and says so."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if "try again later" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)
