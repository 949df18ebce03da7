"""What clients send about the form of an answer: OpenAI's `response_format` and vLLM's `structured_outputs`.

Knows the fields' shape; whether a schema or a pattern can be used is found out when it is compiled.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.wire import Wire

MAX_CHOICES, MAX_CHOICE_CHARACTERS = 1024, 1000
KINDS = ("json", "regex", "choice", "grammar")

Choice = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARACTERS)]


class JsonSchemaFormat(Wire):
    """OpenAI's `json_schema`; every schema is held strictly, so `strict` changes nothing."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """OpenAI's: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: given exactly when type is json_schema")
        return self

    @property
    def json_of(self) -> dict[str, Any] | None:
        """The schema to hold; None for free text."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else None
        return {"type": "object"} if schema is None else schema


class StructuredOutputs(Wire):
    """vLLM's: exactly one of them."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, min_length=1)
    choice: list[Choice] | None = Field(default=None, min_length=1, max_length=MAX_CHOICES)
    grammar: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if len(self._given()) != 1:
            raise ValueError("give exactly one of " + ", ".join(KINDS))
        return self

    @property
    def kind(self) -> str:
        """Which one is given."""
        return self._given()[0]

    def _given(self) -> list[str]:
        values = (self.json_, self.regex, self.choice, self.grammar)
        return [name for name, value in zip(KINDS, values, strict=True) if value is not None]
