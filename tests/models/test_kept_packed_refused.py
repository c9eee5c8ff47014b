"""Quantized folders that are damaged, or packed in a way that is not read: one message each."""

import pytest
import torch

from lorakit.errors import ModelError
from lorakit.models.load import load_model
from quantized_folders import FOLDERS, GPTQ, UP, edited, folder_of, packed_layers, settings


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gptq", {"quant_method": "hqq"}, "is quantized by 'hqq', which lorakit does not read"),
        ("gptq", {"quant_method": None}, "is quantized by None, which lorakit does not read"),
        ("gptq", {"checkpoint_format": "marlin"}, "GPTQ's layout 'marlin' is not read here"),
        ("gptq", {"quant_method": "awq", "version": "gemv"}, "AWQ's layout 'gemv' with 4 bits"),
        ("gptq", {"quant_method": "bitsandbytes"}, r"\(bitsandbytes\), but no tensor is"),
        ("gptq_v2_8bit", {"quant_method": "awq", "bits": 4}, "cannot be read: qweight, qzeros"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, name, changes, message):
    folder = folder_of(tmp_path, next(p for p in FOLDERS if p.name == name))
    settings(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{UP}.scales"), f"lack {UP}.scales"),
        (lambda t: t.update({f"{UP}.g_idx": t[f"{UP}.g_idx"] + 9}), "does not name a group"),
        (
            lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"][:, :8].contiguous()}),
            "do not fit one another",
        ),
        (
            lambda t: t.update({f"{UP}.bias": torch.ones(64)}),
            "holds model.layers.0.mlp.up_proj.bias",
        ),
        (lambda t: t.pop("model.norm.weight"), "lack 1 tensors of the model: model.norm.weight"),
        (
            lambda t: t.update({f"x.experts.0.w1.{n}": t[f"{UP}.{n}"].clone() for n in GPTQ}),
            "packs x.experts.0.w1, which is no layer of the model as transformers builds it",
        ),
        (
            lambda t: t.update(
                {f"{UP}.{n}": t[f"{UP.replace('up', 'down')}.{n}"].clone() for n in GPTQ}
            ),
            r"up_proj is \(32, 64\), and config.json makes it \(64, 32\)",
        ),
    ],
)
def test_damaged_folders_are_one_message(tmp_path, edit, message):
    folder = folder_of(tmp_path, next(p for p in FOLDERS if p.name == "gptq"))
    edited(folder, edit)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_formats_are_not_packed_again(tmp_path):
    folder = folder_of(tmp_path, next(p for p in FOLDERS if p.name == "gptq"))
    assert len(packed_layers(load_model(str(folder), base_dtype="packed")[0])) == 7
    with pytest.raises(ModelError, match=r"is quantized already \(by gptq\)"):
        load_model(str(folder), base_dtype="nf4")
