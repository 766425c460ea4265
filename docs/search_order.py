"""A hook of mkdocs: the site's search shows guides before the records of decisions, which use the same words."""

from __future__ import annotations

from typing import Any

DECISIONS, WEIGHT = "decisions/", 0.2


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lower the weight of a decision's page in the search."""
    if page.file.src_uri.startswith(DECISIONS):
        page.meta["search"] = {"boost": WEIGHT}
    return markdown
