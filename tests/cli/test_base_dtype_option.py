"""`--base-dtype` from the command line: trained, recorded, put on another base, counted, refused."""

import hashlib
import json
import re

import pytest

import lorakit as package
from families import saved
from lorakit.adapters import load_adapter, save_adapter
from lorakit.kernels.packed.counting import packing_of, weight_bytes, workspace_bytes
from lorakit.lora import LoraSpec, attach
from lorakit.models import empty_model, load_model
from lorakit.models.packable import bytes_held
from lorakit.models.spec import BASE_DTYPES

PACKED = [name for name in BASE_DTYPES if name != "full"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("quantized") / "base")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("quantized") / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."}) + "\n"
            for n in range(24)
        )
    )
    return file


def trained(lorakit, base, rows, out, *options):
    return lorakit(
        *("train", "--model", base, "--data", rows, "--out", out, "--epochs", 1),
        *("--rank", 4, "--samples", 0, "--dtype", "float32", *options),
    )


def digest(model):
    """Of every tensor of a model but those of pairs, by the names that they have without pairs."""
    hashes = {
        name.replace(".base.", "."): hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if not name.endswith((".A", ".B"))
    }
    return sorted(hashes.items())


@pytest.fixture(scope="module")
def adapters(base, rows, tmp_path_factory):
    """Trained beside a base in nf4 and beside one in full precision."""
    made = {}
    for name in ("nf4", "full"):
        model, tokenizer = load_model(str(base), dtype="float32", base_dtype=name)
        before = digest(model)
        attach(model, LoraSpec(rank=4))
        package.train(model, tokenizer, str(rows), epochs=1)
        assert digest(model) == before
        made[name] = save_adapter(model, tmp_path_factory.mktemp("quantized") / name)
    return made


@pytest.mark.parametrize("name", PACKED)
def test_train_and_go_on_from_its_run_file(lorakit, base, rows, tmp_path, name, caplog):
    said = trained(lorakit, base, rows, tmp_path / "run", "--base-dtype", name)
    assert said.code == 0, said.err
    assert f"base in {name}, the rest in float32, on cpu" in said.out
    record = json.loads((tmp_path / "run" / "adapter" / "lorakit.json").read_text())
    assert record["provenance"]["base_dtype"] == name
    assert f"base_dtype: {name}" in (tmp_path / "run" / "config.yaml").read_text()
    losses = re.findall(r"held-out loss ([\d.]+) before, ([\d.]+) after", said.out)
    assert float(losses[0][1]) < float(losses[0][0])
    told = lorakit(
        "eval", "--adapter", tmp_path / "run" / "adapter", "--data", rows, "--base-dtype", name
    )
    assert told.code == 0, told.err
    assert "trained beside a base" not in told.err + told.out
    # Without the option the base is held as it was then; with another one it is said.
    ask = ("eval", "--adapter", tmp_path / "run" / "adapter", "--data", rows, "--dtype", "float32")
    found = {}
    for option in ((), ("--base-dtype", name), ("--base-dtype", "full")):
        caplog.clear()
        one = lorakit(*ask, "--metrics", "none", *option)
        loss = re.findall(r"loss \(nats per token\) +([\d.]+)", one.out)
        found[option[-1] if option else None] = loss, "trained beside a base" in caplog.text
    assert found[None] == found[name] == (found[name][0], False)
    assert found["full"][1]
    assert found["full"][0] != found[name][0]


def test_a_note_where_the_base_is_held_otherwise(adapters, base, caplog):
    for trained_on, here, words in [
        (
            "nf4",
            "full",
            "it was trained beside a base in nf4, and this one is held in full precision",
        ),
        ("full", "int8", "beside a base in full precision, and this one is held in int8"),
        ("nf4", "nf4", None),
        ("full", "full", None),
    ]:
        caplog.clear()
        model, _ = load_model(str(base), dtype="float32", base_dtype=here)
        info = load_adapter(model, adapters[trained_on])
        said = caplog.text + " ".join(info.notes)
        assert ("was trained beside" in said) == (words is not None)
        assert words is None or words in said


@pytest.mark.parametrize("name", PACKED)
def test_bytes_of_the_forecast_are_those_in_memory(base, name):
    model, _ = load_model(str(base), dtype="bfloat16", base_dtype=name)
    outline = empty_model(str(base), dtype="bfloat16")
    assert bytes_held(outline, name) == weight_bytes(model) + workspace_bytes(model)
    full, _ = load_model(str(base), dtype="bfloat16")
    assert bytes_held(outline, "full") == weight_bytes(full)
    assert packing_of(full) is None


def test_check_says_which_formats_fit(lorakit, base):
    said = lorakit("check", "--model", base, "--base-dtype", "nf4", "--dtype", "bfloat16")
    assert said.code == 0, said.err
    assert "in nf4, the rest in bfloat16," in said.out
    assert re.search(r"memory by --base-dtype: full .*, nf4 .*, int4 .*, int8 .*, fp8 ", said.out)


def test_refusals(lorakit, base, rows, tmp_path):
    said = trained(lorakit, base, rows, tmp_path / "r", "--base-dtype", "nf5")
    assert "base_dtype 'nf5' is unknown" in said.err
