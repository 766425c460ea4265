"""The copies of a run at `checkpoint.upload`: found or fetched before the run starts, completed when it ends."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from redif_ray.config import Config, ConfigError
from redif_ray.errors import UserError
from redif_ray.runs.backup_store import WRITER, Remote, UploadError
from redif_ray.runs.backup_thread import Uploader, claimed, uploader
from redif_ray.runs.folder import RunError, RunFolder, latest_checkpoint, round_of


def refuse(config: Config, command: str) -> None:
    """Raise ConfigError where `checkpoint.upload` is set for a command that uploads nothing."""
    if config.checkpoint.upload is not None:
        raise ConfigError(
            f"checkpoint.upload={config.checkpoint.upload}: redif {command} uploads nothing, only redif distill does; "
            "set checkpoint.upload=null for it"
        )


def prepare(config: Config, *, resume: bool, console: Console) -> tuple[Remote | None, bool]:
    """Return the remote of the run, or None without `checkpoint.upload`, and whether the run folder was just fetched.

    The remote is checked to be writable. Raises UserError where the remote holds copies of another run, or a copy that
    is newer than the run folder.
    """
    if config.checkpoint.upload is None:
        return None, False
    remote, path = Remote.connect(config), Path(config.run.root).resolve() / config.run.name
    remote.check_writable()
    copies = remote.copies()
    if not copies:
        return remote, False
    if not resume:
        raise RunError(f"{remote.uri} holds a run; continue it with --resume, or choose another run.name")
    newest = copies[0]
    if not path.exists():
        console.print(f"fetching the run as it was after round {newest.round} from {remote.uri}", highlight=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.fetch(newest, path)
        return remote, True
    if not (path / "config.yaml").exists():
        raise RunError(f"{path} holds no run and {remote.uri} does; move {path} away to have the run fetched")
    if claimed(path).get("run") != newest.run:
        raise RunError(f"{remote.uri} holds another run than {path}; choose another checkpoint.upload")
    local = latest_checkpoint(path / "checkpoints")
    if (local_round := round_of(local) if local else 0) < newest.round:
        raise RunError(
            f"{remote.uri} is newer, at round {newest.round}, than {path}, at round {local_round}; move {path} away to "
            "go on from the copy, or set another checkpoint.upload to go on from the folder"
        )
    return remote, False


def claim(remote: Remote, folder: RunFolder) -> None:
    """Make this start of the run the only one that may write to `remote`; uploads of older starts fail from now on."""
    kept = {"run": folder.state.get("upload", {}).get("run") or uuid.uuid4().hex, "writer": uuid.uuid4().hex}
    folder.update_state(upload=kept)
    remote.write(WRITER, kept["writer"].encode())


@contextmanager
def uploading(config: Config, folder: RunFolder, remote: Remote | None, console: Console) -> Iterator[Uploader | None]:
    """Upload the state of the run after a block that trains, however the block ends; the uploader is yielded.

    Raises UploadError where the upload fails. Where the block raised, the failed upload is printed instead.
    """
    if remote is None:
        yield None
        return
    claim(remote, folder)
    own = uploader(config, folder.path, lambda: None)
    assert own is not None
    try:
        try:
            yield own
        except Exception:
            try:
                own.hand()
                own.wait()
                if own.uploaded:
                    console.print(f"uploaded     {remote.uri}", highlight=False, soft_wrap=True)
            except UserError as error:  # must not hide the error that ended the block
                console.print(
                    f"[bold red]not uploaded[/] to {remote.uri}: {escape(str(error))}; the whole run is in "
                    f"{folder.path}",
                    highlight=False,
                    soft_wrap=True,
                )
            raise
        _finish(own, folder.path, remote, console)
    finally:
        own.leave()


def _finish(own: Uploader, path: Path, remote: Remote, console: Console) -> None:
    own.hand(finished=(path / "summary.json").exists())
    try:
        own.wait()
    except UploadError as error:
        raise UploadError(
            f"{remote.uri} lacks the end of this run ({error}). Nothing is lost: the whole run is in {path}. Run "
            "the same command with --resume to upload what is missing"
        ) from error
    console.print(f"uploaded     {remote.uri}", highlight=False, soft_wrap=True)


def complete(config: Config, remote: Remote, console: Console) -> None:
    """Upload a finished run whose newest copy is not of the finished run. Raises UploadError."""
    if any(copy.finished for copy in remote.copies()[:1]):
        return
    with RunFolder.reopen(Path(config.run.root).resolve() / config.run.name) as folder:
        with uploading(config, folder, remote, console):
            pass
        folder.keep_failure(None)
