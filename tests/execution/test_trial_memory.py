"""What trials found is kept on disk, holds for the same model alone, and never changes what is computed."""

import json
import os

import pytest
import torch

import lorakit
from architectures import tiny_folder
from families import saved, tiny
from lorakit.errors import ConfigError
from lorakit.execution import facts as facts_module
from lorakit.execution import packing, trial, trial_memory
from lorakit.execution.facts import facts_of
from lorakit.execution.generate import generate
from lorakit.execution.runnable import Packed, Runnable
from lorakit.execution.stepping import open_steps
from lorakit.files.cache import cache_dir
from lorakit.models import load_model


@pytest.fixture(autouse=True)
def remembering(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(trial_memory.VARIABLE, raising=False)


@pytest.fixture
def compared(monkeypatch):
    """The ways that are compared with the model's own code, in the order they are."""
    ways = []
    same = trial.same_answer

    def watch(model, way, *arguments, **options):
        ways.append(way)
        return same(model, way, *arguments, **options)

    for module in trial_memory_users():
        monkeypatch.setattr(module, "same_answer", watch)
    return ways


def trial_memory_users():
    from lorakit.execution import answer_probs, continuing, stepping, together

    return (trial, packing, facts_module, stepping, continuing, together, answer_probs)


def rows():
    ids = torch.arange(20, 45)
    places = torch.cat([torch.arange(9), torch.arange(16)])
    return Packed(ids, places, (9, 16))


def files():
    return sorted((cache_dir() / "trials").glob("*.json"))


def ready(base, longest=0, attach=True):
    """A model as training makes it ready, and what it computes."""
    model, _ = load_model(str(base))
    if attach:
        lorakit.attach(model, lorakit.LoraSpec(rank=2))
    runnable = Runnable(model, longest=longest)
    ids = torch.arange(len(rows().ids_T))
    compute = runnable.logits if runnable.packs else runnable.unpacked_logits
    state = (runnable.way, runnable.by_sequence, runnable.fused_blocks, runnable.head is None)
    return state, compute(rows(), ids).detach()


@pytest.mark.parametrize("family", ["llama", "mamba", "roberta", "xlm", "bamba"])
def test_another_process_tries_nothing_and_computes_the_same(family, tmp_path, compared):
    """Packed and fused; modules by sequence; places that the model counts; padded or alone."""
    if family in ("llama",):
        base = saved(tmp_path / "base")
    else:
        changes = {"causal": True} if family == "xlm" else {}
        base = tiny_folder(family, tmp_path / "base", **changes)
    first, logits = ready(base, longest=30)
    assert compared
    compared.clear()
    second, again = ready(base, longest=30)
    assert compared == []
    assert second == first
    assert torch.equal(again, logits)
    os.environ[trial_memory.VARIABLE] = "again"
    third, anew = ready(base, longest=30)
    assert compared
    assert third == first
    assert torch.equal(anew, logits)


def test_generation_and_serving_are_tried_once(tmp_path, compared):
    base = tiny_folder("phi4_multimodal", tmp_path / "base")
    asked = [list(range(20, 41)), list(range(50, 57))]
    answers, ways = [], []
    for _ in range(2):
        model, words = load_model(str(base))
        answers.append(generate(model, words, asked, max_new_tokens=9))
        ways.append(
            (facts_of(model).continues_apart, open_steps(load_model(str(base))[0], 40)[0].way)
        )
        compared.append("--")
    assert answers[0] == answers[1]
    assert ways[0] == ways[1]
    assert compared.index("--") > 0
    # That whole rows are the same when they are asked again is nothing that a file could say.
    assert set(compared[compared.index("--") + 1 :]) <= {"asked again", "--"}


def test_what_an_answer_depends_on_is_in_its_key(tmp_path):
    base = saved(tmp_path / "base")
    model, _ = load_model(str(base), dtype="float32")
    keys = {"as loaded": trial_memory.key_of(model)}
    assert trial_memory.key_of(load_model(str(base), dtype="float32")[0]) == keys["as loaded"]
    model.model.layers[0].self_attn.scaling *= 2
    keys["a setting of a module"] = trial_memory.key_of(model)
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    keys["pairs"] = trial_memory.key_of(model)
    lorakit.detach(model)
    lorakit.attach(model, lorakit.LoraSpec(rank=3))
    keys["other pairs"] = trial_memory.key_of(model)
    lorakit.detach(model)
    keys["a number format"] = trial_memory.key_of(model.bfloat16())
    model.config.attention_dropout = 0.5
    keys["a configuration"] = trial_memory.key_of(model)
    os.utime(base / "model.safetensors", (1, 1))
    keys["files"] = trial_memory.key_of(load_model(str(base), dtype="float32")[0])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    keys["config.json"] = trial_memory.key_of(load_model(str(base), dtype="float32")[0])
    (base / "modeling_own.py").write_text("")
    keys["code that lies beside them"] = trial_memory.key_of(
        load_model(str(base), dtype="float32")[0]
    )
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys)


def test_models_that_their_files_do_not_describe_are_tried_each_time(tmp_path):
    base = saved(tmp_path / "base")
    assert trial_memory.key_of(tiny("llama")) is None
    hooked, _ = load_model(str(base))
    hooked.lm_head.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert trial_memory.key_of(hooked) is None
    replaced, _ = load_model(str(base))
    replaced.lm_head.forward = lambda x: x
    assert trial_memory.key_of(replaced) is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[1]",
        '{"of": 1, "answers": {}}',
        '{"of": "OWN", "answers": [true]}',
        '{"of": "OWN", "answers": {"the head alone": "yes"}}',
        '{"of": "OWN", "answers": {"packed route, rows of (7, 12) tokens": {"switched": 7}}}',
        "another",
        "a folder",
    ],
)
def test_a_file_that_is_damaged_or_of_another_model_is_left_aside(damage, tmp_path, compared):
    base = saved(tmp_path / "base")
    first = ready(base)
    (file,) = files()
    held = json.loads(file.read_text())
    if damage == "another":
        text = json.dumps(held | {"of": "0" * 64, "answers": dict.fromkeys(held["answers"], False)})
    else:
        text = damage.replace("OWN", held["of"])
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        file.write_text(text)
    compared.clear()
    state, logits = ready(base)
    assert compared
    assert state == first[0]
    assert torch.equal(logits, first[1])
    if damage != "a folder":  # and it is written anew
        assert json.loads(file.read_text()) == held


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "taken"))
    assert ready(saved(tmp_path / "base"))[0][0] == "packed"


def test_the_variable_says_again_or_nothing(tmp_path, monkeypatch):
    base = saved(tmp_path / "base")
    monkeypatch.setenv(trial_memory.VARIABLE, "again")
    ready(base)
    assert files() == []
    monkeypatch.setenv(trial_memory.VARIABLE, "never")
    with pytest.raises(ConfigError, match="LORAKIT_TRIALS is 'never': set it to 'again'"):
        ready(base)


def test_a_wrong_answer_that_is_kept_would_be_taken(tmp_path):
    """The file is read: were it not, all of these tests would pass."""
    base = saved(tmp_path / "base")
    ready(base)
    (file,) = files()
    held = json.loads(file.read_text())
    route = next(q for q in held["answers"] if q.startswith("packed route"))
    file.write_text(json.dumps(held | {"answers": {**held["answers"], route: {}}}))
    assert ready(base)[0][0] == "padded"
