"""Twenty kinds of small files: whatever asks an adapter sends the prompt it was trained with, and scores agree."""

import json
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from servers import serving

from families import tiny, tokenizer
from lorakit.cli.main import run
from lorakit.config import load_config
from lorakit.evaluation.metrics import score
from lorakit.run.commands.training import prepare
from lorakit.serving import engine as engines
from lorakit.serving.spec import EngineSpec
from lorakit.tasks import causal_lm
from random_files import KINDS, small_file
from tool_templates import TEMPLATES

SEED, NEW = 7, 96
SPEC = EngineSpec(
    cache_gb=0.02, max_prompt=1024, max_output=NEW, slots=2, slot_rank=4, max_running=4
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model whose chat template writes tools and calls."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny("llama", max_position_embeddings=2048).save_pretrained(folder)
    words = tokenizer()
    words.chat_template = TEMPLATES["hermes"]
    words.save_pretrained(folder)
    yield folder
    patch.undo()


@dataclass
class Spy:
    """The prompts that were answered, as tokens."""

    prompts: list[list[int]] = field(default_factory=list)

    def taken(self) -> list[list[int]]:
        found, self.prompts = self.prompts, []
        return found


@pytest.fixture
def spy(monkeypatch):
    seen = Spy()

    def watch(owner, name, prompts_of):
        real = getattr(owner, name)

        def watched(*arguments, **named):
            seen.prompts += [list(map(int, ids)) for ids in prompts_of(arguments)]
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(causal_lm, "generate", lambda arguments: arguments[2])
    watch(engines.Engine, "submit", lambda arguments: [p.ids for p in arguments[1]])
    return seen


def call(capfd, *arguments) -> str:
    capfd.readouterr()
    code = run([str(a) for a in arguments])
    said = capfd.readouterr()
    assert code == 0, said.err
    return said.out


def ask(url, path, body):
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.mark.parametrize("kind", KINDS)
def test_one_prompt_and_one_score_everywhere(kind, base, spy, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    made = small_file(kind, SEED)
    file = Path(made.name)
    file.write_bytes(made.content)
    rows = ("--data", file, *made.options)

    # What training reads, and what `check` says of it.
    said = call(capfd, "check", "--model", base, *rows, "--eval-data", file, "--show", 12)
    assert "serving sends the same" in said
    assert "other ones from token" not in said
    flags = ("--model", base, *rows, "--eval-data", file, "--out", "run", "--rank", 4)
    flags += ("--max-steps", 12, "--learning-rate", 0.02, "--samples", 12)
    flags += ("--max-new-tokens", NEW, "--seed", SEED)
    call(capfd, "train", *flags)
    before, after = np.array_split(np.arange(24), 2)
    asked = spy.taken()
    assert len(asked) == 24
    prompts = [asked[i] for i in after]
    assert [asked[i] for i in before] == prompts
    trained = trained_prefixes("run/config.yaml")
    assert all(ids in trained for ids in prompts)

    # `eval` and `generate --data`, by what the adapter recorded and no further option.
    known = ("--adapter", "run/adapter", "--data", file, "--max-new-tokens", NEW)
    call(capfd, "eval", *known, "--out", "eval")
    assert spy.taken() == prompts
    column = ("--answer-column", "said")
    call(capfd, "generate", *known, "--out", "answers.jsonl", *column)
    assert sorted(spy.taken()) == sorted(prompts)
    figures = json.loads(Path("run/result.json").read_text())
    measured = json.loads(Path("eval/result.json").read_text())
    assert measured["scores"] == figures["scores_after"]
    written = [json.loads(line) for line in Path("eval/answers.jsonl").read_text().splitlines()]
    filed = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [line["said"] for line in filed] == [line["answer"] for line in written]

    # A server, and what the page sends, which is a conversation as well.
    with serving(base, tmp_path / "store", SPEC, ["run/adapter"]) as server:
        answers = []
        for each in made.asked:
            body = {"model": "adapter", "messages": each.conversation, "temperature": 0}
            body |= {"tools": each.tools} if each.tools else {}
            body |= {"tool_choice": "none"} if each.tools else {}
            said = ask(server.url, "/v1/chat/completions", body | {"max_completion_tokens": NEW})
            answers.append(said["choices"][0]["message"]["content"] or "")
    assert spy.taken() == prompts
    if not any(each.tools for each in made.asked):  # the server takes calls out of a text
        # A server gives white space as the model writes it, at both ends too.
        assert [text.strip() for text in answers] == [line["answer"].strip() for line in written]

    # Nothing is above an adapter that answers with the references.
    references = [line["reference"] for line in written]
    for metric in score(references, references):
        assert metric.value == metric.range[1], metric.name
    monkeypatch.setattr(
        causal_lm.CausalLM,
        "predict",
        lambda self, session, examples, limit: self.references(session, examples),
    )
    call(capfd, "eval", *known, "--out", "best")
    best = json.loads(Path("best/result.json").read_text())["scores"]
    assert best
    assert set(best) == set(measured["scores"])
    assert all(best[name] >= value for name, value in measured["scores"].items())
    assert set(best.values()) == {1.0}


def trained_prefixes(run_file: str) -> list[list[int]]:
    """What stands before each answer in the training rows of a run."""
    ready = prepare(load_config(Path(run_file), {}))
    prefixes = []
    for row in ready.data.train:
        starts = np.flatnonzero(np.diff(row.weight.astype(int)) == 1)
        prefixes += [row.ids[: int(start) + 1].tolist() for start in starts]
    return prefixes
