"""Conversations and tools, as OpenAI's API has them."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lorakit.serving.http.fields import Strict, Text

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Any = None


class CalledFunction(Strict):
    """What an earlier answer called: a name, and arguments as JSON in a text."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Text = ""

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value

    @field_validator("arguments")
    @classmethod
    def _json(cls, value: str) -> str:
        if value.strip():
            try:
                json.loads(value)
            except ValueError as error:
                raise ValueError(f"the arguments are not JSON: {error}") from None
        return value


class EarlierCall(Strict):
    """A call in an earlier answer."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """As chat templates take it: the arguments as values, not as text."""
        arguments = self.function.arguments
        called = {
            "name": self.function.name,
            "arguments": json.loads(arguments) if arguments.strip() else {},
        }
        own = {} if self.id is None else {"id": self.id}
        return {**own, "type": self.type, "function": called}


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=128)] = Field(default_factory=list)
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts_of_text(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"a part is of the type {kind!r}; only 'text' is read")
        return value

    @model_validator(mode="after")
    def _fits_its_role(self) -> "ChatMessage":
        thought = self.reasoning_content or self.reasoning
        if self.role != "assistant" and (self.tool_calls or thought):
            raise ValueError(f"a message of the role {self.role!r} has no tool_calls or reasoning")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError("tool_call_id is for messages of the role 'tool'")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing; only an answer that calls tools may have none")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates take it, and as rows of training data are given to them."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        given: dict[str, Any] = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
            "reasoning": self.reasoning,
            "tool_calls": [call.plain() for call in self.tool_calls] or None,
        }
        more = {key: value for key, value in given.items() if value is not None}
        return {"role": self.role, "content": text, **more}


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class ChosenName(Strict):
    """The name of a function."""

    name: Annotated[str, Field(min_length=1, max_length=256)]


class ChosenTool(Strict):
    """The one function that has to be called."""

    type: Literal["function"]
    function: ChosenName
