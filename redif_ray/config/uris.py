"""A check for URIs that a run writes into config.yaml, logs, MLflow and reports: they must hold no secret."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from redif_ray.config.base import SECRET


def check_public(key: str, uri: str, expected: str) -> str:
    """Return `uri`, the value of `key`; raise ValueError if it holds a password, a token or a secret query parameter.

    expected: text for the message, which says where credentials come from instead. The message never repeats the URI.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"{key} is not a valid URI: {_without(str(error), uri)}") from None
    secrets = [name for name, _ in parse_qsl(parts.query) if SECRET.search(name)]
    user = parts.netloc.rpartition("@")[0]
    token = parts.scheme in ("http", "https") and user  # servers take a token as a user without a password
    if secrets or ":" in user or token:
        what = f"?{secrets[0]}=" if secrets else "a password" if ":" in user else "a user or token"
        raise ValueError(f"{key} holds {what}; expected a URI without secrets: {expected}")
    return uri


def _without(message: str, uri: str) -> str:
    """Return a message of urllib without the part of the URI that may follow its first words."""
    return message if "@" not in uri else message.partition(":")[0]
