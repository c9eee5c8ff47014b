"""lorakit's trainer against examples/train_flat.py, which shares no code with it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lorakit.adapters import load_adapter
from lorakit.data import TokenTable, order
from lorakit.data.table import Encoded
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.run.fitting import fit_model
from lorakit.training import Observers, Schedule, TrainSpec

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_flat.py"
RANK, ALPHA, PEAK, STEPS, BATCH = 4, 32.0, 5e-3, 9, 6
VOCABULARY = 61


@pytest.fixture(scope="module")
def flat():
    spec = importlib.util.spec_from_file_location("train_flat", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_llama(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    # Llama's own norm rounds to float32 whatever it is given; torch's keeps float64.
    for path, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            model.set_submodule(path, nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
    return model.to(dtype).eval()


def made_rows() -> list[tuple[list[int], list[int]]]:
    """Twenty rows of uneven lengths, each with a prompt that bears no loss."""
    draw = torch.Generator().manual_seed(7)
    rows = []
    for i in range(20):
        length = 3 + (5 * i) % 23
        ids = torch.randint(VOCABULARY, (length,), generator=draw).tolist()
        prompt = 1 + (3 * i) % (length - 1)
        rows.append((ids, [0] * prompt + [1] * (length - prompt)))
    return rows


def as_table(rows) -> TokenTable:
    return TokenTable.build(
        Encoded(torch.tensor(ids).int().numpy(), torch.tensor(bears).byte().numpy(), f"rows:{i}")
        for i, (ids, bears) in enumerate(rows, 1)
    )


def both(flat, dtype, *, clip=1.0, micro_rows=4, batch_tokens=50):
    """Losses of every step by lorakit and by the example, and the two models after them."""
    rows = made_rows()
    ours = attach(tiny_llama(dtype), LoraSpec(rank=RANK, alpha=ALPHA), seed=3)
    theirs = flat.adapt(tiny_llama(dtype), rank=RANK, alpha=ALPHA)
    pairs = lora_layers(ours)
    examples = {path: m for path, m in theirs.named_modules() if isinstance(m, flat.LoraLinear)}
    assert list(pairs) == list(examples)
    with torch.no_grad():
        for path, layer in pairs.items():
            examples[path].A.copy_(layer.A)
    spec = TrainSpec(batch_size=BATCH, batch_tokens=batch_tokens, warmup=0.25, clip=clip, seed=11)
    events = []
    fit_model(
        ours,
        as_table(rows),
        TokenTable.build([]),
        Schedule(STEPS, PEAK, spec),
        observers=Observers(report=events.append),
    )
    losses = flat.train(
        theirs,
        rows,
        list(order(len(rows), BATCH, steps=STEPS, seed=spec.seed)),
        learning_rate=PEAK,
        warmup=spec.warmup,
        clip=clip,
        micro_rows=micro_rows,
    )
    return [e["loss"] for e in events if e["kind"] == "train"], losses, ours, theirs


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)], ids=["f64", "f32"]
)
def test_every_step_has_the_loss_of_the_flat_example(flat, dtype, tolerance):
    ours, theirs, *_ = both(flat, dtype)
    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=0, abs=tolerance)
    assert ours[-1] < ours[0]


def test_clipping_and_the_split_into_batches_agree(flat):
    ours, theirs, *_ = both(flat, torch.float64, clip=0.05, micro_rows=1, batch_tokens=10_000)
    assert ours == pytest.approx(theirs, rel=0, abs=1e-12)
    loose, *_ = both(flat, torch.float64, clip=100.0)
    assert ours != pytest.approx(loose, rel=0, abs=1e-6)


def test_the_example_starts_as_lorakit_does(flat):
    ours = attach(tiny_llama(torch.float32), LoraSpec(rank=RANK, alpha=ALPHA), seed=5)
    theirs = flat.adapt(tiny_llama(torch.float32), rank=RANK, alpha=ALPHA, seed=5)
    for path, layer in lora_layers(ours).items():
        assert torch.equal(layer.A, theirs.get_submodule(path).A)
        assert layer.scale == theirs.get_submodule(path).scale


@pytest.mark.parametrize("schedule_steps", [1, 4, 33])
def test_the_schedule_is_lorakits(flat, schedule_steps):
    from lorakit.training import learning_rate_at

    for warmup in (0.0, 0.06, 0.5):
        spec = TrainSpec(warmup=warmup)
        for step in range(schedule_steps):
            expected = learning_rate_at(step, schedule_steps, 2e-3, spec)
            made = flat.learning_rate_at(step, schedule_steps, 2e-3, warmup)
            assert made == pytest.approx(expected, rel=1e-12)


def test_what_the_example_saves_is_an_adapter(flat, tmp_path):
    _, _, ours, theirs = both(flat, torch.float32)
    flat.save(theirs, tmp_path / "adapter", rank=RANK, alpha=ALPHA)
    loaded = tiny_llama(torch.float32)
    load_adapter(loaded, tmp_path / "adapter")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(ids).logits, expected, rtol=0, atol=1e-3)


class Words:
    """A tokenizer of whole words, with nothing that the example does not need."""

    eos_token_id, chat_template = 0, None

    def __call__(self, text, add_special_tokens=True):
        start = [1] if add_special_tokens else []
        return {"input_ids": start + [2 + len(word) for word in text.split()]}


def test_a_row_bears_loss_on_its_completion_and_its_end(flat):
    ids, bears = flat.encode(Words(), "a bb ccc", " dddd")
    assert ids == [1, 3, 4, 5, 6, 0]
    assert bears == [0, 0, 0, 0, 1, 1]


def test_every_epoch_has_every_row_once(flat):
    steps = flat.shuffled(7, 3, 2, seed=1)
    assert [len(rows) for rows in steps] == [3, 3, 1, 3, 3, 1]
    first, second = ([row for step in part for row in step] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
