"""The base of all bodies that clients send. Knows no field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

HOLDING = {str, float, dict, list}
"""What is looked at; in a list of ten million tokens there is nothing of it."""


class Wire(BaseModel):
    """Base of all bodies: unknown fields, NaN, and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _can_be_told_again(cls, value: Any) -> Any:
        """Python reads half a surrogate pair and NaN as JSON; no answer could hold them."""
        for each in _leaves(value):
            if isinstance(each, str):
                _check_encodable(each)
            elif not math.isfinite(each):
                raise ValueError("holds NaN or a number that is too large")
        return value


def _leaves(value: Any) -> Iterator[str | float]:
    """All texts, keys and fractions in a JSON value; parts that are models have looked at their own."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += (*each, *each.values())
        elif isinstance(each, list):
            if HOLDING & set(map(type, each)):
                waiting += each
        elif isinstance(each, str | float):
            yield each


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a surrogate pair at character {error.start}") from None
