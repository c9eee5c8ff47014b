"""Going on from an adapter with rows that are new to it among rows that it knows.

How many new rows a step had is counted by its supervised tokens: the answers of new rows are longer.
"""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import lorakit
from families import saved
from lorakit.adapters import read_adapter
from lorakit.adapters.trained_rows import TRAINED_ROWS, read_trained_rows
from lorakit.errors import ConfigError
from lorakit.lora import lora_layers
from lorakit.run.rehearsing import auto_weight

OLD = [
    "lamp",
    "desk",
    "rain",
    "sand",
    "moon",
    "fish",
    "gold",
    "wind",
    "tree",
    "bird",
    "snow",
    "iron",
]
NEW = ["milk", "coal"]


def old(words=OLD):
    return [{"prompt": f"say {word}", "completion": "x"} for word in words]


def new(words=NEW):
    return [{"prompt": f"say {word}", "completion": "xxxxxxxx"} for word in words]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("models") / "tiny-llama")
    return lorakit.load_model(lorakit.ModelSpec(model=str(folder), dtype="float32"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    """An adapter that was trained on all the old rows."""
    return fresh(base, tmp_path_factory.mktemp("parents") / "parent", old(), max_steps=3)


@pytest.fixture
def parent(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "parent"))


def fresh(base, folder: Path, rows, **options) -> Path:
    model, tokenizer = base
    lorakit.detach(model)
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    run(model, tokenizer, rows, **options)
    return lorakit.save_adapter(model, folder)


def run(model, tokenizer, rows, **options):
    """Train; the result, and how many new rows each step had."""
    events = []
    given = {"eval_share": 0.0, "batch_size": 4, "max_steps": 4, "learning_rate": 1e-3}
    given |= {"template": "raw", **options}
    result = lorakit.train(model, tokenizer, rows, report=events.append, **given)
    tokens = [event["loss_tokens"] for event in events if event["kind"] == "train"]
    # An old answer is one byte and its end, a new one eight bytes and its end.
    counts = [(count - 4 * 2) / 7 for count in tokens]
    return result, counts


def go_on(base, folder: Path, rows, **options):
    model, tokenizer = base
    lorakit.detach(model)
    lorakit.load_adapter(model, folder, trainable=True)
    return run(model, tokenizer, rows, **options)


def recorded(adapter: Path) -> int:
    rows, why = read_trained_rows(adapter, read_adapter(adapter).tensors_sha256)
    assert why == ""
    return 0 if rows is None else rows.rows


def said(result) -> str:
    return " ".join(result.notes)


def tensors(model):
    return {path: layer.B.detach().clone() for path, layer in lora_layers(model).items()}


def test_new_rows_are_taken_more_often(base, parent):
    result, new_in_steps = go_on(base, parent, [*new(), *old()])
    # √(12 / 2) = 2.449. 2 · 2.4 of 16.8 slots are 1.143 in a step: 1, 2, 3 and 5 after each of four.
    assert "2 of 14 rows are new to the parent: each is taken 2.4 times as often" in said(result)
    assert new_in_steps == [1, 1, 1, 2]
    assert result.steps == 4


def test_order_spaces_and_files_do_not_make_a_row_new(base, parent, tmp_path):
    known = [{"prompt": f"say\t {word}\n", "completion": "x"} for word in OLD[::-1]]
    result, new_in_steps = go_on(base, parent, [*known[:5], *new(), *known[5:]])
    assert "2 of 14 rows are new to the parent" in said(result)
    assert new_in_steps == [1, 1, 1, 2]
    # A correction is new, whatever its prompt is.
    result, _ = go_on(base, parent, [*old(), *new(["lamp"])])
    assert "1 of 13 rows is new to the parent" in said(result)


def test_long_runs_take_new_rows_less_often():
    # 12 known, 2 new, 4 a step: √6 = 2.449 while 4 passes over 2 rows are not exceeded.
    assert auto_weight(2, 14, steps=4, batch_size=4) == 2.4
    assert auto_weight(2, 14, steps=8, batch_size=4) == 2.0  # 32 · 2 / (2 · 2 + 12) = 4
    assert auto_weight(2, 14, steps=10, batch_size=4) == 1.5  # 40 · 1.5 / (1.5 · 2 + 12) = 4
    assert auto_weight(2, 14, steps=99, batch_size=4) == 1
    # Eight times is the most, and more new rows than known ones need no more than their share.
    assert auto_weight(2, 1_002, steps=10, batch_size=8) == 8
    assert auto_weight(60, 100, steps=10, batch_size=8) == 1


def test_a_weight_that_is_given_is_taken(base, parent):
    # 2 · 2 of 16 slots of a round are new: one row in every step of 4.
    result, new_in_steps = go_on(base, parent, [*new(), *old()], new_row_weight=2)
    assert new_in_steps == [1, 1, 1, 1]
    assert "each is taken 2 times as often" in said(result)


def test_rows_of_one_kind_are_taken_as_without_a_record(base, parent, tmp_path):
    bare = Path(shutil.copytree(parent, tmp_path / "bare"))
    (bare / TRAINED_ROWS).unlink()
    model = base[0]
    for rows, weight in ((old(), "auto"), (new(), "auto"), ([*new(), *old()], 1)):
        result, _ = go_on(base, parent, rows, new_row_weight=weight)
        ours = tensors(model)
        assert "times as often" not in said(result)
        result, _ = go_on(base, bare, rows)
        assert "times as often" not in said(result)
        assert all(bool((ours[path] == B).all()) for path, B in tensors(model).items())
    result, _ = go_on(base, parent, old(), new_row_weight=3)
    assert "new_row_weight 3 has no effect: no row is new" in said(result)


def test_an_adapter_of_peft_records_none(base, parent, tmp_path):
    for name in (TRAINED_ROWS, "lorakit.json", "optimizer.safetensors"):
        (parent / name).unlink()
    result, _ = go_on(base, parent, [*new(), *old()])
    assert "alike" not in said(result)
    result, _ = go_on(base, parent, [*new(), *old()], new_row_weight=3)
    assert "all rows are taken alike: " in said(result)
    assert "records no rows" in said(result)
    # What it is trained on from now on is recorded.
    assert recorded(lorakit.save_adapter(base[0], tmp_path / "child")) == 14


def test_more_rows_than_an_adapter_records(base, parent, monkeypatch):
    file = parent / TRAINED_ROWS
    from safetensors.torch import save_file

    held = load_file(file)
    save_file({**held, "hashes": held["hashes"][:0], "rows": held["rows"] + 2**20}, file)
    result, _ = go_on(base, parent, [*new(), *old()])
    assert "was trained on 1,048,588 rows, more than it keeps a record of" in said(result)


def test_a_damaged_record_is_not_used_and_that_is_said(base, parent):
    (parent / TRAINED_ROWS).write_bytes(b"no tensors")
    result, _ = go_on(base, parent, [*new(), *old()])
    assert "the rows that the parent was trained on are not known" in said(result)


def test_rows_of_a_parents_parent_are_known(base, parent, tmp_path):
    go_on(base, parent, new())
    second = lorakit.save_adapter(base[0], tmp_path / "second")
    assert recorded(second) == 14
    result, _ = go_on(base, second, [*old(), *new(), *new(["tin"])])
    assert "1 of 15 rows is new to the parent: each is taken 3.7 times as often" in said(result)


def test_a_row_that_is_there_twice_is_two_rows(base, parent, tmp_path):
    result, _ = go_on(base, parent, [*new(), *new(), *old()])
    assert "4 of 16 rows are new to the parent: each is taken 1.7 times as often" in said(result)
    assert recorded(lorakit.save_adapter(base[0], tmp_path / "child")) == 14


def test_only_rows_that_led_to_the_adapter_are_recorded(base, tmp_path):
    assert recorded(fresh(base, tmp_path / "part", old(), max_steps=2)) == 8
    assert recorded(fresh(base, tmp_path / "all", old(), max_steps=7)) == 12
    # Their many letters are what a model that answers with x and an end finds unlikely.
    contrary = [{"prompt": f"say {word}", "completion": word * 6} for word in OLD]
    options = {"eval_data": contrary, "learning_rate": 9.0, "warmup": 0.0}
    nothing = fresh(base, tmp_path / "none", old(), max_steps=2, **options)
    assert not (nothing / TRAINED_ROWS).exists()


def test_pairs_in_memory_know_their_rows_too(base, parent):
    model, tokenizer = base
    go_on(base, parent, [*new(), *old()])
    again, _ = run(model, tokenizer, [*new(), *old()])
    assert "new to the parent" not in said(again)
    more, _ = run(model, tokenizer, [*new(["tin"]), *old()], new_row_weight=3)
    assert "1 of 13 rows is new to the parent: each is taken 3 times" in said(more)
    lorakit.detach(model)
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    with pytest.raises(ConfigError, match="leave new_row_weight out"):
        run(model, tokenizer, old(), new_row_weight=3)
