"""The copies of a run on another file system, each in its own folder, which is never written again.

    <checkpoint.upload>/<run.name>/
        writer                    the id of the start of the run that may write here
        round-000020-5c1f9a3e/    a copy: the run folder after that round, with the best student until then; the copy
            copy.json             of a finished run also has the report, the pictures and the student. copy.json lists
                                  each file with its checksum. It is written last and deleted first, so that a folder
                                  without copy.json is not a copy

Object stores have no renames and no locks; so each copy has a new folder, in which only one process writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from redif_ray.checkpoint import file_sha256
from redif_ray.config import Config, ConfigError
from redif_ray.errors import UserError
from redif_ray.files import atomic_folder

log = logging.getLogger(__name__)
FORMAT = 2
GS_RETRY_SECONDS = 5  # the client retries silently for 15 minutes by default; the uploader retries by itself
WRITER, COPY = "writer", "copy.json"
BLOCK = 1 << 20


class UploadError(UserError, RuntimeError):
    """A copy cannot be written or read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the run folder after `round` rounds.

    name: folder of the copy; run: id of the run; finished: the copy is of the finished run; sha256: checksum of each
    file, by the file's path in the run folder.
    """

    name: str
    round: int
    run: str
    finished: bool
    sha256: dict[str, str]


class Remote:
    """The copies of one run. Methods raise the errors of the file system, unless their docstrings say otherwise."""

    def __init__(self, filesystem: fs.FileSystem, path: str, uri: str) -> None:
        self.filesystem, self.path, self.uri = filesystem, path, uri

    @classmethod
    def connect(cls, config: Config) -> Remote:
        """Open `checkpoint.upload`.

        Raises ConfigError where the key names no file system, or a place in or around the run folder.
        """
        uri, name = config.checkpoint.upload, config.run.name
        assert uri is not None
        try:
            filesystem, path = _filesystem(uri.reveal("checkpoint.upload"))
        except UserError:
            raise
        except Exception as error:  # each library has its own errors for credentials, buckets and addresses
            raise ConfigError(f"checkpoint.upload={uri}: {_first_line(error)}") from None
        path = f"{path.rstrip('/')}/{name}"
        if isinstance(filesystem, fs.LocalFileSystem):
            run_folder, target = Path(config.run.root).resolve() / name, Path(path).resolve()
            if run_folder == target or run_folder in target.parents or target in run_folder.parents:
                raise ConfigError(
                    f"checkpoint.upload={uri}: {target} overlaps the run folder {run_folder}; choose a place "
                    "outside of it"
                )
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
                f"checkpoint.upload: {self.uri} cannot be written ({_first_line(error)}); check that the bucket or "
                "disk exists and that the environment holds credentials to write it"
            ) from None

    def copies(self) -> list[Copy]:
        """Return the complete copies, the newest first. Raises UploadError for a copy of another format."""
        found = [copy for name in self._folders() if (copy := self.find(name)) is not None]
        return sorted(found, key=lambda copy: (copy.round, copy.finished), reverse=True)

    def find(self, name: str) -> Copy | None:
        """Return the copy in the folder `name`, or None where the copy is not complete. Raises as `copies` does."""
        text = self.read(f"{name}/{COPY}")
        if text is None:
            return None
        try:
            tree = json.loads(text)
            if (copy_format := tree.pop("format")) == FORMAT:
                return Copy(name, **tree)
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s/%s/%s is corrupt; this copy is ignored", self.uri, name, COPY)
            return None
        raise UploadError(
            f"{self.uri}/{name} is a copy of format {copy_format}, and this version of redif-ray reads format "
            f"{FORMAT}; use the version that wrote the copy, or choose another checkpoint.upload"
        )

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None where there is no such file."""
        try:
            with self.filesystem.open_input_stream(self._at(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file. On a disk, unlike in object stores, a reader may see a part of it, which is not JSON."""
        with self._open(name) as stream:
            stream.write(data)

    def put(self, source: Path, name: str, block: Callable[[], object]) -> str:
        """Copy the file `source` to `name` and return its SHA-256. block: called before each part of `BLOCK` bytes.

        Raises UploadError where the written file has another size.
        """
        digest, sent = hashlib.sha256(), 0
        with self._open(name) as stream, source.open("rb") as local:
            while data := local.read(BLOCK):
                block()
                digest.update(data)
                stream.write(data)
                sent += len(data)
        written = self.filesystem.get_file_info(self._at(name))
        if written.type != fs.FileType.File or written.size != sent:
            raise UploadError(f"{self.uri}/{name} has {written.size} bytes after the upload of {sent}")
        return digest.hexdigest()

    def finish(self, copy: Copy) -> None:
        """Write `copy.json`, which completes the copy. All of its files must be written before."""
        tree = {"format": FORMAT, **asdict(copy)}
        del tree["name"]
        self.write(f"{copy.name}/{COPY}", (json.dumps(tree, indent=1) + "\n").encode())

    def prune(self, keep: int) -> None:
        """Delete all folders but one copy for each of the newest `keep` rounds, a finished one if there is one."""
        newest = {copy.round: copy.name for copy in reversed(self.copies())}
        kept = list(newest.values())[-keep:]
        for name in self._folders():
            if name not in kept:
                if self.read(f"{name}/{COPY}") is not None:
                    self.filesystem.delete_file(self._at(f"{name}/{COPY}"))
                self.filesystem.delete_dir(self._at(name))

    def fetch(self, copy: Copy, folder: Path) -> None:
        """Download `copy` as the run folder `folder`, which must not exist, whole or not at all. Raises UploadError."""
        try:
            with atomic_folder(folder) as partial:
                for path, sha256 in copy.sha256.items():
                    self._fetch(copy, path, sha256, partial)
                (partial / "checkpoints").mkdir(exist_ok=True)
        except (OSError, pa.ArrowException) as error:
            raise UploadError(f"cannot fetch {self.uri} to {folder}: {_first_line(error)}") from error

    def _fetch(self, copy: Copy, path: str, sha256: str, folder: Path) -> None:
        target = (folder / path).resolve()
        if folder.resolve() not in target.parents:
            raise UploadError(
                f"{self.uri}/{copy.name} names {path}, which lies outside of the run folder; delete {copy.name} there "
                "to use the copy before it"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self._at(f"{copy.name}/{path}")
        with suppress(FileNotFoundError), self.filesystem.open_input_stream(source) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, BLOCK)
        if not target.exists() or file_sha256(target) != sha256:
            raise UploadError(
                f"{self.uri}/{copy.name}/{path} is not what was uploaded; delete {copy.name} there to use the "
                "copy before it"
            )

    def _folders(self) -> list[str]:
        """Return the names of the folders of copies, complete or not.

        The names are taken from the paths of all files, because Google Cloud Storage does not list folders.
        """
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        paths = [f"{info.path}/" if info.type == fs.FileType.Directory else info.path for info in infos]
        tops = {path.removeprefix(self.path).lstrip("/").partition("/") for path in paths}
        return sorted({name for name, below, _ in tops if name.startswith("round-") and below})

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _open(self, name: str) -> pa.NativeFile:
        """Return a stream that writes the file `name`; its folder is made where the file system has folders."""
        self.filesystem.create_dir(str(PurePosixPath(self._at(name)).parent), recursive=True)
        return self.filesystem.open_output_stream(self._at(name))


def _filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the path in it: pyarrow's for file, s3, gs, hdfs and abfs, else fsspec's."""
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
        known = "file, s3, gs, hdfs, abfs or a scheme of fsspec"
        raise ValueError(f"the scheme {at.scheme}:// is unknown; expected {known}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
