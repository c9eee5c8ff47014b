"""The recorded template and its end token, in everything that lorakit writes for other readers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapter_models import adapt
from families import saved
from families import tokenizer as small_tokenizer
from gguf_oracle import field
from lorakit.adapters import save_adapter
from lorakit.cli.main import run
from lorakit.data import Example, Template, encode_prompt
from lorakit.models import load_model

# An end of turn that the model does not end at, and that llama.cpp does not know by its name. Tokens
# that no training has used are no choice: their rows of the head are the same numbers.
END = "<filename>"
TEMPLATE = (
    "{{ bos_token if false }}{% for m in messages %}<issue_start>{{ m['role'] }}: {{ m['content'] }}"
    f"{END}\n{{% endfor %}}{{% if add_generation_prompt %}}<issue_start>assistant: {{% endif %}}"
)
SYSTEM = "Answer with one word."
OTHER = TEMPLATE.replace("<issue_start>", "<|im_start|>").replace(END, "<pad>")


def said(capsys: Any, *arguments: object, code: int = 0) -> str:
    assert run([str(a) for a in arguments]) == code, capsys.readouterr().err
    return "".join(capsys.readouterr()).replace("\n", " ")


@pytest.fixture
def base(tmp_path) -> Path:
    return saved(tmp_path / "base")


def recorded(model: Any, folder: Path, template: Template) -> Path:
    return save_adapter(adapt(model), folder, provenance={"template": template.to_dict()})


def base_adapter(base: Path, folder: Path, template: Template) -> Path:
    model, _ = load_model(str(base), dtype="float32")
    return recorded(model, folder, template)


def test_a_merged_folder_holds_the_template_and_the_ends(base, tmp_path, capsys):
    template = Template("chat", OTHER, SYSTEM)
    adapter = base_adapter(base, tmp_path / "adapter", template)
    # As older folders have it: the text in tokenizer_config.json too.
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = (base / "chat_template.jinja").read_text()
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    out = tmp_path / "merged"
    text = said(capsys, "merge", "--adapter", adapter, "--model", base, "--out", out, "--force")
    assert "answers end at <pad>" in text
    tokenizer = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        f"<|im_start|>system: {SYSTEM}<pad>\n<|im_start|>user: Hi<pad>\n<|im_start|>assistant: "
    )
    # Every place where a reader looks has the same text.
    held = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert held == (out / "chat_template.jinja").read_text()
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [tokenizer.convert_tokens_to_ids("<pad>"), 1]
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == ends


def test_adapters_with_different_templates_keep_the_bases(base, tmp_path, capsys):
    one = base_adapter(base, tmp_path / "one", Template("chat", OTHER))
    two = base_adapter(base, tmp_path / "two", Template("chat", OTHER, SYSTEM))
    out = tmp_path / "merged"
    text = said(capsys, "merge", "--adapter", one, "--adapter", two, "--model", base, "--out", out)
    assert "different chat templates: the base's is kept" in text
    assert (out / "chat_template.jinja").read_text() == (base / "chat_template.jinja").read_text()


def test_an_adapter_without_a_record_changes_nothing(base, tmp_path, capsys):
    model, _ = load_model(str(base), dtype="float32")
    out = tmp_path / "merged"
    adapter = save_adapter(adapt(model), tmp_path / "adapter")
    said(capsys, "merge", "--adapter", adapter, "--model", base, "--out", out)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_a_folder_for_vllm_holds_them_and_says_how_they_are_given(base, tmp_path, capsys):
    adapter = base_adapter(base, tmp_path / "adapter", Template("chat", OTHER, SYSTEM))
    out = tmp_path / "for-vllm"
    text = said(capsys, "export", adapter, "--to", "vllm", "--out", out, "--model", base)
    assert f"--chat-template {out}/chat_template.jinja --generation-config {out}" in text
    assert (out / "chat_template.jinja").read_text() == Template("chat", OTHER, SYSTEM).baked()
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 1]


def test_an_adapter_file_needs_no_weights_of_the_base(base, tmp_path, capsys):
    adapter = base_adapter(base, tmp_path / "adapter", Template("chat", OTHER))
    (base / "model.safetensors").unlink()
    out = tmp_path / "a.gguf"
    text = said(capsys, "export", adapter, "--to", "gguf", "--out", out, "--model", base)
    assert out.is_file()
    assert "the base's weights are not here: its tokenizer and template were compared" in text
    assert f"--chat-template-file {tmp_path}/a.jinja" in text
    assert "--override-kv tokenizer.ggml.eot_token_id=int:2" in text
    assert (tmp_path / "a.jinja").read_text() == OTHER
    # Another tokenizer is another base all the same.
    (base / "chat_template.jinja").write_text("{{ messages }}")
    text = said(
        capsys, "export", adapter, "--to", "gguf", "--out", tmp_path / "b", "--model", base, code=2
    )
    assert "which differs (chat template" in text
    (base / "config.json").unlink()
    command = (
        "export",
        adapter,
        "--to",
        "gguf",
        "--out",
        tmp_path / "b",
        "--model",
        base,
        "--force",
    )
    assert "config.json" in said(capsys, *command, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "gguf", "--quantize", "Q4_K_M"), "--to gguf has no --quantize"),
        (("--to", "ollama", "--quantize", "Q4_K_X"), "no such type"),
        (("--to", "ollama", "--quantize", "Q8_0", "--type", "f16"), "leave --type out"),
    ],
)
def test_what_quantize_refuses(base, tmp_path, capsys, arguments, words):
    adapter = base_adapter(base, tmp_path / "adapter", Template("chat", OTHER))
    command = ("export", adapter, "--out", tmp_path / "out", "--model", base, *arguments)
    assert words in said(capsys, *command, code=2)
    assert not (tmp_path / "out").exists()


def test_what_ollama_is_not_given(tmp_path, capsys):
    """A template without a Go form, one that writes the date, and a family that Ollama renders itself."""
    base = saved(tmp_path / "base")
    cases = {
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}": "no form in Go",
        "{{ strftime_now('%d %B %Y') }}" + OTHER: "writes the date of the day",
    }
    for number, (source, words) in enumerate(cases.items()):
        adapter = base_adapter(base, tmp_path / str(number), Template("chat", source))
        command = ("export", adapter, "--to", "ollama", "--out", tmp_path / "o", "--model", base)
        text = said(capsys, *command, code=2)
        assert words in text
        assert "lorakit export --to gguf-merged" in text
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """The built-in model, taught one answer with a template whose end it does not know."""
    room = tmp_path_factory.mktemp("taught")
    (room / "own.jinja").write_text(TEMPLATE)
    row = {"prompt": "Which colour is the code?", "completion": "Blue."}
    (room / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    code = run(
        [
            *(
                "train",
                "--data",
                str(room / "rows.jsonl"),
                "--out",
                str(room / "run"),
                "--max-steps",
                "24",
            ),
            *(
                "--batch-size",
                "4",
                "--learning-rate",
                "2e-3",
                "--template",
                str(room / "own.jinja"),
            ),
            *("--system", SYSTEM, "--dtype", "float32", "--eval-share", "0", "--samples", "0"),
        ]
    )
    assert code == 0
    return room


PROMPT = (
    f"<issue_start>system: {SYSTEM}{END}\n<issue_start>user: Which colour is the code?{END}\n"
    "<issue_start>assistant: "
)


@pytest.mark.smol
@pytest.mark.readers
def test_answers_end_with_the_taught_token_everywhere(taught, tmp_path, capsys):
    """lorakit, transformers on the merged folder, llama.cpp on merged files and on the adapter's."""
    from llama_cpp import LlamaCpp

    adapter = taught / "run" / "adapter"
    answer = said(
        capsys,
        *("generate", "Which colour is the code?", "--adapter", adapter),
        *("--max-new-tokens", 20, "--dtype", "float32"),
    )
    assert answer.strip() == "Blue."
    merged = tmp_path / "merged"
    said(capsys, "merge", "--adapter", adapter, "--out", merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    end = tokenizer.convert_tokens_to_ids(END)
    question = [{"role": "user", "content": "Which colour is the code?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text == PROMPT
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    wanted = [*tokenizer("Blue.")["input_ids"], end]
    model = AutoModelForCausalLM.from_pretrained(merged)
    made = model.generate(**ids, do_sample=False, max_new_tokens=20)[0, ids["input_ids"].shape[1] :]
    assert made.tolist() == wanted

    for kind, flags in {"f32": (), "q4_k_m": ("--quantize", "q4_k_m")}.items():
        file = tmp_path / f"{kind}.gguf"
        said(capsys, "export", adapter, "--to", "gguf-merged", "--out", file, *flags)
        assert field(file, "tokenizer.ggml.eot_token_id") == end
        assert field(file, "tokenizer.chat_template") == Template("chat", TEMPLATE, SYSTEM).baked()
        with LlamaCpp(file) as there:
            assert there.prompt(text) == ids["input_ids"][0].tolist()
            assert there.answer(there.prompt(text), 20) == wanted

    adapter_file = tmp_path / "adapter.gguf"
    told = said(capsys, "export", adapter, "--to", "gguf", "--out", adapter_file)
    (eot,) = re.findall(r"--override-kv tokenizer\.ggml\.eot_token_id=int:(\d+)", told)
    assert int(eot) == end
    from gguf_oracle import convert
    from lorakit.models.sources import resolve
    from lorakit.models.spec import ModelSpec

    base_file = tmp_path / "base.gguf"
    convert(
        "convert_hf_to_gguf.py",
        [[resolve(ModelSpec()).folder, "--outtype", "f32", "--outfile", base_file]],
    )
    with LlamaCpp(base_file, adapter_file) as there:
        # Without the flag it does not end there, so the first tokens are compared.
        assert there.greedy(there.prompt(text), len(wanted), ()) == wanted
    with LlamaCpp(base_file) as there:
        assert not there.ends(int(eot))  # what the flag is for


@pytest.mark.smol
@pytest.mark.readers
def test_ollamas_folder_prompts_and_answers_as_lorakit_does(taught, tmp_path, capsys):
    from go_templates import rendered
    from llama_cpp import LlamaCpp

    adapter = taught / "run" / "adapter"
    out = tmp_path / "ollama"
    told = said(capsys, "export", adapter, "--to", "ollama", "--quantize", "Q8_0", "--out", out)
    assert f"ollama create NAME -f {out}/Modelfile" in told
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert f'PARAMETER stop "{END}"' in text
    assert f'SYSTEM """{SYSTEM}"""' in text
    (go,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    # Ollama puts the Modelfile's SYSTEM first.
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Which colour is the code?"},
    ]
    _, tokenizer = load_model()
    ours = encode_prompt(
        Example("q", prompt="Which colour is the code?"),
        tokenizer,
        Template("chat", TEMPLATE, SYSTEM),
    )
    prompt = rendered(go, messages)
    assert prompt == rendered(go, messages[1:]) == PROMPT
    with LlamaCpp(out / "model.gguf") as there:
        assert there.prompt(prompt) == ours.tolist()
        made = there.answer(there.prompt(prompt), 20)
    assert tokenizer.decode(made) == f"Blue.{END}"
    assert field(out / "model.gguf", "general.file_type") == 7  # Q8_0


@pytest.mark.smol
def test_a_file_that_says_where_answers_end(tmp_path, capsys):
    """A tiny model of the built-in model's words; the adapter's template ends at another token."""
    from test_export_gguf import small, with_words

    base = with_words(small("llama", vocab_size=49152), tmp_path / "b")
    model, _ = load_model(str(base), dtype="float32")
    adapter = recorded(model, tmp_path / "adapter", Template("chat", TEMPLATE, SYSTEM))
    file = tmp_path / "merged.gguf"
    said(capsys, "export", adapter, "--to", "gguf-merged", "--out", file, "--model", base)
    assert field(file, "tokenizer.ggml.eot_token_id") == 6
    assert field(file, "tokenizer.ggml.eos_token_id") == 2
    assert field(file, "tokenizer.ggml.add_bos_token") is False
    assert field(file, "tokenizer.chat_template") == Template("chat", TEMPLATE, SYSTEM).baked()


def test_the_small_tokenizer_has_what_the_templates_name():
    assert small_tokenizer().convert_tokens_to_ids(["<pad>", "<|im_start|>"]) == [2, 3]
