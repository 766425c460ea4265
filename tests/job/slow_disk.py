"""A file system that is slow, fails or hangs, as pyarrow sees it; beneath it is a folder."""

from __future__ import annotations

import threading
import time
from typing import Any

import pyarrow as pa
from pyarrow import fs


class SlowDisk(fs.FileSystemHandler):
    """seconds_a_mb: how slow writing is. fails: how many writes more raise; open: cleared, writing hangs.

    cuts: how many files more lose their end without a word.
    """

    def __init__(self) -> None:
        self.disk = fs.LocalFileSystem()
        self.seconds_a_mb, self.fails, self.cuts = 0.0, 0, 0
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.written: list[str] = []  # names, in the order in which they were begun

    def get_type_name(self) -> str:
        return "slow"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.disk.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self.disk.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.disk.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.disk.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    delete_root_dir_contents = delete_dir_contents

    def delete_file(self, path: str) -> None:
        self.disk.delete_file(path)

    def move(self, source: str, target: str) -> None:
        raise NotImplementedError("an object store")

    copy_file = move

    def open_input_stream(self, path: str) -> Any:
        return self.disk.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.disk.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.entered.set()
        self.open.wait()
        if self.fails:
            self.fails -= 1
            raise OSError("the bucket is away")
        self.written.append(path)
        return pa.PythonFile(_Throttled(self, self.disk.open_output_stream(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError


class _Throttled:
    closed = False

    def __init__(self, disk: SlowDisk, stream: Any) -> None:
        self.disk, self.stream, self.count = disk, stream, 0

    def write(self, data: Any) -> int:
        self.disk.open.wait()
        time.sleep(self.disk.seconds_a_mb * len(data) / 1e6)
        self.stream.write(data[:-1] if self.disk.cuts > 0 else data)
        self.disk.cuts -= 1
        self.count += len(data)
        return len(data)

    def tell(self) -> int:
        return self.count

    def flush(self) -> None: ...

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.stream.close()
