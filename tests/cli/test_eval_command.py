"""`lorakit eval`: measures of labels, limits that are said, scores that stay."""

import json

import pytest

from lorakit.adapters.store import Store, content_id


@pytest.fixture
def labels_file(tmp_path):
    file = tmp_path / "labels.jsonl"
    names = ("card lost", "top up", "fee")
    rows = [{"prompt": f"question {i}", "completion": names[i % 3]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def measured(out):
    return json.loads((out / "result.json").read_text())


def test_labels_are_also_judged_by_their_likelihood(lorakit, model_folder, labels_file, tmp_path):
    done = lorakit("eval", "--model", model_folder, "--data", labels_file, "--out", tmp_path / "e")
    assert done.code == 0, done.err
    result = measured(tmp_path / "e")
    assert list(result["scores"])[:2] == ["accuracy", "macro_f1"]
    assert result["headline"] == "accuracy"
    assert result["choices"]["labels"] == ["card lost", "fee", "top up"]
    assert 0 <= result["choices"]["accuracy"] <= 1
    assert "right label likeliest" in done.out
    lines = [json.loads(s) for s in (tmp_path / "e" / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["probability"] == max(line["probabilities"].values())
        assert line["probabilities"][line["choice"]] == line["probability"]
    share = sum(line["choice"] == line["reference"] for line in lines) / len(lines)
    assert result["choices"]["accuracy"] == pytest.approx(share)


def test_choices_can_be_named_and_bad_ones_are_told(lorakit, model_folder, rows_file, tmp_path):
    done = lorakit("eval", "--model", model_folder, "--data", rows_file, "--max-new-tokens", 2,
                   "--metrics", "none", "--choices", "pmal, ksed", "--out", tmp_path / "e")  # fmt: skip
    assert done.code == 0, done.err
    result = measured(tmp_path / "e")
    assert result["scores"] == {}
    assert result["choices"]["labels"] == ["pmal", "ksed"]
    assert result["choices"]["accuracy"] <= 0.2, "rows with other answers are wrong"
    assert "8 of 10 references are none of the choices" in done.out
    for bad in ("yes", "a,,b", "a,b,a", "pmall,other"):
        done = lorakit("eval", "--model", model_folder, "--data", rows_file, "--choices", bad)
        assert done.code == 2
        assert "choices" in done.err


def test_answers_at_the_limit_are_said(lorakit, model_folder, rows_file, tmp_path):
    flags = ("eval", "--model", model_folder, "--data", rows_file)
    done = lorakit(*flags, "--max-new-tokens", 2, "--out", tmp_path / "short")
    assert "of 10 answers reached the limit of 2 tokens" in done.out
    assert measured(tmp_path / "short")["max_new_tokens"] == 2
    done = lorakit(*flags, "--out", tmp_path / "auto")
    # The longest answer has six letters and its end, byte by byte.
    assert measured(tmp_path / "auto")["max_new_tokens"] == 16


def test_training_says_it_too_and_records_the_limit(lorakit, train, rows_file, tmp_path):
    done = train("--max-new-tokens", 2, out=tmp_path / "run")
    assert done.code == 0, done.err
    assert "answers reached the limit of 2 tokens" in done.out
    record = json.loads((tmp_path / "run" / "adapter" / "lorakit.json").read_text())
    assert record["provenance"]["max_new_tokens"] == 16, (
        "what the references need, not what was given"
    )


def test_scores_stay_with_a_folder_and_a_version(lorakit, train, rows_file, model_folder, tmp_path):
    store = tmp_path / "store"
    assert train("--store", store, "--save-as", "words", out=tmp_path / "run").code == 0
    folder = tmp_path / "run" / "adapter"
    before = content_id(folder)
    version = Store(store).resolve("words").version.id
    for adapter in ("words", folder):
        done = lorakit("eval", "--model", model_folder, "--data", rows_file, "--store", store,
                       "--adapter", adapter, "--record")  # fmt: skip
        assert done.code == 0, done.err
        assert "recorded with" in done.out
    assert content_id(folder) == before
    (kept,) = Store(store).measurements()[version]
    assert kept.rows == 10
    assert kept.data == ("rows.jsonl",)
    assert set(kept.intervals) == set(kept.scores)
    listed = lorakit("adapters", "list", "--store", store)
    assert listed.code == 0
    assert len(listed.out.splitlines()) == 2
    added = lorakit("adapters", "add", folder, "again", "--store", store)
    assert added.code == 0
    assert "not copied" not in added.out


def test_a_base_has_nothing_to_record_with(lorakit, model_folder, rows_file):
    done = lorakit("eval", "--model", model_folder, "--data", rows_file, "--record")
    assert done.code == 2
    assert "--record keeps scores with an adapter" in done.err
