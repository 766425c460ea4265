"""A hook of mkdocs: files of the repository outside of docs/ to which pages link become files of the site, as text."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

DOCS = Path(__file__).parent
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add each file that a page links to, once, as source/<its path>.txt, which browsers show."""
    for page in list(files.documentation_pages()):
        for match in LINK.finditer(page.content_string):
            path = _outside(page.src_uri, match[1])
            if path is not None and files.get_file_from_path(_copy(path)) is None:
                files.append(File.generated(config, _copy(path), content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to such files lead to their copies."""

    def own(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match[1])
        if path is None:
            return match[0]
        return f"]({os.path.relpath(_copy(path), Path(page.file.src_uri).parent)})"

    return LINK.sub(own, markdown)


def _outside(page: str, link: str) -> Path | None:
    """Return the file outside of docs/ that a page's link names, or None."""
    path = (DOCS / page).parent.joinpath(link).resolve()
    return path if path.is_file() and not path.is_relative_to(DOCS) else None


def _copy(path: Path) -> str:
    return f"source/{path.relative_to(DOCS.parent)}.txt"
