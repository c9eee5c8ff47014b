"""Where pairs alone are meant, an adapter with more beside them is refused with the way out."""

import pytest
import torch

from adapter_models import adapt
from families import tiny
from lorakit.adapters import save_adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.export.families import GgufBase
from lorakit.adapters.export.gguf import write_gguf_adapter
from lorakit.adapters.export.vllm import vllm_safe
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.parents import Part
from lorakit.adapters.shrink import shrink
from lorakit.adapters.specs import CombineSpec, ShrinkSpec
from lorakit.errors import AdapterError, TargetError
from lorakit.execution.stepping import slotted
from lorakit.lora import LoraSpec, plan
from lorakit.lora.jobs import Jobs
from lorakit.serving.bank import Bank

NAMED = r"beside its pairs it holds base_model\.model\.model\.norm\.weight \(1 such tensors\)"


@pytest.fixture
def stored(tmp_path):
    model = adapt(tiny("llama"), targets=("q_proj",), modules_to_save=("model.norm",))
    return read_stored(save_adapter(model, tmp_path / "a"))


def test_what_works_on_pairs_alone(stored, tmp_path):
    ways = {
        "merge the adapters one after the other": lambda: combine(
            [Part(stored)], CombineSpec(how="svd", rank=2)
        ),
        "train one of a lower rank": lambda: shrink(stored, ShrinkSpec(rank=2)),
        "serve the merged model": lambda: vllm_safe(stored),
        "gguf-merged": lambda: write_gguf_adapter(
            stored, tmp_path / "a.gguf", base=GgufBase("llama", 2, 6, 2, False)
        ),
    }
    for way_out, do in ways.items():
        with pytest.raises(AdapterError, match=f"{NAMED}, and .*; .*{way_out}"):
            do()


def test_slots(stored):
    base = tiny("llama")
    layers = slotted(base)
    bank = Bank(layers, [(path,) for path in layers], 2, 4, dtype=torch.float32, device=base.device)
    with pytest.raises(AdapterError, match=r"holds more than pairs .* lorakit merge"):
        bank.stage(stored)


def test_several_adapters_on_one_base():
    base = tiny("llama")
    made = plan(base, LoraSpec(rank=2, targets=("q_proj",), modules_to_save=("model.norm",)))
    with pytest.raises(TargetError, match=r"model\.norm\.weight is to be trained beside the pairs"):
        Jobs(base, [made], [0])
