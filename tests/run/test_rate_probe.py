"""The rate to go on with, and going on in Python."""

import pytest
import torch
from safetensors.torch import load_file

import lorakit
from families import saved
from lorakit.adapters.hub import FILES
from lorakit.run import rate_probe
from lorakit.run.rate_probe import FACTORS, chosen, probe_rate, probe_steps, walk
from lorakit.tasks import CAUSAL_LM
from lorakit.training import TrainSpec

WORDS = [
    "lamp",
    "desk",
    "river",
    "stone",
    "cloud",
    "paper",
    "window",
    "garden",
    "copper",
    "violet",
    "silver",
    "orange",
]
ROWS = [{"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS]
MORE = [{"prompt": f"say {word}", "completion": word[::-1]} for word in ("bread", "mirror")]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return saved(tmp_path / "tiny-llama")


@pytest.fixture
def trained(base, tmp_path):
    """A model with pairs that are trained and saved, as they are loaded again."""
    model, tokenizer = lorakit.load_model(lorakit.ModelSpec(model=str(base), dtype="float32"))
    lorakit.attach(model, lorakit.LoraSpec(rank=4))
    result = lorakit.train(
        model, tokenizer, ROWS, eval_data=ROWS, max_steps=40, batch_size=4, learning_rate=0.01
    )
    folder = lorakit.save_adapter(model, tmp_path / "parent")
    lorakit.detach(model)
    lorakit.load_adapter(model, folder, trainable=True)
    return model, tokenizer, folder, result


@pytest.mark.parametrize("at", range(len(FACTORS)))
def test_a_walk_ends_at_the_lowest_of_a_valley(at):
    losses = [abs(i - at) + 1.0 for i in range(len(FACTORS))]
    assert walk(lambda i: losses[i], before=100.0) == 1.0


def test_where_every_try_harms_the_walk_is_short():
    tried = []
    walk(lambda i: tried.append(FACTORS[i]) or 5.0 + FACTORS[i], before=5.0)
    assert tried == [0.3, 1.0, 0.1]


def test_a_short_try_does_not_decide_for_the_lowest_rate():
    def of(*losses, whole=False):
        return chosen(dict(zip((1e-4, 1e-3, 1e-2), losses, strict=False)), 1.0, whole=whole)

    # The largest gain is .4, and half of it is there at .8 and below.
    assert of(0.9, 0.6) == 1e-3
    assert of(0.6, 0.8) == 1e-3
    assert of(0.6, 0.9) == pytest.approx(10 ** (-4 + 2 / 3), abs=5e-6)  # .8 lies at two thirds
    assert of(0.6, 1.0, 9.0) == pytest.approx(10**-3.5, abs=5e-6)
    assert of(0.6, 0.8, 9.0) == 1e-3
    assert of(0.6, 1.0, 9.0, whole=True) == 1e-4
    # Where every try harms, the least harm; no line leads to a rate that diverged.
    assert of(1.01, 1.2) == 1e-4
    assert of(0.6) == 1e-4


def test_a_probe_leaves_everything_as_it_was_and_measures_what_it_says(trained):
    model, tokenizer, _, _ = trained
    spec = TrainSpec(batch_size=4)
    from lorakit.data import load_data
    from lorakit.data.given import as_source

    table = load_data(
        lorakit.DataSpec(data=(as_source(ROWS),), eval_share=0.0), tokenizer, context_length=256
    ).train
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    events = []
    found = probe_rate(model, table, [table], 0.05, 8, spec, task=CAUSAL_LM, report=events.append)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    told = {event["learning_rate"]: event["loss"] for event in events}
    assert told.items() >= dict(found.losses).items()
    assert found.steps in probe_steps(8)
    assert min(found.losses) <= found.learning_rate <= max(found.losses)
    # Without rows to judge by there is no probe.
    none = probe_rate(model, table, [], 0.05, 8, spec, task=CAUSAL_LM)
    assert (none.learning_rate, none.losses) == (pytest.approx(0.05 * rate_probe.UNMEASURED), {})
    assert "no rows are held out" in none.note


def test_loaded_pairs_are_gone_on_from(trained, tmp_path):
    model, tokenizer, folder, first = trained
    assert (folder / "optimizer.safetensors").is_file()
    result = lorakit.train(model, tokenizer, MORE, eval_data=ROWS, batch_size=2, max_steps=4)
    assert result.eval_loss_before == pytest.approx(first.eval_loss, rel=1e-5)
    assert result.eval_loss <= result.eval_loss_before
    assert any("by a probe of" in note for note in result.notes)
    again = load_file(lorakit.save_adapter(model, tmp_path / "child") / "optimizer.safetensors")
    assert int(again["steps"]) == first.best_step + result.best_step


def test_pairs_that_were_trained_here_are_gone_on_from_too(trained, tmp_path):
    model, tokenizer, _, first = trained
    second = lorakit.train(
        model, tokenizer, ROWS, eval_data=ROWS, batch_size=4, max_steps=2, learning_rate=1e-3
    )
    third = lorakit.train(
        model, tokenizer, ROWS, eval_data=ROWS, batch_size=4, max_steps=2, learning_rate=9.0
    )
    assert not any("by a probe" in note for note in (*second.notes, *third.notes))
    assert third.best_step == 0
    assert third.eval_loss == pytest.approx(second.eval_loss, rel=1e-5)
    assert any("no step was better" in note for note in third.notes)
    state = load_file(lorakit.save_adapter(model, tmp_path / "child") / "optimizer.safetensors")
    assert int(state["steps"]) == first.best_step + second.best_step


def test_fresh_pairs_begin_by_the_rule(base):
    model, tokenizer = lorakit.load_model(lorakit.ModelSpec(model=str(base), dtype="float32"))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    result = lorakit.train(model, tokenizer, ROWS, eval_data=ROWS, batch_size=4, max_steps=2)
    assert not any("probe" in note for note in result.notes)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_and_exports_take_no_notice_of_the_moments(trained, base, tmp_path):
    peft = pytest.importorskip("peft")
    model, _, folder, _ = trained
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, folder)
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids).logits, atol=1e-5)
    lorakit.detach(model)
    lorakit.export(folder, "vllm", tmp_path / "vllm", model=model)
    assert not list((tmp_path / "vllm").rglob("optimizer.safetensors"))
    assert "optimizer.safetensors" not in FILES  # what `lorakit push` uploads
