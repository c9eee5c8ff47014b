"""Bad input: one clear message on stderr, exit code 2, no traceback, nothing lost."""

import errno
import json
import shutil

import pytest

from lorakit.run.commands import training


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    said = " ".join(outcome.err.split())
    for part in parts:
        assert part in said


def test_a_missing_file_names_its_neighbour(train, rows_file):
    refused(train(data=rows_file.with_name("row.jsonl")), "row.jsonl", "rows.jsonl")


def test_an_empty_file(train, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(train(data=empty), "empty.jsonl", "empty")


def test_broken_json_names_its_line(train, rows_file):
    rows_file.write_text(rows_file.read_text() + '{"prompt": "say x", "completion"\n')
    refused(train(), "rows.jsonl:11")


def test_a_column_that_is_not_there(train):
    refused(
        train("--prompt", "{promt}", "--completion", "{completion}"), "rows.jsonl:1", "'prompt'"
    )


def test_no_data_at_all(lorakit, model_folder, tmp_path):
    outcome = lorakit("train", "--model", model_folder, "--out", tmp_path / "run")
    refused(outcome, "data is empty")


def test_a_rank_of_zero(train):
    refused(train("--rank", 0), "rank must be a whole number of at least 1; it is 0")


def test_a_rank_above_the_layers_size(train):
    refused(train("--rank", 40), "rank 40 is above 16", "k_proj")


def test_a_rank_that_is_no_number(train):
    refused(train("--rank", "eight"), "rank is 'eight'; it must be a whole number")


def test_an_unknown_key_in_the_run_file(lorakit, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("rnak: 8\n")
    refused(lorakit("train", file), "run.yaml", "unknown key 'rnak'", "'rank'")


def test_a_run_file_that_is_no_yaml(lorakit, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("rank: [8\n")
    refused(lorakit("train", file), "run.yaml", "cannot be read as YAML")


def test_an_unknown_flag(lorakit):
    outcome = lorakit("train", "--rnak", 8)
    assert outcome.code == 2
    assert "--rnak" in outcome.err
    assert "--rank" in outcome.err


def test_an_unknown_command(lorakit):
    outcome = lorakit("trian")
    assert outcome.code == 2
    assert "train" in outcome.err


def test_an_unknown_model(train):
    refused(train("--model", "smollm2-135n"), "smollm2-135n", "smollm2-135m")


def test_a_target_that_matches_nothing(train):
    refused(train("--targets", "q_prj"), "'q_prj' matches no module", "q_proj")


def test_an_output_folder_that_is_not_empty(train, tmp_path):
    kept = tmp_path / "run" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    refused(train(), "is not empty", "notes.txt", "--out")
    assert kept.read_text() == "mine"


def test_an_output_that_is_a_file(train, tmp_path):
    (tmp_path / "run").write_text("mine")
    refused(train(), "is a file")


def test_nothing_to_resume(train):
    refused(train("--resume"), "holds no run to resume")


def test_a_full_disk_loses_nothing(train, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "adapter_model.safetensors")

    monkeypatch.setattr(training, "save_adapter", full)
    refused(train(), "no space left on the disk")
    run = tmp_path / "run"
    assert (run / "config.yaml").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) >= 5
    assert list((run / "checkpoints").glob("step-*/state.safetensors"))


def test_truncated_weights(train, model_folder, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(model_folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(train("--model", copy), "model.safetensors")


def test_a_row_too_long_says_how_many(train):
    refused(train("--max-length", 20), "rows.jsonl:1", "limit is 20", "--too-long drop")


@pytest.fixture
def adapter(train, tmp_path):
    assert train().code == 0
    return tmp_path / "run" / "adapter"


def test_a_truncated_adapter(lorakit, model_folder, adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    outcome = lorakit("generate", "--model", model_folder, "--adapter", adapter, "hello")
    refused(outcome, "adapter_model.safetensors")


def test_a_pickle_is_not_opened(lorakit, model_folder, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    outcome = lorakit("generate", "--model", model_folder, "--adapter", adapter, "hello")
    refused(outcome, "adapter_model.bin", "pickle")


def test_another_base_is_refused_unless_forced(lorakit, adapter, tmp_path):
    from families import tiny, tokenizer

    other = tmp_path / "other"
    tiny("llama", seed=1).save_pretrained(other)
    tokenizer().save_pretrained(other)
    command = ("generate", "--model", other, "--adapter", adapter, "--max-new-tokens", 2, "hello")
    refused(lorakit(*command), "tiny-llama", "other")
    assert lorakit(*command, "--force").code == 0


def test_an_unknown_metric(lorakit, model_folder, rows_file):
    outcome = lorakit(
        *("eval", "--model", model_folder, "--data", rows_file),
        *("--metrics", "exact_mach", "--max-new-tokens", 2),
    )
    refused(outcome, "exact_mach", "exact_match")


def test_a_shape_that_is_none(lorakit):
    refused(lorakit("count", "--shape", "512by64"), "512by64", "512x64")


def test_no_prompt(lorakit, model_folder):
    refused(lorakit("generate", "--model", model_folder), "no prompt")


def test_a_merge_into_a_full_folder(lorakit, model_folder, adapter):
    outcome = lorakit(*("merge", "--model", model_folder, "--adapter", adapter, "--out", adapter))
    refused(outcome, "adapter")
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 2
