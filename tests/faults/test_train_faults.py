"""`lorakit train`, hit at any write or step, goes on to the same bits."""

import json
from pathlib import Path

from harness import Command, check_faults, hashes

from lorakit.adapters.pairs import read_stored
from lorakit.training.checkpoint import load_checkpoint

TRAIN = ("train", "--model", "model", "--data", "rows.jsonl", "--out", "run", "--rank", "2")
TRAIN += ("--batch-size", "4", "--max-steps", "4", "--eval-every", "2", "--checkpoint-every", "2")
TRAIN += ("--samples", "1", "--max-new-tokens", "2")
TIMES = ("seconds", "real_tokens_per_second")


def test_a_run_goes_on_to_the_same_bits(warm, inputs, tmp_path, how):
    """Without pages, which take longer than the rest."""
    command = Command(
        TRAIN, inputs, readable=readable, content=content, again=again, without=("matplotlib",)
    )
    check_faults(command, warm, tmp_path, how, most=12 if how == "kill" else 6)


def test_a_page_that_was_not_written_is_written_by_resume(warm, inputs, tmp_path, how):
    command = Command(
        TRAIN,
        inputs,
        readable=readable,
        content=content,
        again=again,
        within=r"^run/(plots|.?report)",
    )
    check_faults(command, warm, tmp_path, how, most=1)


def again(folder: Path) -> list[tuple[str, ...]]:
    """As a user would: resume where there is a run, else begin again."""
    begun = (folder / "run" / "config.yaml").is_file()
    return [(*TRAIN, "--resume") if begun else TRAIN]


def readable(folder: Path) -> None:
    run = folder / "run"
    if (run / "adapter").exists():
        read_stored(run / "adapter")
    for name in ("result.json", "samples.json"):
        if (run / name).exists():
            json.loads((run / name).read_text())
    for checkpoint in run.glob("checkpoints/step-*"):
        described = json.loads((checkpoint / "progress.json").read_text())
        by = described.get(
            "kernels", "plain"
        )  # as the run computed, whatever this process would take
        found = load_checkpoint(run / "checkpoints", run=described["run"], kernels=by)
        assert found is not None


def content(folder: Path) -> dict[str, object]:
    """Adapter and configuration by their bytes; the events but for the times they took.

    The line that a checkpoint was written comes after it: a kill between the two leaves it out.
    """
    run = folder / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [
        {k: v for k, v in line.items() if k not in TIMES}
        for line in lines
        if line["kind"] != "checkpoint"
    ]
    found = hashes(run / "adapter", run / "config.yaml")
    del found["adapter/lorakit.json"]  # it says of the command whether it had --resume
    record = json.loads((run / "adapter" / "lorakit.json").read_text())
    del record["provenance"]["config"]["resume"]
    # The base by its full path, which is another in each repetition.
    assert Path(record["provenance"]["asking"].pop("model")) == (folder / "model").absolute()
    return {**found, "record": record, "events": events}
