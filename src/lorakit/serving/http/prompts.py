"""A conversation -> the tokens that a model reads, by its own template, and what its answers look like."""

from typing import Any

from lorakit.data import Example, PromptForm, Template, encode_prompt
from lorakit.data.ends import end_of_turn
from lorakit.data.template import template_variables
from lorakit.errors import LorakitError
from lorakit.execution.tools.form import ToolForm, find_form
from lorakit.serving.catalog import Model
from lorakit.serving.http.problems import bad
from lorakit.serving.http.schema import ChatRequest, CompletionRequest

_AS_TYPED = PromptForm()
_AS_IT_IS = '; or set "prompt_template" to false, which sends the text as it is'


class Prompts:
    """Writes prompts. Used by one thread at a time.

    Args:
        tokenizer: the base's.
        ends: token ids that end an answer of any of its models.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        self.tokenizer, self._ends = tokenizer, ends
        self._forms: dict[Template, ToolForm | None] = {}

    def chat(self, model: Model, request: ChatRequest, form: PromptForm = _AS_TYPED) -> list[int]:
        """A conversation's prompt, by the model's template.

        form: how each user message becomes a prompt.

        Raises:
            Problem: the template leaves a tool out, or fails.
            DataError: it refuses the messages.
        """
        messages, template = (
            [one.plain() for one in request.messages],
            self._template(model, request),
        )
        messages = [dict(m) for m in form.turns(messages, "messages", _AS_IT_IS)]
        if model.template.kind == "raw":
            if len(messages) > 1 or request.tools:
                raise bad(
                    f"{model.name} was trained on plain prompts and knows no turns and no tools: "
                    "send one user message, or use /v1/completions"
                )
            example = Example(origin="messages", prompt=messages[0]["content"])
        else:
            source = model.template.source or ""
            for message in messages:
                # A developer is what a system is called elsewhere.
                if message["role"] == "developer" and "developer" not in source:
                    message["role"] = "system"
            # An empty answer at the end: what stands before it is the prompt.
            turns = (*messages, {"role": "assistant", "content": ""})
            example = Example(origin="messages", messages=turns, tools=tuple(request.tools))
        try:
            ids = [int(i) for i in encode_prompt(example, self.tokenizer, template)]
            self._check_tools(model, request, ids)
            return ids
        except LorakitError:
            raise
        except Exception as error:  # a template is a program, which may fail in any way
            raise bad(
                f"the chat template of {model.name} fails on these messages: "
                f"{type(error).__name__}: {error}"
            ) from None

    def _check_tools(self, model: Model, request: ChatRequest, ids: list[int]) -> None:
        """See that the prompt holds the functions that may be called, and those that were.

        Raises:
            Problem: the template left one out.
        """
        called = [call.function.name for m in request.messages for call in m.tool_calls]
        names = [*(request.names if request.calls else ()), *called]
        text = str(self.tokenizer.decode(ids)) if names else ""
        for name in names:
            if name not in text:
                raise bad(
                    f"the chat template of {model.name} has no place for tools and their calls, and "
                    f"leaves {name!r} out: send neither, or serve a model whose template has one"
                )

    def raw(self, prompt: str | list[int]) -> list[int]:
        """A prompt's tokens without any template."""
        if isinstance(prompt, list):
            return prompt
        return [int(i) for i in self.tokenizer(prompt)["input_ids"]]

    def text(self, model: Model, prompt: str | list[int], form: PromptForm) -> list[int]:
        """A prompt's tokens without a chat template.

        A text for a model that was trained without one is put through the prompt template that the
        model recorded; for any other that would be half of what it was trained on.

        Raises:
            DataError: the text does not name the columns of the prompt template.
        """
        if isinstance(prompt, list) or not form.columns or model.template.kind != "raw":
            return self.raw(prompt)
        example = form.typed(prompt, "prompt", _AS_IT_IS)
        return [int(i) for i in encode_prompt(example, self.tokenizer, model.template)]

    def prompt_form(self, model: Model, request: ChatRequest | CompletionRequest) -> PromptForm:
        """How the request's texts become prompts.

        Raises:
            Problem: the request wants a prompt template where none is applied.
        """
        if request.prompt_template and not model.form.columns:
            raise bad(
                f"prompt_template: {model.name} recorded none: leave it out, or set it to false"
            )
        chat = isinstance(request, ChatRequest)
        if request.prompt_template and not chat and model.template.kind != "raw":
            raise bad(
                f"prompt_template: {model.name} was trained on conversations, whose template "
                "/v1/completions does not write: use /v1/chat/completions"
            )
        return PromptForm() if request.prompt_template is False else model.form

    def form(self, model: Model, request: ChatRequest | CompletionRequest) -> ToolForm | None:
        """How the model's answers to this request write calls; None where none are looked for.

        Raises:
            Problem: the request forces a call, and the form is unknown.
        """
        if not isinstance(request, ChatRequest) or not request.calls:
            return None
        template = model.template
        if template not in self._forms:
            self._forms[template] = find_form(self.tokenizer, template)
        form = self._forms[template]
        if form is None and request.forced:
            raise bad(
                f"tool_choice cannot be kept: the chat template of {model.name} writes calls in no "
                "known form"
            )
        return form

    def ends(self, model: Model, request: ChatRequest | CompletionRequest) -> frozenset[int]:
        """Token ids that end the model's answers to this request."""
        own = self._ends.union(end_of_turn(self.tokenizer, model.template))
        if request.ignore_eos:
            own = frozenset()
        return own | frozenset(request.stop_token_ids)

    def _template(self, model: Model, request: ChatRequest) -> Template:
        """The model's template, with the variables of this request.

        Raises:
            Problem: it does not know what the request wants.
        """
        template, options = model.template, dict(request.chat_template_kwargs)
        effort = request.reasoning_effort
        if effort is not None and template.source is not None:
            known = template_variables(template.source)
            # vLLM turns the thinking on and off in the same way.
            meant = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
            options = {k: v for k, v in meant.items() if k in known} | options
        if effort not in (None, "none", "medium") and not options:
            raise bad(
                f"reasoning_effort: the chat template of {model.name} knows no such thing; leave it "
                "out, or give 'none' or 'medium'"
            )
        try:
            return template.changed(None, options) if options else template
        except LorakitError as error:
            raise bad(f"chat_template_kwargs: {error}") from None
