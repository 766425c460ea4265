"""Types, marks and errors that all sections of the configuration share."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from redif_ray.errors import UserError

LONGEST_NAME = 255  # bytes of the name of a file or folder
Positive = Annotated[int, Field(gt=0, le=10**9)]
Count = Annotated[int, Field(gt=0, le=10_000)]  # of processes, threads or images at once, which all take room at once
Fraction = Annotated[float, Field(ge=0, le=1)]
Resources = dict[str, Annotated[float, Field(gt=0)]]
Labels = dict[
    Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*$")],
    Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63)],
]
Occasion = Literal["resume", "evaluate"]
MAY_CHANGE = "may_change"


def may_change(*occasions: Occasion) -> dict[str, JsonValue]:
    """Return the mark (`json_schema_extra`) of a field that may change when a run is resumed, or evaluated again.

    Such a field says where the work is done or by how many workers, not what is done. See `config.changes`.
    """
    return {MAY_CHANGE: list(occasions)}


ALWAYS = may_change("resume", "evaluate")
ON_RESUME = may_change("resume")
ON_EVALUATE = may_change("evaluate")


def choice(*names: str) -> AfterValidator:
    """Return a validator that accepts one of `names`, or the user's own code as file.py:name or package.module:name."""

    def check(value: str) -> str:
        if value not in names and not re.fullmatch(r".+:[A-Za-z_]\w*", value):
            close = difflib.get_close_matches(value, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise PydanticCustomError(
                "choice",
                "expected {names}, or your own as path/to/file.py:name{hint}",
                {"names": ", ".join(names), "hint": hint},
            )
        return at_home(value)

    return AfterValidator(check)


def at_home(path: str) -> str:
    """Return a path with the home directory in place of a leading ~ or ~user, and otherwise unchanged."""
    return os.path.expanduser(path)  # noqa: PTH111  # Path would also change the spelling, and raise for unknown users


def has_control_characters(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)


def _path(value: str) -> str:
    if not value.strip() or has_control_characters(value):
        raise PydanticCustomError("path", "expected a path or a name, without control characters")
    if any(len(part.encode()) > LONGEST_NAME for part in value.split("/")):
        raise PydanticCustomError(
            "path", "expected a path whose names have at most {n} bytes each", {"n": LONGEST_NAME}
        )
    return at_home(value)


Location = Annotated[
    str, AfterValidator(_path)
]  # of a file or folder, or a name that may stand in its place; ~ is home


class ConfigError(UserError, ValueError):
    """A configuration is invalid; the message is complete and meant for the user."""


class UnknownKeyError(ConfigError):
    """A configuration has an unknown key, which the first line of the message names."""


class Strict(BaseModel):
    """A section that takes no unknown keys, no infinite numbers, and no truth value in place of a number or text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise ConfigError(
            f"{name}={value!r}: a configuration does not change; load_config(config, 'SECTION.{name}=...') makes "
            "another one"
        )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise PydanticCustomError("truth", "true or false is not a value of this key")
        return value
