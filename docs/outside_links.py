"""A hook of mkdocs: what pages link to outside of docs/. CONTRIBUTING.md becomes a page, any other file a text."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

DOCS = Path(__file__).parent
CONTRIBUTING, PAGE = DOCS.parent / "CONTRIBUTING.md", "contributing.md"
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
RELATIVE = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add CONTRIBUTING.md as a page, and other files that a page links to as texts, source/<path>.txt."""
    text = RELATIVE.sub(lambda match: f"]({_from_docs(match[1])})", CONTRIBUTING.read_text())
    files.append(File.generated(config, PAGE, content=text))
    for page in list(files.documentation_pages()):
        for match in LINK.finditer(page.content_string):
            path = _outside(page.src_uri, match[1])
            if path is not None and files.get_file_from_path(_place(path)) is None:
                files.append(File.generated(config, _place(path), content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to such files lead to their places in the site."""

    def own(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match[1])
        if path is None:
            return match[0]
        anchor = match[2] or "" if path == CONTRIBUTING else ""
        return f"]({os.path.relpath(_place(path), Path(page.file.src_uri).parent)}{anchor})"

    return LINK.sub(own, markdown)


def _from_docs(link: str) -> str:
    """Return a link of CONTRIBUTING.md as a page in docs/ has it; a folder's page is its index."""
    path = DOCS.parent / link
    return os.path.relpath(path / "index.md" if path.is_dir() else path, DOCS)


def _outside(page: str, link: str) -> Path | None:
    """Return the file outside of docs/ that a page's link names, or None."""
    path = (DOCS / page).parent.joinpath(link).resolve()
    return path if path.is_file() and not path.is_relative_to(DOCS) else None


def _place(path: Path) -> str:
    return PAGE if path == CONTRIBUTING else f"source/{path.relative_to(DOCS.parent)}.txt"
