"""A command line that typer cannot read is one error with what to write, not a page."""

import pytest

from lorakit.cli.main import run


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["adapters", "show"], "ADAPTER is missing: write `lorakit adapters show ADAPTER`"),
        (["adapters", "rename", "a"], "NEW is missing: write `lorakit adapters rename OLD NEW`"),
        (["push", "a"], "REPOSITORY is missing: write `lorakit push ADAPTER REPOSITORY`"),
        (["train", "--data"], "--data needs a value after it"),
        (["chat", "--max-new-tokens"], "--max-new-tokens needs a value after it"),
        (["train", "--rslora=maybe"], "--rslora is a switch and takes no value"),
        (["generate", "--temperature", "x", "hi"], "--temperature is 'x'; it must be a number"),
        (["generate", "--seed=1.5", "hi"], "--seed is '1.5'; it must be a whole number"),
    ],
)
def test_what_typer_refuses_is_one_error(line, says, capfd):
    assert run(line) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1
    words = line[:2] if line[0] == "adapters" else line[:1]
    assert f"`lorakit {' '.join(words)} --help`" in err


@pytest.mark.parametrize("line", [[], ["adapters"]])
def test_a_group_alone_lists_its_commands(line, capfd):
    assert run(line) == 2
    assert "Commands" in capfd.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`lorakit train --help | head -1`: nothing is printed of a broken pipe."""
    import subprocess
    import sys

    asked = subprocess.Popen(
        [sys.executable, "-m", "lorakit", "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked.stdout.readline()
    asked.stdout.close()
    assert asked.stderr.read() == ""
    asked.stderr.close()
    assert asked.wait(60) in (0, 1)
