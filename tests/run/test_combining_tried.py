"""`adapters combine --data`: every way is measured on held-out rows of each parent's task."""

import json
import re
import shlex

import pytest
import torch

import lorakit
from families import saved
from lorakit.adapters.pairs import read_stored
from lorakit.cli.main import run
from lorakit.errors import BaseMismatchError, ConfigError
from lorakit.run.commands import trying

WORDS = ("lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet")
MAPPED = ("--prompt", r"{question}\n", "--completion", "{answer}")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two adapters trained on files of their own, with a mapping; a fifth of the rows is held out."""
    place = tmp_path_factory.mktemp("two")
    saved(place / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("LORAKIT_CACHE", str(place / "cache"))
        patch.setenv("LORAKIT_STORE", str(place / "store"))
        for name, change in (("a", str.upper), ("b", lambda word: word[::-1])):
            table = "".join(f"{name} {w} {v},{change(w)}\n" for w in WORDS for v in WORDS[:3])
            (place / f"{name}.csv").write_text("question,answer\n" + table)
            line = ("train", "--model", "model", "--data", f"{name}.csv", *MAPPED, "--rank", "4")
            line += ("--eval-share", "0.2", "--max-steps", "8", "--learning-rate", "0.01")
            line += ("--samples", "0", "--save-as", name, "--out", f"run-{name}")
            assert run(line) == 0
        yield place


@pytest.fixture
def place(two, monkeypatch):
    monkeypatch.chdir(two)
    monkeypatch.setenv("LORAKIT_CACHE", str(two / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(two / "store"))
    return two


DATA = ["a.csv", "b.csv"]
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def tried(two):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(two)
        patch.setenv("LORAKIT_CACHE", str(two / "cache"))
        patch.setenv("LORAKIT_STORE", str(two / "store"))
        yield lorakit.combine(["a", "b"], data=DATA, name="both", **SHORT)


def held_out(place, name):
    """The rows that a run held out, as it says itself: those of its file that it did not train on."""
    return json.loads((place / f"run-{name}" / "result.json").read_text())


def test_all_ways_and_each_adapter_alone_are_measured(tried):
    assert [way.name for way in tried.alone] == ["a@1", "b@1"]
    assert [way.name for way in tried.ways] == ["sum", "weighted sum", "ties", "dare"]
    assert all(len(way.scores) == len(way.losses) == 2 for way in (*tried.alone, *tried.ways))
    assert tried.best.rank == max(way.rank for way in tried.ways)
    assert tried.place == "both@1 in the store"
    assert tried.chosen == tried.best.name


def test_each_adapter_is_measured_on_the_rows_that_its_training_held_out(place, tried):
    """The same rows, read in the same way: the loss of each alone is that of its own run's end."""
    for number, name in enumerate(("a", "b")):
        result = held_out(place, name)
        assert tried.rows[number] == 6
        assert tried.alone[number].losses[number] == pytest.approx(result["eval_loss"], rel=1e-4)
        assert "held out when" in tried.notes[number]


def test_the_adapter_that_is_kept_has_the_figures_that_were_shown(place, tried):
    """`lorakit eval` of the result on the held-out rows of a task, found anew."""
    folder = lorakit.Store().resolve("both").folder
    _, tokenizer = lorakit.load_model("model")
    spec = lorakit.DataSpec(data=("b.csv",), eval_share=0.2, prompt=MAPPED[1], completion=MAPPED[3])
    data = lorakit.data.load_data(spec, tokenizer, seed=0, context_length=512)
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in data.eval_examples]
    found = lorakit.evaluate(
        "model", rows, adapter=folder, prompt="{prompt}", completion="{completion}", **SHORT
    )
    best = next(way for way in tried.ways if way.name == tried.chosen)
    assert found["eval_loss"] == pytest.approx(best.losses[1], rel=1e-5)
    record = read_stored(folder).record.provenance["combined_on"]
    assert [task["adapter"] for task in record["tasks"]] == ["a@1", "b@1"]
    assert record["tasks"][1]["loss"] == best.losses[1]


def way(name, *by_row):
    means = tuple(sum(rows) / len(rows) for rows in by_row)
    return trying.TriedWay(
        name, ("exact_match",) * len(by_row), means, (1.0,) * len(by_row), by_row
    )


def test_what_the_rows_cannot_tell_is_said():
    """Paired by row: of 40 rows one more that is right is chance, and 20 more are not."""
    half = (1.0,) * 20 + (0.0,) * 20
    near, far = (1.0, *half[:-1]), (1.0,) * 40
    (said,) = trying._told_apart(way("ties", half, near), [way("dare", half, half)])
    assert said.startswith("ties and the next, dare, differ by 0.01")
    assert said.endswith("cannot tell which of them is better")
    others = [way("sum", half, half), way("dare", (0.0,) * 40, half)]
    (said,) = trying._told_apart(way("ties", half, far), others)
    assert said.startswith("ties and the next, sum, differ by 0.250")
    assert "cannot tell" not in said


def test_each_task_counts_the_same_however_many_rows_it_has():
    (said,) = trying._told_apart(
        way("ties", (1.0,) * 10, (0.0,) * 90), [way("dare", (0.0,) * 10, (0.0,) * 90)]
    )
    assert "differ by 0.500" in said


def test_a_way_that_is_named_is_kept_and_measured(place):
    made = lorakit.combine(["a", "b"], data=DATA, out="cut", how="svd", rank=3, **SHORT)
    assert made.chosen == "svd"
    assert [way.name for way in made.ways] == ["sum", "weighted sum", "ties", "dare", "svd"]
    assert {pair.rank for pair in read_stored("cut").pairs.values()} == {3}


def test_weights_that_were_given_are_the_weighted_sum(place):
    made = lorakit.combine([("a", 0.8), ("b", 0.2)], data=DATA, out="mine", how="linear", **SHORT)
    first, second, kept = (read_stored(f) for f in (_folder("a"), _folder("b"), "mine"))
    path = next(iter(first.pairs))
    expected = 0.8 * first.pairs[path].delta() + 0.2 * second.pairs[path].delta()
    torch.testing.assert_close(kept.pairs[path].delta(), expected, rtol=0, atol=1e-5)
    by_name = {way.name: way.losses for way in made.ways}
    assert by_name["linear"] == pytest.approx(by_name["weighted sum"], rel=1e-5)
    assert by_name["sum"] != pytest.approx(by_name["weighted sum"], rel=1e-5)


def _folder(name):
    return lorakit.Store().resolve(name).folder


def test_another_file_is_measured_whole_and_it_is_said(place):
    lines = (place / "b.csv").read_text().splitlines()
    (place / "new.csv").write_text("\n".join([lines[0], "b lamp x,pmal", "b desk x,ksed"]) + "\n")
    made = lorakit.combine(["a", "b"], data=["a.csv", "new.csv"], out="other", **SHORT)
    assert made.rows[1] == 2
    assert "not known to be what b@1 was trained on" in made.notes[1]


def test_the_command_shows_a_table_and_the_line_that_trains_on_both(place, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    line = ("adapters", "combine", "a", "b", "--data", "a.csv,b.csv", "--out", "shown")
    assert run([*line, "--max-new-tokens", "6", "--max-eval-rows", "3"]) == 0
    said = capfd.readouterr().out
    for name in ("a@1 alone", "b@1 alone", "sum", "weighted sum", "ties", "dare", "mean"):
        assert name in said
    assert len(re.findall(r"\(best\)", said)) == 1
    assert "3 rows of a.csv" in said
    printed = next(x for x in said.splitlines() if x.startswith("lorakit train"))
    for part in ("--data a.csv,b.csv", r"'{question}\n'", "--rank 4", "--model"):
        assert part in printed
    assert run([*shlex.split(printed)[1:], "--max-steps", "1", "--samples", "0"]) == 0


def test_tasks_that_are_mapped_in_different_ways_have_no_such_line(place, capfd):
    rows = "".join(f'{{"prompt": "c {w}", "completion": "{w}"}}\n' for w in WORDS)
    (place / "c.jsonl").write_text(rows)
    line = ("train", "--model", "model", "--data", "c.jsonl", "--max-steps", "1", "--samples", "0")
    assert run([*line, "--rank", "4", "--out", "run-c"]) == 0
    capfd.readouterr()
    line = ("adapters", "combine", "a", "run-c/adapter", "--data", "a.csv,c.jsonl", "--out", "ac")
    assert run([*line, "--max-new-tokens", "4", "--max-eval-rows", "2"]) == 0
    said = capfd.readouterr().out
    assert "lorakit train" not in said
    assert "into one file with the columns prompt and completion" in said


def test_adapters_of_different_bases_are_refused_before_anything_is_measured(place, monkeypatch):
    saved(place / "another-base", "qwen2")
    model, _ = lorakit.load_model("another-base")
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    identity = lorakit.models.identify(lorakit.ModelSpec("another-base"))
    lorakit.save_adapter(model, place / "foreign", identity=identity)
    monkeypatch.setattr(trying, "open_base", lambda *_, **__: pytest.fail("the base was opened"))
    with pytest.raises(BaseMismatchError):
        lorakit.combine(["a", "foreign"], data=DATA, out="never")


@pytest.mark.parametrize(
    ("data", "why"),
    [(["a.csv"], "2 adapters and 1 sources"), (["a.csv", "b.csv", "a.csv"], "3 sources")],
)
def test_a_source_for_each_adapter(place, data, why):
    with pytest.raises(ConfigError, match=why):
        lorakit.combine(["a", "b"], data=data, out="never")


def test_options_of_measuring_need_rows(place, capfd):
    assert run(["adapters", "combine", "a", "b", "--out", "x", "--max-eval-rows", "3"]) == 2
    assert "give --data as well" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="max_eval_rows"):
        lorakit.combine(["a", "b"], out="x", max_eval_rows=3)
