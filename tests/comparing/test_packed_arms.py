"""`compare --base-dtype`: adapters beside a packed base against full fine-tuning in full precision."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from families import saved
from lorakit.adapters import load_adapter
from lorakit.comparing.methods import Method, arms_of
from lorakit.comparing.planning import first_stamp, sources_of
from lorakit.comparing.spec import FORM
from lorakit.comparing.trials import PROFILE, CompareProfileRequest
from lorakit.config import load_config
from lorakit.data import load_data
from lorakit.experiments import in_process
from lorakit.experiments.measuring import measure_rows
from lorakit.lora import LoraSpec
from lorakit.models import empty_model, load_model
from lorakit.models.packable import bytes_held


def loss_of(base: Path, options: dict[str, Any], base_dtype: str, adapter: Path | None) -> float:
    """Held-out loss of a base as it is held, with an adapter or without."""
    config = load_config(
        None,
        {key: options[key] for key in ("model", "data", "dtype", "eval_share", "max_eval_rows")},
    )
    model, tokenizer = load_model(str(base), dtype="float32", base_dtype=base_dtype, device="cpu")
    if adapter is not None:
        load_adapter(model, adapter)
    data = load_data(config.data, tokenizer, seed=config.train.seed, context_length=512)
    return measure_rows(model, data.eval, 512).loss


def test_adapters_are_trained_beside_the_packed_base(
    small: Any, compare: Any, tmp_path: Path
) -> None:
    options = {**small, "seeds": 1, "base_dtype": "nf4", "control": True}
    result = compare(tmp_path / "out", options)
    full, lora, again = result["arms"]
    assert [each["name"] for each in result["arms"]] == [
        "full fine-tuning",
        "LoRA r=2, base in nf4",
        "LoRA r=2, base in nf4, again",
    ]
    assert full["method"]["base_dtype"] is None
    assert lora["method"]["base_dtype"] == again["method"]["base_dtype"] == "nf4"
    assert any("hold the base in nf4" in note for note in result["notes"])
    assert "base in nf4" in (tmp_path / "out" / "report.html").read_text()
    # Full fine-tuning begins as the base in full precision, the adapters as the packed one.
    base = Path(small["model"])
    for arm, held in ((full, "full"), (lora, "nf4")):
        begins = arm["course"][0]["loss"]["mean"]
        assert begins == pytest.approx(loss_of(base, options, held, None), rel=1e-5), arm["name"]
    assert full["course"][0]["kl"]["mean"] < 1e-4 < lora["course"][0]["kl"]["mean"]
    # Each adapter says what it was trained beside, and is measured there.
    for arm in (lora, again):
        (folder,) = (tmp_path / "out" / each for each in arm["measured"]["adapters"])
        record = json.loads((folder / "lorakit.json").read_text())
        assert record["provenance"]["base_dtype"] == "nf4"
        measured = loss_of(base, options, "nf4", folder)
        assert arm["losses"][0] == pytest.approx(measured, rel=1e-5)
        assert measured != pytest.approx(loss_of(base, options, "full", folder), rel=1e-5)


def test_the_forecast_counts_the_base_of_each_arm(small: Any, tmp_path: Path) -> None:
    given = FORM.read(None, {**small, "out": str(tmp_path / "out")})
    arms = arms_of(given.spec, LoraSpec(rank=2), "nf4")
    methods = [arm.method for arm in arms]
    assert [method.base_dtype for method in methods] == [None, "nf4"]
    methods.append(replace(methods[1], base_dtype=None))
    request = CompareProfileRequest(first_stamp(given.spec, given.config), tuple(methods))
    sources = sources_of(given.spec, given.config)
    runner = in_process(tmp_path, report=lambda event: None)
    full, packed, plain = PROFILE.run(runner, request, sources, "profile").estimates
    outline = empty_model(small["model"], dtype="float32")
    saved_bytes = bytes_held(outline, "full") - bytes_held(outline, "nf4")
    assert saved_bytes > 0
    assert plain.peak_memory_bytes - packed.peak_memory_bytes == saved_bytes
    assert full.peak_memory_bytes > plain.peak_memory_bytes


def test_experts_and_transposed_layers(small: Any, compare: Any, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "gpt_oss")
    own = {
        "model": str(base),
        "target_parameters": ("experts",),
        "targets": ("q_proj",),
        "seeds": 1,
        "base_dtype": "int8",
    }
    result = compare(tmp_path / "out", {**small, **own})
    full, lora = result["arms"]
    assert lora["method"]["base_dtype"] == "int8"
    assert full["trainable_parameters"] == result["total_parameters"]


def test_without_the_option_an_arm_is_named_and_described_as_before() -> None:
    given = FORM.read(None, {"ranks": (2,)})
    assert arms_of(given.spec, LoraSpec(rank=2), "full") == arms_of(given.spec, LoraSpec(rank=2))
    assert arms_of(given.spec, LoraSpec(rank=2))[1].method == Method("lora", LoraSpec(rank=2))
