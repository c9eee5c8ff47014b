"""What a client may ask an answer to look like: OpenAI's response_format, vLLM's structured_outputs."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lorakit.serving.http.fields import Strict, Text, resting


class JsonSchema(Strict):
    """A schema with a name; answers keep to it, strict or not."""

    name: Annotated[str, Field(max_length=64)] = ""
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = Field(
        default_factory=dict, alias="schema"
    )
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's: text, a JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type 'json_schema'")
        return self

    @property
    def constrains(self) -> bool:
        """Whether it asks for more than text."""
        return self.type != "text"

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """A kind of `serving.grammar`'s and its value."""
        if self.json_schema is not None:
            return "json", self.json_schema.schema_
        return ("json_object", True) if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """vLLM's: one of JSON by a schema, a JSON object, a regular expression, texts, a grammar."""

    json_: Annotated[Text | dict[str, Any] | bool | None, Field(alias="json")] = Field(
        default=None, alias="json"
    )
    json_object: bool | None = None
    regex: Annotated[str, Field(max_length=1 << 16)] | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=1024)] | None = None
    grammar: Text | None = None
    disable_any_whitespace: resting(False)  # type: ignore[valid-type]
    disable_additional_properties: resting(False)  # type: ignore[valid-type]
    whitespace_pattern: resting()  # type: ignore[valid-type]
    structural_tag: resting()  # type: ignore[valid-type]

    @field_validator("json_object")
    @classmethod
    def _only_true(cls, value: bool | None) -> bool | None:
        return value or None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        given = [kind for kind, value in self._kinds() if value is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(
                f"give exactly one of json, json_object, regex, choice, grammar: {said}"
            )
        return self

    def _kinds(self) -> list[tuple[str, Any]]:
        return [
            ("json", self.json_),
            ("json_object", self.json_object),
            ("regex", self.regex),
            ("choice", self.choice),
            ("grammar", self.grammar),
        ]

    @property
    def constraint(self) -> tuple[str, Any]:
        """A kind of `serving.grammar`'s and its value."""
        return next((kind, value) for kind, value in self._kinds() if value is not None)
