"""A run and its copies at `checkpoint.upload`: found or fetched before it starts, brought up to date at its end."""

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
    """Raises ConfigError where somebody would wait in vain for an upload."""
    if config.checkpoint.upload is not None:
        raise ConfigError(
            f"checkpoint.upload={config.checkpoint.upload}: redif {command} uploads nothing, only redif distill does; "
            "set checkpoint.upload=null for it"
        )


def prepare(config: Config, *, resume: bool, console: Console) -> tuple[Remote | None, bool]:
    """Where the run is uploaded, found to be writable; and whether its folder was fetched from there just now.

    Raises UserError where the copies there are another run's, or newer than what is here.
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
        raise RunError(f"{path} holds no run and {remote.uri} does; move {path} away to have it fetched")
    if claimed(path).get("run") != newest.run:
        raise RunError(f"{remote.uri} holds another run than {path}; choose another checkpoint.upload")
    local = latest_checkpoint(path / "checkpoints")
    if (here := round_of(local) if local else 0) < newest.round:
        raise RunError(
            f"{remote.uri} is newer, at round {newest.round}, than {path}, at round {here}; move {path} away to go on "
            "from there, or set another checkpoint.upload to go on from here"
        )
    return remote, False


def claim(remote: Remote, folder: RunFolder) -> None:
    """Make this start of the run the one that writes there. An older one that still lives is refused from now on."""
    kept = {"run": folder.state.get("upload", {}).get("run") or uuid.uuid4().hex, "writer": uuid.uuid4().hex}
    folder.update_state(upload=kept)
    remote.write(WRITER, kept["writer"].encode())


@contextmanager
def uploading(config: Config, folder: RunFolder, remote: Remote | None, console: Console) -> Iterator[Uploader | None]:
    """For a block that trains: what it leaves, however it ends, is uploaded before this ends.

    Raises UploadError where it is not, unless the block raises: then that is only said.
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
            except UserError as error:  # it must not hide the one that ended the block
                console.print(
                    f"[bold red]not uploaded[/] to {remote.uri}: {escape(str(error))}; all of it is in {folder.path}",
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
            f"{remote.uri} lacks the end of this run ({error}). Nothing is lost: all of it is in {path}. The same "
            "command with --resume uploads what is missing"
        ) from error
    console.print(f"uploaded     {remote.uri}", highlight=False, soft_wrap=True)


def complete(config: Config, remote: Remote, console: Console) -> None:
    """Upload what a finished run's copy lacks. Raises UploadError."""
    if any(copy.finished for copy in remote.copies()[:1]):
        return
    with RunFolder.reopen(Path(config.run.root).resolve() / config.run.name) as folder:
        with uploading(config, folder, remote, console):
            pass
        folder.keep_failure(None)
