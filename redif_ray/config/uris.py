"""Texts of the configuration that may hold secrets: URIs, and what stands for an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError, core_schema

from redif_ray.config.base import ConfigError, at_home, has_control_characters
from redif_ray.masking import MASK, SECRET_NAME, learn, masked_uris

ENV = "env:"
HOME = re.compile(r"(?:(?P<before>sqlite:///|file://)/?)?~(?=/|$)")  # a home directory, in a path or a URI


class Uri(str):
    """A URI as it may be shown: without its secrets. `reveal` returns the whole, for the one who connects to it.

    env:NAME stands for the value of the environment variable NAME and is shown as such. Two URIs that differ in their
    secrets alone are equal. Sent to another process, an env:NAME takes along the value that it has here.
    """

    __slots__ = ("_text",)
    _text: str

    def __new__(cls, text: str, shown: str | None = None) -> Self:
        """Make the URI `text`. shown: what to show in place of it; None: the text with its secrets masked."""
        if isinstance(text, cls) and shown is None:
            return text
        made = super().__new__(cls, _shown(text) if shown is None else shown)
        made._text = text
        made._learn(text)
        return made

    def _learn(self, text: str) -> None:
        """Have the secrets of `text`, the whole URI, masked; all of it where nothing of it is shown.

        The path of a web address is a secret too where the address comes from the environment, as that of a webhook is.
        """
        if _is_path(text) and self == text:
            return
        hidden = self == MASK or (self.startswith(ENV) and text.startswith("http"))
        learn(text, whole=hidden)

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (_from_environment(self._text) or self._text, str(self))

    def reveal(self, key: str) -> str:
        """Return the URI with its secrets. key: the configuration key that holds it, for errors.

        Raises ConfigError where its environment variable is not set, and where the secret itself is not known.
        """
        text = _from_environment(self._text)
        if text is None:
            name = self.removeprefix(ENV)
            raise ConfigError(
                f"{key}={self}: the environment variable {name} is not set; set it, or give the URI itself"
            )
        if MASK in text:
            raise ConfigError(
                f"{key}={self}: the secret in place of {MASK} is kept nowhere; give it again by {key}=..., or by "
                f"{key}={ENV}NAME, which takes it from the environment variable NAME"
            )
        self._learn(text)
        return text

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(cls._read, core_schema.str_schema())

    @classmethod
    def _read(cls, value: Any, handler: Callable[[Any], str]) -> Uri:
        if isinstance(value, Uri):
            return value
        text = handler(value).strip()
        home = HOME.match(text)
        if home is not None:
            text = f"{home['before'] or ''}{at_home('~')}{text[home.end() :]}"
        try:
            urlsplit(text)
        except ValueError:
            raise PydanticCustomError("uri", "expected a URI, and this is none") from None
        if not text or has_control_characters(text):
            raise PydanticCustomError("uri", "expected a URI, without control characters")
        return cls(text)


def _from_environment(text: str) -> str | None:
    """Return `text`, or the value of the environment variable that it stands for; None where that is not set."""
    if not text.startswith(ENV):
        return text
    return os.environ.get(text.removeprefix(ENV), "").strip() or None


def guarded(value: Any, name: str = "") -> Any:
    """Return a JSON-like value in which texts that may hold secrets are `Uri`s.

    These are URIs, env:NAME, a text that holds a password or a header, and the text of an option whose name says so.
    name: of the option that has the value.
    """
    if isinstance(value, Mapping):
        return {key: guarded(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [guarded(part, name) for part in value]
    if not isinstance(value, str) or isinstance(value, Uri):
        return value
    if value.startswith(ENV) or "://" in value or masked_uris(value) != value:
        return Uri(value)
    secret = SECRET_NAME.search(name) and not name.lower().endswith("_env")
    return Uri(value, MASK) if secret and value else value


def revealed(value: Any, key: str) -> Any:
    """Return a JSON-like value with the whole texts of its `Uri`s. Raises ConfigError as `Uri.reveal` does."""
    if isinstance(value, Mapping):
        return {name: revealed(part, f"{key}.{name}".lstrip(".")) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [revealed(part, f"{key}.{i}") for i, part in enumerate(value)]
    return value.reveal(key) if isinstance(value, Uri) else value


def shown(value: Any) -> Any:
    """Return a JSON-like value without secrets, whether they were guarded or are recognised only now."""
    if isinstance(value, Mapping):
        return {masked_uris(str(name)): shown(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shown(part) for part in value]
    return _shown(str(value)) if isinstance(value, str) else value


def _shown(text: str) -> str:
    """Return a text without secrets. A path of this machine has none, and is read again where a run is resumed."""
    return text if _is_path(text) else masked_uris(text)


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~/", "./", "../")) and "://" not in text
