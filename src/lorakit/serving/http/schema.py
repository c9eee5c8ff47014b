"""Requests, as OpenAI's API has them, with fields of vLLM's.

A field that this server does not do is accepted at the value that changes nothing and refused at any
other: no option of a client is silently ignored. docs/serve.md lists them.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lorakit.errors import did_you_mean
from lorakit.serving.http.fields import MOST_TOKENS, Strict, Text, resting
from lorakit.serving.http.formats import ResponseFormat, StructuredOutputs
from lorakit.serving.http.messages import ChatMessage, ChosenTool, Tool

Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
_SCHEMA = "give structured_outputs, or response_format"


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    continuous_usage_stats: resting(False)  # type: ignore[valid-type]


class Common(Strict):
    """What both kinds of completion take."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS, description="0 or -1: all.")] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(max_length=256)] | Stop | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=128)] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    ignore_eos: Annotated[bool, Field(description="Go on until max_tokens.")] = False
    truncate_prompt_tokens: (
        Annotated[
            int,
            Field(ge=-1, le=MOST_TOKENS, description="The last so many are read; -1: all that fit"),
        ]
        | None
    ) = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=4096)
    ] = Field(default_factory=dict)
    bad_words: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=128)
    ] = Field(default_factory=list)
    allowed_token_ids: Annotated[list[Id], Field(min_length=1, max_length=1 << 18)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_template: Annotated[
        bool | None,
        Field(
            description="false: the text as it is, although the model's record has a prompt template."
        ),
    ] = None
    user: str | None = None
    request_id: str | None = None
    session_id: str | None = None

    use_beam_search: resting(False)  # type: ignore[valid-type]
    length_penalty: resting(1.0)  # type: ignore[valid-type]
    spaces_between_special_tokens: resting(True)  # type: ignore[valid-type]
    truncation_side: resting("left")  # type: ignore[valid-type]
    prompt_logprobs: resting()  # type: ignore[valid-type]
    logprob_token_ids: resting([])  # type: ignore[valid-type]
    return_tokens_as_token_ids: resting(False)  # type: ignore[valid-type]
    return_token_ids: resting(False)  # type: ignore[valid-type]
    priority: resting(0)  # type: ignore[valid-type]
    cache_salt: resting()  # type: ignore[valid-type]
    kv_transfer_params: resting()  # type: ignore[valid-type]
    vllm_xargs: resting({})  # type: ignore[valid-type]
    repetition_detection: resting()  # type: ignore[valid-type]
    thinking_token_budget: resting(-1)  # type: ignore[valid-type]
    watermarking: resting(False)  # type: ignore[valid-type]
    stream_interval: resting(1)  # type: ignore[valid-type]
    guided_json: resting(instead=_SCHEMA)  # type: ignore[valid-type]
    guided_regex: resting(instead=_SCHEMA)  # type: ignore[valid-type]
    guided_choice: resting(instead=_SCHEMA)  # type: ignore[valid-type]
    guided_grammar: resting(instead=_SCHEMA)  # type: ignore[valid-type]

    @field_validator("logit_bias")
    @classmethod
    def _ids_and_clamped(cls, value: dict[str, float]) -> dict[str, float]:
        """As vLLM and OpenAI: keys are ids in texts; a bias beyond 100 is 100."""
        for key in value:
            if not key.isascii() or not key.isdecimal():
                raise ValueError(f'{key!r} is no token id; keys are ids, such as "50256"')
        return {key: min(100.0, max(-100.0, bias)) for key, bias in value.items()}

    @model_validator(mode="after")
    def _fields_that_need_each_other(self) -> "Common":
        options = self.stream_options
        if options is not None and options.include_usage and not self.stream:
            raise ValueError("stream_options is for streams: set stream")
        if self.response_format is not None and self.response_format.constrains:
            if self.structured_outputs is not None:
                raise ValueError("give one of response_format and structured_outputs")
            if self.ignore_eos:
                raise ValueError("ignore_eos would go on past the end of what response_format asks")
        if self.structured_outputs is not None and self.ignore_eos:
            raise ValueError("ignore_eos would go on past the end of what structured_outputs asks")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, however they were given."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(one for one in given if one)

    @property
    def warmth(self) -> float:
        """The temperature; vLLM takes a hundredth for less that is not 0, where float32 overflows."""
        return max(self.temperature, 0.01) if self.temperature else 0.0

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """What an answer has to look like: a kind of `serving.grammar`'s and its value."""
        if self.structured_outputs is not None:
            return self.structured_outputs.constraint
        return self.response_format.constraint if self.response_format is not None else None


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool = True
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    chat_template_kwargs: Annotated[
        dict[str, Any], Field(max_length=64, description="Variables of the chat template.")
    ] = Field(default_factory=dict)

    store: resting(False)  # type: ignore[valid-type]
    service_tier: resting("auto", "default")  # type: ignore[valid-type]
    modalities: resting(["text"])  # type: ignore[valid-type]
    audio: resting()  # type: ignore[valid-type]
    prediction: resting()  # type: ignore[valid-type]
    moderation: resting()  # type: ignore[valid-type]
    verbosity: resting("medium")  # type: ignore[valid-type]
    web_search_options: resting()  # type: ignore[valid-type]
    prompt_cache_options: resting({}, {"mode": "implicit"})  # type: ignore[valid-type]
    prompt_cache_retention: resting("in_memory")  # type: ignore[valid-type]
    functions: resting([], instead="give tools")  # type: ignore[valid-type]
    function_call: resting("none", "auto", instead="give tool_choice")  # type: ignore[valid-type]
    echo: resting(False)  # type: ignore[valid-type]
    add_generation_prompt: resting(True)  # type: ignore[valid-type]
    continue_final_message: resting(False)  # type: ignore[valid-type]
    add_special_tokens: resting(False)  # type: ignore[valid-type]
    include_reasoning: resting(True)  # type: ignore[valid-type]
    documents: resting([])  # type: ignore[valid-type]
    chat_template: resting()  # type: ignore[valid-type]
    media_io_kwargs: resting({})  # type: ignore[valid-type]
    mm_processor_kwargs: resting({})  # type: ignore[valid-type]

    @field_validator("tools")
    @classmethod
    def _functions(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Checked, and passed on to the template as the client wrote them."""
        for tool in value:
            if tool.get("type") != "function":
                kind = tool.get("type")
                raise ValueError(
                    f"tools of the type {kind!r} are not supported; only 'function' is"
                )
        names = [Tool.model_validate(tool).function.name for tool in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tools are called {name!r}")
        return value

    @model_validator(mode="after")
    def _a_question(self) -> "ChatRequest":
        if self.messages[-1].role not in ("user", "tool"):
            raise ValueError("the last message must be the user's, or a tool's")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice is 'required', and there are no tools")
        if isinstance(self.tool_choice, ChosenTool):
            name = self.tool_choice.function.name
            if name not in self.names:
                near = did_you_mean(name, self.names)
                raise ValueError(f"tool_choice: there is no tool {name!r}; {near}")
        if self.forced and self.constraint is not None:
            raise ValueError("an answer that has to call a tool cannot have a response_format")
        if self.forced and self.ignore_eos:
            raise ValueError("ignore_eos would go on past the end of the tool call")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What the functions are called."""
        return tuple(str(tool["function"]["name"]) for tool in self.tools)

    @property
    def calls(self) -> bool:
        """Whether tool calls are looked for in the answers."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def forced(self) -> tuple[str, ...]:
        """Functions of which one has to be called; empty where none has."""
        if isinstance(self.tool_choice, ChosenTool):
            return (self.tool_choice.function.name,)
        return self.names if self.tool_choice == "required" else ()

    @property
    def reported(self) -> int | None:
        """How many of the likeliest tokens to report; None for no report."""
        return (self.top_logprobs or 0) if self.logprobs else None


Ids = Annotated[list[Id], Field(min_length=1)]


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: resting(False)  # type: ignore[valid-type]
    suffix: resting("")  # type: ignore[valid-type]
    add_special_tokens: resting(True)  # type: ignore[valid-type]
    prompt_embeds: resting()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _as_many_as_asked(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of not in (1, self.n):
            raise ValueError("best_of is not supported; leave it out, or give n")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several, as texts or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def reported(self) -> int | None:
        """How many of the likeliest tokens to report; None for no report."""
        return self.logprobs


class LoadRequest(Strict):
    """POST /v1/load_lora_adapter, as vLLM has it; `lora_path` may be a name in the store."""

    lora_name: Annotated[str, Field(min_length=1, max_length=100)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadRequest(Strict):
    """POST /v1/unload_lora_adapter, as vLLM has it."""

    lora_name: Annotated[str, Field(min_length=1, max_length=100)]
    lora_int_id: int | None = None
