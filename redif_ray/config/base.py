"""What all sections of the configuration are made of."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from redif_ray.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Resources = dict[str, Annotated[float, Field(gt=0)]]
SECRET = re.compile(  # in the name of a variable, or of what a URI's query holds
    r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|SIGNATURE|SIG\b|SAS", re.IGNORECASE
)
Labels = dict[
    Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*$")],
    Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63)],
]
Occasion = Literal["resume", "evaluate"]
MAY_CHANGE = "may_change"


def may_change(*occasions: Occasion) -> dict[str, JsonValue]:
    """The mark (`json_schema_extra`) of a field that says where or with how many hands work is done, not what is done.

    Its value may differ when a run is resumed, or when it is evaluated again (`config.changes`).
    """
    return {MAY_CHANGE: list(occasions)}


ALWAYS = may_change("resume", "evaluate")
ON_RESUME = may_change("resume")


def choice(*names: str) -> AfterValidator:
    """Accept one of `names`, or code of the user's as file.py:name or package.module:name."""

    def known(value: str) -> str:
        if value not in names and not re.fullmatch(r".+:[A-Za-z_]\w*", value):
            close = difflib.get_close_matches(value, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise PydanticCustomError(
                "choice",
                "expected {names}, or your own as path/to/file.py:name{hint}",
                {"names": ", ".join(names), "hint": hint},
            )
        return value

    return AfterValidator(known)


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message is complete and meant for the user."""


class UnknownKeyError(ConfigError):
    """A configuration with a key that does not exist; the first line of the message names it."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth", "true or false is not a value of this key")
        return value
