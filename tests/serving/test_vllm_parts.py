"""What is said to vLLM and understood of it, without any vLLM."""

import json
import random
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engines import base, make_adapter

from families import tokenizer
from lorakit.adapters.info import read_adapter
from lorakit.adapters.load import load_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.errors import AdapterError, ConfigError, EngineError
from lorakit.execution.stepping import adaptable
from lorakit.models import ModelSpec
from lorakit.serving.answers import Prompt
from lorakit.serving.grammar import Grammars
from lorakit.serving.sampling import Chosen, Sampling
from lorakit.serving.spec import EngineSpec, RuntimeSpec
from lorakit.serving.vllm.command import Launch, arguments, check_options, environment
from lorakit.serving.vllm.exports import NOTHING, Exports, own_folder
from lorakit.serving.vllm.log import end_of
from lorakit.serving.vllm.program import Program, find_python
from lorakit.serving.vllm.stream import message_of, read, request, seed_of

# peft 0.21 asks transformers 5.24 by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
PROGRAM = Program("/env/bin/python", "1.2", "cpu", apart=False)
LAUNCH = Launch(Path("/base"), "base", Path("/run/vllm"), 32, 5120)
VLLM = RuntimeSpec(engine="vllm")


def options(words):
    """--name value … as a dict; a flag without a value is True."""
    found, name = {}, None
    for word in words:
        if word.startswith("--"):
            name = word
            found[name] = True
        else:
            found[name] = word
    return found


def test_options_become_vllms():
    spec = EngineSpec(slots=5, slot_rank=32, max_running=7, step_tokens=300, cache_gb=2.5)
    words = arguments(PROGRAM, LAUNCH, ModelSpec(dtype="bfloat16"), spec, VLLM)
    assert words[:5] == ["/env/bin/python", "-m", "vllm.entrypoints.cli.main", "serve", "/base"]
    said = options(words[5:])
    assert said["--max-loras"] == "6"  # one more, for the adapter that changes nothing
    assert said["--max-lora-rank"] == "32"
    assert said["--max-num-seqs"] == "7"
    assert said["--max-model-len"] == "5120"
    assert said["--dtype"] == "bfloat16"
    assert said["--uds"] == "/run/vllm"
    assert said["--kv-cache-memory-bytes"] == "2500000000"
    assert said["--enable-lora"] is True
    assert "--max-num-batched-tokens" not in said
    assert "--trust-remote-code" not in said


def test_on_a_gpu_vllm_has_a_cache_of_its_own_and_needs_no_slot_for_the_base():
    gpu = replace(PROGRAM, device="cuda", apart=True)
    spec = EngineSpec(slots=5)
    said = options(arguments(gpu, LAUNCH, ModelSpec(trust_remote_code=True), spec, VLLM)[5:])
    assert said["--max-loras"] == "5"
    assert "--kv-cache-memory-bytes" not in said
    assert said["--trust-remote-code"] is True
    given = replace(LAUNCH, given=("cache_gb", "step_tokens"))
    said = options(arguments(gpu, given, ModelSpec(), spec, VLLM)[5:])
    assert said["--kv-cache-memory-bytes"] == "1000000000"
    assert said["--max-num-batched-tokens"] == "256"


def test_where_the_command_does_not_run_the_older_way_is_taken():
    older = replace(PROGRAM, has_command=False)
    words = arguments(older, LAUNCH, ModelSpec(), EngineSpec(), VLLM)
    assert words[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "/base"]
    usual = arguments(PROGRAM, LAUNCH, ModelSpec(), EngineSpec(), VLLM)
    assert words[5:] == usual[5:]


def test_more_options_are_vllms_own():
    more = RuntimeSpec(engine="vllm", vllm_args="--enforce-eager --seed 7")
    words = arguments(PROGRAM, LAUNCH, ModelSpec(), EngineSpec(), more)
    assert words[-3:] == ["--enforce-eager", "--seed", "7"]
    check_options(more, ModelSpec(), EngineSpec(), ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--max-loras 3", "give lorakit's --slots"),
        ("--max_lora_rank=64", "give lorakit's --slot-rank"),
        ("--max-num-b 9", "give lorakit's --step-tokens"),  # its parser takes beginnings of names
        ("--api-key none", "give lorakit's --keys"),
        ("--uds /tmp/x", "leave it out"),
        ("--ssl-keyfile a", "leave it out"),
        ("'", "cannot be read"),
    ],
)
def test_what_lorakit_says_itself_is_not_said_twice(text, said):
    with pytest.raises(ConfigError, match=said):
        check_options(RuntimeSpec(engine="vllm", vllm_args=text), ModelSpec(), EngineSpec(), ())


def test_what_means_nothing_is_refused_and_not_ignored():
    with pytest.raises(ConfigError, match="--patience"):
        check_options(VLLM, ModelSpec(), EngineSpec(patience=1.0), ("patience",))
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        check_options(VLLM, ModelSpec(device="cpu"), EngineSpec(), ())
    with pytest.raises(ConfigError, match="none above 512"):
        check_options(VLLM, ModelSpec(), EngineSpec(slot_rank=513), ())
    for name, value in (("vllm", "/env"), ("vllm_args", "--seed 1"), ("vllm_seconds", 5.0)):
        with pytest.raises(ConfigError, match="give --engine vllm"):
            RuntimeSpec(**{name: value})


def test_the_key_is_in_the_variables_and_an_older_word_for_the_cache_is_not():
    made = environment({"PATH": "/bin", "VLLM_CPU_KVCACHE_SPACE": "40"}, "secret")
    assert made["VLLM_API_KEY"] == "secret"
    assert made["PATH"] == "/bin"
    assert "VLLM_CPU_KVCACHE_SPACE" not in made
    assert "secret" not in arguments(PROGRAM, LAUNCH, ModelSpec(), EngineSpec(), VLLM)


def test_which_python_is_meant(tmp_path, monkeypatch):
    home = tmp_path / "env"
    (home / "bin").mkdir(parents=True)
    python = home / "bin" / "python"
    python.symlink_to(sys.executable)
    command = home / "bin" / "vllm"
    command.write_text(f"#!{python}\n")
    command.chmod(stat.S_IRWXU)
    for asked in (home, python, command):
        assert find_python(str(asked)) == str(python)
    # pip writes this where the path is too long for a first line.
    command.write_text("#!/bin/sh\n'''exec' …\n")
    assert find_python(str(command)) == str(python)
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert find_python("vllm") == str(python)
    assert find_python(None) == str(python)  # this environment has none, the PATH has
    python.unlink()
    with pytest.raises(ConfigError, match="give that python"):
        find_python(str(command))
    with pytest.raises(ConfigError, match="has no bin/python"):
        find_python(str(home))
    with pytest.raises(ConfigError, match=r"there is no .*pip install vllm"):
        find_python(str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="torch and a transformers of its own"):
        find_python(None)


def prompt(**more):
    return Prompt(ids=[5, 6], key="k", load=None, name="n", most=9, ends=frozenset({4, 1}), **more)


def test_a_prompt_becomes_a_request():
    wish = Sampling(0.5, 0.9, 0, 7, 2)
    body = request(prompt(stop=("x",), sampling=wish, choice=1), "adapter")
    assert body["model"] == "adapter"
    assert body["prompt"] == [5, 6]
    assert body["max_tokens"] == 9
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.5, 0.9, -1)
    assert body["stop"] == ["x"]
    assert body["stop_token_ids"] == [1, 4]
    assert body["ignore_eos"] is False
    assert body["logprobs"] == 2
    plain = request(replace(prompt(), ends=frozenset(), sampling=Sampling(top_k=3)), "m")
    assert plain["ignore_eos"] is True
    assert plain["top_k"] == 3
    assert plain["seed"] is None
    assert "logprobs" not in plain


def test_what_a_request_wishes_beyond_the_usual_goes_by_vllms_names():
    usual = set(request(prompt(), "m"))
    grammar = Grammars(tokenizer(), 300).compile("json", {"type": "integer"}, frozenset({1}))
    wish = Sampling(
        min_p=0.1,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias=((7, -100.0), (8, 1.5)),
        min_tokens=3,
        bad_words=("no",),
        bad_ids=((30, 31),),
        allowed_ids=(5, 6),
        grammar=grammar,
    )
    body = request(replace(prompt(), sampling=wish, stop_shown=True, specials=None), "m")
    more = {name: value for name, value in body.items() if name not in usual}
    schema = more.pop("structured_outputs")["json"]
    assert {k: v for k, v in schema.items() if k != "x-guidance"} == {"type": "integer"}
    assert more == {
        "min_p": 0.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"7": -100.0, "8": 1.5},
        "min_tokens": 3,
        "bad_words": ["no"],
        "allowed_token_ids": [5, 6],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    marked = request(replace(prompt(), specials=frozenset({9})), "m")
    assert marked["skip_special_tokens"] is False  # a mark of a tool call is to be seen


def test_vllm_keeps_schemas_by_the_library_that_checks_them_here():
    words = arguments(PROGRAM, LAUNCH, ModelSpec(), EngineSpec(), VLLM)
    assert json.loads(options(words)["--structured-outputs-config"]) == {"backend": "guidance"}


def test_answers_of_a_request_have_seeds_of_their_own_that_vllm_takes():
    seeds = {seed_of(seed, choice) for seed in (-(2**63), 0, 1, 2**63 - 1) for choice in range(8)}
    assert len(seeds) == 32
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, 1) == seed_of(3, 1)


def piece(wanted=None, **choice):
    return read({"choices": [{"index": 0, **choice}]}, wanted)


def test_a_piece_of_a_stream_is_understood():
    got = piece(text="ab", token_ids=[7, 8], finish_reason=None)
    assert (got.text, got.tokens, got.finish) == ("ab", (Chosen(7), Chosen(8)), None)
    assert piece(text="", token_ids=[1], finish_reason="stop").finish == "stop"
    usage = {"prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}}
    assert read({"choices": [], "usage": usage}, None).reused == 16
    assert read({"choices": [], "usage": {"prompt_tokens": 20}}, None).reused is None


def test_of_the_likeliest_tokens_as_many_are_told_as_were_asked_for():
    """vLLM adds the chosen token to them, wherever it stands."""
    drawn = {"token_id:9": -5.0, "token_id:3": -0.1, "token_id:4": -2.5}
    logprobs = {"tokens": ["token_id:9"], "token_logprobs": [-5.0], "top_logprobs": [drawn]}
    asked = {"text": "x", "token_ids": [9], "logprobs": logprobs}
    assert piece(2, **asked).tokens == (Chosen(9, -5.0, ((3, -0.1), (4, -2.5))),)
    assert piece(0, **asked).tokens == (Chosen(9, -5.0, ()),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ({"choices": [{"text": "x", "finish_reason": None}]}, "no token ids"),
        ({"choices": [{"text": "", "token_ids": [], "finish_reason": "abort"}]}, "abort"),
    ],
)
def test_a_stream_that_fails_says_so(content, said):
    with pytest.raises(EngineError, match=said):
        read(content, None)


def test_errors_of_every_form_are_read():
    assert message_of({"error": {"message": "a"}}) == "a"
    assert message_of({"error": "Unauthorized"}) == "Unauthorized"
    assert message_of({"message": "b", "object": "error"}) == "b"
    assert message_of(["c"]) == "['c']"


def test_the_end_of_a_log_has_the_reason_that_stands_above_it():
    lines = [f"INFO {i}" for i in range(100)]
    lines[40] = "\x1b[0;36m(EngineCore pid=1)\x1b[0;0m ERROR ValueError: no memory for the cache"
    lines[41] = "(APIServer pid=2) ERROR ValueError: no memory for the cache"
    said = end_of("\n".join(lines)).splitlines()
    assert said[0] == "ValueError: no memory for the cache"
    assert said[1:] == lines[-8:]
    assert end_of("\n \n") == ""
    assert end_of("one") == "one"


@pytest.fixture(scope="module")
def tiny():
    return base("llama")


def test_an_export_computes_the_same(tiny, tmp_path):
    folder = make_adapter(base("llama"), tmp_path / "a", 6, 3, rank_pattern={"v_proj": 3})
    exports = Exports(tmp_path / "out", adaptable(tiny), 16)
    made = exports.open(folder, "key")
    assert made == tmp_path / "out" / "key"
    assert set(read_adapter(made).ranks.values()) == {8}
    ids = torch.arange(5, 45)[None]
    wanted, got = base("llama"), base("llama")
    load_adapter(wanted, folder)
    load_adapter(got, made)
    with torch.no_grad():
        torch.testing.assert_close(got(ids).logits, wanted(ids).logits, rtol=1e-5, atol=1e-4)
    assert exports.open(folder, "key") == made  # again, over what is there
    exports.forget("key")
    assert not made.exists()


def test_what_does_not_fit_is_refused_with_the_option_that_helps(tiny, tmp_path):
    exports = Exports(tmp_path, adaptable(tiny), 16)
    path = next(iter(exports.targets))
    assert exports.width({path: 16}, "a") == 1
    with pytest.raises(AdapterError, match="give --slot-rank 32"):
        exports.width({path: 17}, "a")
    with pytest.raises(AdapterError, match="merge it"):
        exports.width({path: 513}, "a")
    with pytest.raises(AdapterError, match="linear layers of the blocks"):
        exports.width({"lm_head": 4}, "a")


def test_the_adapter_that_changes_nothing_changes_nothing(tiny, tmp_path):
    from peft import PeftModel

    exports = Exports(tmp_path, adaptable(tiny), 16)
    folder = exports.nothing()
    stored = read_stored(folder)
    assert stored.pairs.keys() == exports.targets.keys()
    assert not any(pair.A.any() or pair.B.any() for pair in stored.pairs.values())
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 1
    ids = torch.tensor([random.Random(0).choices(range(5, 200), k=30)])
    model = PeftModel.from_pretrained(base("llama"), folder)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny(ids).logits)
    assert folder.name == NOTHING


def test_a_folder_lives_as_long_as_its_process(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    root = tmp_path / "vllm"
    with own_folder() as mine:
        assert stat.S_IMODE(mine.stat().st_mode) == 0o700
        left = root / "ofthedead"
        left.mkdir()
        (left / "file").touch()
        left.with_suffix(".lock").touch()
        with own_folder() as other:
            assert not left.exists()
            assert mine.is_dir()
            assert mine != other
        assert not other.exists()
    assert [path for path in root.iterdir() if not path.name.startswith(".")] == []
