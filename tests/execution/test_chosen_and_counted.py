"""Sparse attention and places that a model counts itself: packed rows against each row alone."""

import pytest
import torch

from architectures import tiny_model
from lorakit.errors import ModelError
from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.lora.jobs import Jobs
from lorakit.training.joint import check_can_share

# One token, rows within the sparse choice, and two of unlike length past it that share a rectangle.
LENGTHS = (9, 50, 1, 23, 37)
SPARSE = {"deepseek_v32", "glm_moe_dsa"}  # glm's layers hand their choice on
COUNTING = {"bart", "marian", "mvp", "roberta", "xmod"}


def adapted(family):
    """With pairs on the linear layers of the blocks, B not zero."""
    model = attach(tiny_model(family), LoraSpec(rank=1))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 10)
    return model


@pytest.mark.parametrize("family", sorted(SPARSE | COUNTING))
def test_packed_rows_are_each_row_alone(family):
    model = adapted(family)
    pairs = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (sum(LENGTHS),), generator=generator)
    weights = torch.randn(sum(LENGTHS), 300, generator=generator)
    alone = torch.cat(
        [model(input_ids=row[None], use_cache=False).logits[0] for row in ids.split(LENGTHS)]
    )
    wanted = torch.autograd.grad((alone * weights).sum(), pairs, allow_unused=True)
    runnable = Runnable(model, longest=max(LENGTHS))
    assert runnable.packs
    assert runnable.by_sequence
    rows = Packed(ids, torch.cat([torch.arange(n) for n in LENGTHS]), LENGTHS)
    logits = runnable.logits(rows, torch.arange(sum(LENGTHS)))
    assert (logits - alone).abs().max() < 1e-5 * alone.abs().max()
    gradients = torch.autograd.grad((logits * weights).sum(), pairs, allow_unused=True)
    for got, want in zip(gradients, wanted, strict=True):
        # An indexer chooses without a gradient; experts that no token takes have none either.
        assert (got is None) == (want is None)
        assert want is None or (got - want).norm() <= 1e-4 * want.norm().clamp_min(1e-6)
    # A call from elsewhere is what it was.
    again = model(input_ids=ids[None, :9], use_cache=False).logits[0]
    assert (again - alone[:9]).abs().max() < 1e-6 * alone.abs().max()


def test_a_model_is_no_module_of_its_own_that_counts():
    """A rope chosen by the longest row: run apart as a whole it would be right, and no packing."""
    runnable = Runnable(tiny_model("phi3+longrope"), longest=max(LENGTHS))
    assert runnable.way == "alone"
    assert runnable.by_sequence == ()


def test_jobs_do_not_share_rows_that_come_in_another_order():
    """Inside modules that get the sequences apart, whose rows are whose would be lost."""
    model = tiny_model("falcon")
    with pytest.raises(ModelError, match="train them one by one"):
        check_can_share(model)
    runnable, where = Runnable(model), plan(model, LoraSpec(rank=1))
    jobs = Jobs(model, [where, where], [0, 1])
    jobs.assign([(0, 0, 5), (1, 5, 9)])
    rows = Packed(torch.arange(9) + 5, torch.arange(9) % 5, (5, 4))
    with pytest.raises(ModelError, match="apart, so jobs cannot share"):
        runnable.logits(rows, torch.arange(9))
