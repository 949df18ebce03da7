"""The base of all bodies that clients send. Knows no field."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Wire(BaseModel):
    """Base of all bodies: unknown fields, NaN, and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, which is no text: no tokenizer takes it."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_encodable(text)
        return value


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a surrogate pair at character {error.start}") from None
