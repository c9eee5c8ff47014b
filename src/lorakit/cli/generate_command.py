"""`lorakit generate`."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import warn
from lorakit.config import MODEL_OPTIONS, RECORDED_BASE, load_config
from lorakit.errors import ConfigError, DataError
from lorakit.option import options_of
from lorakit.run.present import require_present
from lorakit.serving.answering.spec import AnswerSpec

if TYPE_CHECKING:
    from lorakit.data import Example, PromptForm
    from lorakit.run.session import Session

OPTIONS = (
    *MODEL_OPTIONS,
    *("data", "prompt", "completion", "max_rows"),
    *("system", "template", "template_option"),
    *("max_new_tokens", "store"),
)
_FILE_ONLY = (
    *("max_rows", "prompt", "completion"),
    *(option.name for option in options_of(AnswerSpec, "answers")),
)

Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="An adapter folder (lorakit's or peft's) or a name in the store (invoices@3). "
        "Default: the base without an adapter.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Use the adapter even if it was trained on another base; otherwise an error.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        help="0 takes the most likely token each time; above 0 tokens are sampled, and a larger "
        "value makes unlikely tokens more likely.",
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        help="Sample only from the most likely tokens whose probabilities sum to this share; 1 is "
        "all.",
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", help="Sample only from the k most likely tokens; 0 is all.")
]
SampleSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of the sampling. Default: another one for each call."),
]
PromptTemplate = Annotated[
    bool,
    typer.Option(
        "--prompt-template/--no-prompt-template",
        help="Whether a prompt is put through the prompt template that the adapter was trained with "
        "(its --prompt), or sent as it is.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="COLUMN=VALUE",
        help="A column of the prompt template, in place of a typed prompt; repeat it for another "
        "column.",
    ),
]
ASKING_HINT = "; --no-prompt-template sends the text as it is"
"""What else can be done where an adapter asks for several columns."""


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="One or more prompts; '-' reads one from standard input."),
    ] = None,
    adapter: Adapter = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SampleSeed = None,
    force: Force = False,
    prompt_template: PromptTemplate = True,
    columns: Columns = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Generate completions of prompts, with or without an adapter. Examples:

    `lorakit generate 'Where is my order?'`

    `lorakit generate --adapter runs/first/adapter 'Where is my order?'`

    `lorakit generate --adapter runs/first/adapter --data notes.csv --out answers.csv`

    The prompt is written by the templates that the adapter was trained with. Where its prompt template
    has several columns, give each with `--set`, or a JSON object as the prompt. With `--data` every row
    of a file is answered: the new file has all its columns, and the answer and its probability.
    """
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    if unused := without_effect(sampling):
        warn(unused)
    if "data" in flags:
        if columns or not prompt_template:
            what = "--set" if columns else "--no-prompt-template"
            raise ConfigError(
                f"{what} is for a prompt that is typed; the rows of --data have their columns: leave "
                "it out, or say with --prompt how the rows are written"
            )
        from lorakit.cli.answer_file import answer_file

        answer_file(flags, adapter=adapter, prompts=prompts or [], sampling=sampling, force=force)
        return
    if alone := [name for name in _FILE_ONLY if name in flags]:
        flag = "--" + alone[0].replace("_", "-")
        raise ConfigError(f"{flag} is for the rows of a file: give --data FILE as well")
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts or []]
    named = _named(columns or [])
    if not (texts or named) or not all(prompt.strip() for prompt in texts):
        raise DataError("no prompt: give one as an argument, or '-' to read it from stdin")
    if texts and named:
        raise DataError("a prompt and --set are both given: --set names the columns of one prompt")
    config = load_config(None, flatten(flags))
    require_present(config, adapter)
    from lorakit.data import PromptForm
    from lorakit.run.answer_limit import answer_limit
    from lorakit.run.recorded import with_recorded
    from lorakit.run.session import open_adapted

    config = with_recorded(config, adapter, packing=True)
    form = PromptForm.of(config.data) if prompt_template else PromptForm()
    hint = ", or --set COLUMN=VALUE for each" + ASKING_HINT
    examples = [form.typed(text, f"prompt {i}", hint) for i, text in enumerate(texts, 1)]
    if named:
        examples = [form.filled(named, "--set")]
    with fetching() as progress:
        session = open_adapted(
            config.model,
            adapter,
            config.data,
            store=config.output.store,
            force=force,
            progress=progress,
        )
    for number, example in enumerate(examples, 1):
        if len(texts) > 1:
            typer.echo(f"[{number}] {texts[number - 1]}")
        most = answer_limit(config, session.adapter)
        fit = "max_new_tokens" not in config.given
        write_completion(session, example, most, sampling, fit=fit)


command = with_options(generate, OPTIONS, also=("answers", AnswerSpec), shown=RECORDED_BASE)


def without_effect(sampling: Mapping[str, Any]) -> str:
    """A sentence where options of sampling are given and nothing is sampled; '' elsewhere.

    >>> without_effect({"temperature": 0.0, "top_p": 1.0, "top_k": 5, "seed": None})
    'at temperature 0 nothing is sampled, so that --top-k has no effect: give --temperature too'
    >>> without_effect({"temperature": 0.8, "top_p": 1.0, "top_k": 5, "seed": None})
    ''
    """
    nothing = {"top_p": 1.0, "top_k": 0, "seed": None}
    given = [name for name, value in nothing.items() if sampling[name] != value]
    if sampling["temperature"] or not given:
        return ""
    flags = " and ".join("--" + name.replace("_", "-") for name in given)
    have = "has" if len(given) == 1 else "have"
    return f"at temperature 0 nothing is sampled, so that {flags} {have} no effect: give --temperature too"


def asked_as(form: "PromptForm") -> list[str]:
    """What becomes of a typed text, where it is not the prompt by itself."""
    if form.several:
        names = ", ".join(form.columns)
        return [
            f"prompts are written as {form.written!r}: type a JSON object with {names}{ASKING_HINT}"
        ]
    if form.columns:
        return [f"prompts are written as {form.written!r} around what you type{ASKING_HINT}"]
    return []


def _named(pairs: Sequence[str]) -> dict[str, str]:
    """Columns by name, of COLUMN=VALUE."""
    named: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise DataError(f"--set {pair!r}: write COLUMN=VALUE, for example --set name=Ada")
        if name in named:
            raise DataError(f"--set names the column {name!r} twice")
        named[name] = value
    return named


def write_completion(
    session: "Session",
    example: "Example",
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    *,
    fit: bool = False,
) -> str:
    """Write a completion to standard output while it is generated, and return it.

    With `fit` a prompt that leaves the model fewer positions may use those.
    """
    from lorakit.data import encode_prompt
    from lorakit.execution.streaming import stream

    completion = ""
    ids = encode_prompt(example, session.tokenizer, session.template).tolist()
    if fit:
        max_new_tokens = max(1, min(max_new_tokens, session.context_length - len(ids)))
    for text in stream(
        session.model,
        session.tokenizer,
        ids,
        template=session.template,
        max_new_tokens=max_new_tokens,
        **sampling,
    ):
        completion += text
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return completion
