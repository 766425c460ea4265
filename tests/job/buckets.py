"""Object stores on loopback that speak the protocols of S3 and of Google Cloud Storage to pyarrow's own clients."""

from __future__ import annotations

import logging
import socket
import uuid
from typing import Any

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import APIThread
from gcp_storage_emulator.storage import Storage
from moto.server import ThreadedMotoServer
from pyarrow import fs

SCHEMES = ("s3", "gs")


class Bucket:
    """A bucket, there or away; what it holds stays."""

    def __init__(self, scheme: str) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.scheme, self.name = scheme, f"bucket-{uuid.uuid4().hex[:8]}"  # moto remembers those of a process
        self.server: Any = None
        self.storage = Storage(use_memory_fs=True)  # of gs; moto has its own
        create_bucket(self.name, self.storage)
        self.come()
        if scheme == "s3":
            fs.FileSystem.from_uri(f"{self.at('x')}&allow_bucket_creation=true")[0].create_dir(self.name)

    def at(self, path: str, name: str | None = None) -> str:
        who, region = ("", "region=us-east-1&") if self.scheme == "s3" else ("anonymous@", "")
        query = f"{region}scheme=http&endpoint_override=127.0.0.1:{self.port}"
        return f"{self.scheme}://{who}{name or self.name}/{path}?{query}"

    def come(self) -> None:
        if self.scheme == "s3":
            self.server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        else:
            self.server = APIThread("127.0.0.1", self.port, self.storage)
        self.server.start()
        if self.scheme == "gs":
            self.server.is_running.wait()

    def go(self) -> None:
        self.server.stop() if self.scheme == "s3" else self.server.join()
