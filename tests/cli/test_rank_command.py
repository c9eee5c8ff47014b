"""`lorakit rank` as a user types it; what it computes is tested in tests/ranking."""

import json

import pytest


def flat(text):
    return " ".join(text.replace("│", " ").split())


def test_help_teaches(lorakit):
    said = flat(lorakit("rank", "--help").out)
    for part in (
        *("smallest rank", "--max-rank", "--tolerance", "--method", "--inspect", "--resume"),
        *("--exhaustive", "--verify", "--per-layer", "--metric", "[default: bracket]"),
        "lorakit rank --data rows.jsonl",
    ):
        assert part in said, part
    for decided in ("--rank ", "--keep", "--patience"):
        assert decided not in said


def test_bad_input_is_one_message(lorakit, model_folder, rows_file, tmp_path):
    common = ("rank", "--model", model_folder, "--data", rows_file, "--out", tmp_path / "run")
    for flags, words in (
        (("--tolerance", "much"), "give 'auto' or a share"),
        (("--max-rank", 1), "nothing to choose"),
        (("--method", "guess"), "method is 'guess'"),
        (("--metric", "blue"), "did you mean 'bleu'"),
        (("--rungs", "1,0.5"), "rungs must rise"),
        (("--force",), "force goes with --inspect"),
        (("--store", tmp_path), "store goes with --inspect"),
        (("--inspect", model_folder, "--max-rank", 4), "max_rank goes with a search"),
        (("--inspect", tmp_path / "none"), "none"),
    ):
        outcome = lorakit(*common, *flags)
        assert outcome.code == 2, outcome.out + outcome.err
        assert words in flat(outcome.err), outcome.err
        assert "Traceback" not in outcome.err + outcome.out
        assert not (tmp_path / "run").exists()


@pytest.fixture
def adapter(train, tmp_path):
    outcome = train("--rank", 4)
    assert outcome.code == 0, outcome.err
    return tmp_path / "run" / "adapter"


def test_the_spectrum_of_an_adapter_and_the_loss_of_its_cuts(
    lorakit, adapter, model_folder, rows_file, tmp_path
):
    outcome = lorakit("rank", "--inspect", adapter)
    assert outcome.code == 0, outcome.err
    said = flat(outcome.out)
    for part in (
        "effective rank",
        "cut to rank 4: 100.00% kept",
        "does not say which rank the task",
    ):
        assert part in said, part
    outcome = lorakit(
        *("rank", "--inspect", adapter, "--model", model_folder, "--data", rows_file),
        *("--out", tmp_path / "looked", "--dtype", "float32"),
    )
    assert outcome.code == 0, outcome.err
    made = json.loads((tmp_path / "looked" / "inspect.json").read_text())
    cuts = {cut["rank"]: cut for cut in made["cuts"]}
    assert list(cuts) == [1, 2, 4]
    # Uncut it is the adapter, whose loss `lorakit eval` measures by another way.
    whole = lorakit(
        *("eval", "--adapter", adapter, "--model", model_folder, "--data", rows_file),
        *("--metrics", "none", "--out", tmp_path / "eval", "--dtype", "float32"),
    )
    assert whole.code == 0, whole.err
    measured = json.loads(next((tmp_path / "eval").glob("*.json")).read_text())["eval_loss"]
    assert cuts[4]["loss"] == pytest.approx(measured, rel=1e-5)
    assert abs(cuts[1]["loss"] - measured) > 1e-6
    for layer in made["layers"]:
        assert 1 <= layer["effective_rank"] <= layer["rank"] == 4
        assert layer["rank_of_90"] <= layer["rank_of_99"] <= 4
    assert (tmp_path / "looked" / "plots" / "heat.png").is_file()
