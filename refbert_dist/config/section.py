"""What every section of a configuration is, and the kinds of numbers in it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Frozen, closed to unknown keys; the string under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete_sections(cls, data: Any) -> Any:
        """A section given in part keeps the rest of its own default, which may differ from its class's."""
        if not isinstance(data, dict):
            return data
        return {name: cls._completed(name, value) for name, value in data.items()}

    @classmethod
    def _completed(cls, name: str, value: Any) -> Any:
        default = cls.model_fields[name].default if name in cls.model_fields else None
        return default.with_changes(value) if isinstance(default, Section) and isinstance(value, dict) else value

    def with_changes(self, given: dict[str, Any]) -> dict[str, Any]:
        """What this section sets explicitly, overridden by ``given``."""
        return {**self.model_dump(exclude_unset=True), **given}
