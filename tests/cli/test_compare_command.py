"""`lorakit compare` as a user types it; what it computes is tested in tests/comparing."""


def flat(text):
    return " ".join(text.replace("│", " ").split())


def test_help_teaches(lorakit):
    said = flat(lorakit("compare", "--help").out)
    for part in (
        *("by one protocol", "--ranks", "--budget", "--general-data", "--resume", "--forecast"),
        *("lorakit compare --data rows.jsonl", "10 minutes", "[default: 8]"),
    ):
        assert part in said, part
    for decided in ("--learning-rate", "--epochs", "--rank ", "--keep"):
        assert decided not in said


def test_a_forecast_runs_nothing_and_leaves_nothing(lorakit, model_folder, rows_file, tmp_path):
    outcome = lorakit(
        *("compare", "--model", model_folder, "--data", rows_file, "--forecast"),
        *("--ranks", "2,4", "--out", tmp_path / "run", "--eval-share", 0.2),
    )
    assert outcome.code == 0, outcome.err
    said = flat(outcome.out)
    for part in ("full fine-tuning", "LoRA r=2", "LoRA r=4", "trials, probes", "of memory"):
        assert part in said, part
    # Before anything is trained: two test rows of ten tell nothing.
    assert (
        "nothing will be said of the arms: 2 test rows, and fewer than 12 have no interval" in said
    )
    assert "one seed" not in said
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_message(lorakit, model_folder, rows_file, tmp_path):
    common = ("compare", "--model", model_folder, "--data", rows_file, "--out", tmp_path / "run")
    for flags, words in (
        (("--budget", "3 hours"), "give a number and a unit"),
        (("--ranks", "8,x"), "ranks is"),
        (("--seeds", 0), "seeds must be at least 1"),
        (("--eval-share", 0.0), "nothing is held out"),
        (("--general-data", tmp_path / "none.jsonl"), "none.jsonl"),
    ):
        outcome = lorakit(*common, *flags)
        assert outcome.code == 2, outcome.out + outcome.err
        assert words in flat(outcome.err), outcome.err
        assert "Traceback" not in outcome.err + outcome.out
