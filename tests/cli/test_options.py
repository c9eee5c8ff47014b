"""Flags made from the specs."""

import pytest
import typer
from typer.testing import CliRunner

from lorakit.cli.options import flatten, with_options


def run(*arguments: str, **options):
    seen = {}

    def command(flags):
        """Help."""
        seen.update(flags)

    app = typer.Typer()
    app.command()(with_options(command, ("rank", "targets", "rslora", "max_steps"), **options))
    outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exit_code == 0, outcome.output
    return seen


def test_only_what_was_given_arrives():
    assert run() == {}
    assert run("--rank", "4") == {"rank": "4"}
    assert run("--rslora") == {"rslora": True}
    assert run("--no-rslora") == {"rslora": False}


def test_a_commands_own_default_counts_unless_the_flag_is_given():
    assert run(rank=32) == {"rank": 32}
    assert run("--rank", "4", rank=32) == {"rank": "4"}


@pytest.mark.parametrize(
    "given", [["a", "b,c"], ["a,b,c"], ["a", "b", "c"]], ids=["mixed", "commas", "repeated"]
)
def test_lists_may_repeat_the_flag_or_use_commas(given):
    assert flatten({"targets": given}) == {"targets": ("a", "b", "c")}


def test_a_regular_expression_keeps_its_commas():
    assert flatten({"targets": ["re:a{1,2}", "b"]}) == {"targets": ("re:a{1,2}", "b")}


def test_the_command_says_it(lorakit, train):
    outcome = train("--epochs", 3, "--samples", 0)
    assert outcome.code == 0, outcome.err
    assert "epochs has no effect: max_steps 4 says how long the run is." in outcome.out
