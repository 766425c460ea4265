"""What all sections of the configuration are made of."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
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
LABELS = "labels that the node of one must have, as {ray.io/market-type: spot}"


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message is complete and meant for the user."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth", "true or false is not a value of this key")
        return value
