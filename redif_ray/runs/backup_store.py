"""A run's copies on another file system. A copy is there whole or not at all, for what names its files is written last.

    <checkpoint.upload>/<run.name>/
        writer                which start of the run writes here
        round-000020.json     a copy: each file of the run folder, its checksum and where it lies
        files/<sha256>        what copies name, each content once
        report.md, student/   of a finished run: what it leaves, by its own names

Object stores cannot rename and `best` changes while a run goes on; so nothing that a copy names is ever written over,
and best, warm start, metrics and calibration of a copy are those that belong to its round.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from redif_ray.config import Config, ConfigError
from redif_ray.errors import UserError
from redif_ray.files import atomic_file, atomic_folder

FORMAT = 1
GS_RETRY_SECONDS = 5  # its client's own are 15 minutes a call, in which nobody hears anything; the uploader tries again
WRITER, FILES = "writer", "files"
BLOCK = 1 << 20


class UploadError(UserError, RuntimeError):
    """A copy that cannot be written or read; the message says what is lost, which is nothing, and what to do."""


@dataclass(frozen=True, slots=True)
class File:
    """at: its name below the run's remote folder."""

    sha256: str
    bytes: int
    at: str


@dataclass(frozen=True, slots=True)
class Copy:
    """The run folder as it was after `round` rounds. run: the run's own id; files: by their path in the run folder."""

    round: int
    run: str
    finished: bool
    files: dict[str, File]

    @property
    def name(self) -> str:
        return f"round-{self.round:06d}.json"

    def to_json(self) -> bytes:
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Copy | None:
        """None for a part of one."""
        try:
            tree = json.loads(text)
        except ValueError:
            return None
        if tree.pop("format") != FORMAT:
            raise UploadError(f"the copy of round {tree['round']} has another format; this version reads {FORMAT}")
        return cls(**tree | {"files": {path: File(**entry) for path, entry in tree["files"].items()}})


class Remote:
    """The copies of one run. Methods raise what the file system raises, except where they say otherwise."""

    def __init__(self, filesystem: fs.FileSystem, path: str, uri: str) -> None:
        self.filesystem, self.path, self.uri = filesystem, path, uri
        self._made: set[str] = set()

    @classmethod
    def connect(cls, config: Config) -> Remote:
        """Raises ConfigError where `checkpoint.upload` names no file system, or the run folder itself."""
        uri, name = str(config.checkpoint.upload), config.run.name
        try:
            filesystem, path = _filesystem(uri)
        except Exception as error:  # each library has its own for credentials, buckets and addresses
            raise ConfigError(f"checkpoint.upload={uri}: {_said(error)}") from error
        path = f"{path.rstrip('/')}/{name}"
        if isinstance(filesystem, fs.LocalFileSystem):
            own, there = Path(config.run.root).resolve() / name, Path(path).resolve()
            if own == there or own in there.parents or there in own.parents:
                raise ConfigError(f"checkpoint.upload={uri}: that is where the run folder {own} is; expected another")
        at = urlsplit(uri)
        return cls(filesystem, path, at._replace(path=f"{at.path.rstrip('/')}/{name}", query="").geturl())

    def check_writable(self) -> None:
        """Write, read and delete a small file. Raises UploadError."""
        name = f"token-{uuid.uuid4().hex}"
        try:
            self.write(name, b"redif\n")
            self.read(name)
            self.filesystem.delete_file(self._at(name))
        except Exception as error:  # see connect
            raise UploadError(
                f"checkpoint.upload: {self.uri} cannot be written ({_said(error)}); check that the bucket or disk is "
                "there and that the environment holds credentials to write it"
            ) from error

    def rounds(self) -> list[int]:
        """Of the copies, the newest first."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        names = [PurePosixPath(info.path).name for info in self.filesystem.get_file_info(selector)]
        found = [name for name in names if name.startswith("round-") and name.endswith(".json")]
        return sorted((int(name.removeprefix("round-").removesuffix(".json")) for name in found), reverse=True)

    def copies(self) -> list[Copy]:
        """Those that are whole, the newest first."""
        texts = [self.read(Copy(round, "", False, {}).name) for round in self.rounds()]
        return [copy for text in texts if text and (copy := Copy.from_json(text))]

    def size(self, name: str) -> int | None:
        """Bytes; None where there is no such file."""
        info = self.filesystem.get_file_info(self._at(name))
        return int(info.size) if info.type == fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""
        try:
            with self.filesystem.open_input_stream(self._at(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """In one step: an object store's files appear whole, those of a disk are renamed."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            Path(self.path).mkdir(parents=True, exist_ok=True)
            with atomic_file(Path(self._at(name))) as partial:
                partial.write_bytes(data)
        else:
            with self._open(name) as stream:
                stream.write(data)

    def put(self, source: Path, file: File, block: Callable[[], object]) -> None:
        """Copy a file there. block: called before each part. Raises UploadError where not all of it arrived."""
        with self._open(file.at) as stream, source.open("rb") as local:
            while data := local.read(BLOCK):
                block()
                stream.write(data)
        if (found := self.size(file.at)) != file.bytes:
            raise UploadError(f"{self.uri}/{file.at} has {found} bytes of {file.bytes}")

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` copies, each before what it alone names."""
        copies = self.copies()
        kept = {copy.name for copy in copies[:keep]}
        for round in self.rounds():
            if (name := Copy(round, "", False, {}).name) not in kept:
                self.filesystem.delete_file(self._at(name))
        named = {file.at for copy in copies[:keep] for file in copy.files.values()}
        for info in self.filesystem.get_file_info(fs.FileSelector(self._at(FILES), allow_not_found=True)):
            if f"{FILES}/{PurePosixPath(info.path).name}" not in named:
                self.filesystem.delete_file(info.path)

    def fetch(self, copy: Copy, folder: Path) -> None:
        """Make the run folder that `copy` is of, which must not exist; whole or not at all. Raises UploadError."""
        try:
            with atomic_folder(folder) as partial:
                for path, file in copy.files.items():
                    self._fetch(copy, path, file, partial)
                (partial / "checkpoints").mkdir(exist_ok=True)
        except (OSError, pa.ArrowException) as error:
            raise UploadError(f"cannot fetch {self.uri} to {folder}: {_said(error)}") from error

    def _fetch(self, copy: Copy, path: str, file: File, folder: Path) -> None:
        target = (folder / path).resolve()
        if folder.resolve() not in target.parents:
            raise UploadError(f"{self.uri}/{copy.name} names {path}, which is no file of a run folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._get(file, target) != file.sha256:
            raise UploadError(
                f"{self.uri}/{file.at} is not what was uploaded; delete {copy.name} there, and the copy before it is "
                "taken"
            )

    def _get(self, file: File, target: Path) -> str:
        """The checksum of what came; of what is not there any more, none."""
        digest = hashlib.sha256()
        try:
            stream = self.filesystem.open_input_stream(self._at(file.at))
        except FileNotFoundError:
            return ""
        with stream, target.open("wb") as local:
            while data := stream.read(BLOCK):
                digest.update(data)
                local.write(data)
        return digest.hexdigest()

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _open(self, name: str) -> Any:
        """A stream to write. Where there are folders, its own is made first."""
        parent = str(PurePosixPath(self._at(name)).parent)
        if parent not in self._made:
            self.filesystem.create_dir(parent, recursive=True)
            self._made.add(parent)
        return self.filesystem.open_output_stream(self._at(name))


def _filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """pyarrow's own for what it knows (file, s3, gs, hdfs, abfs), else fsspec's."""
    at = urlsplit(uri)
    if at.scheme in ("gs", "gcs") and "retry_limit_seconds" not in at.query:
        uri = at._replace(query=f"{at.query}&retry_limit_seconds={GS_RETRY_SECONDS}".lstrip("&")).geturl()
    try:
        return fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(uri)
    except ImportError as error:
        raise ImportError(f"the file system of {at.scheme}:// is not installed ({error})") from error
    except ValueError as error:
        known = "file, s3, gs, hdfs, abfs or one of fsspec's"
        raise ValueError(f"nothing here knows the scheme {at.scheme}://; expected {known}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
