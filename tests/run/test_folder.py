"""What a run's folder keeps of how it was made."""

import shlex

import pytest

from lorakit.config import read_yaml
from lorakit.run.folder import CONFIG, command_of, write_config


@pytest.mark.parametrize(
    "prompt", ["{text}", "{text}\n", "first\n\nthird: # '{text}'\n", "Frage:\t{text} – é\n{{"]
)
def test_a_command_of_several_lines_stands_above_the_options(tmp_path, prompt):
    command = shlex.join(["lorakit", "compare", "--prompt", prompt])
    write_config(tmp_path, {"prompt": prompt, "seed": 0}, command)
    assert read_yaml(tmp_path / CONFIG) == {"prompt": prompt, "seed": 0}
    assert shlex.split(command_of(tmp_path)) == shlex.split(command)


def test_a_configuration_by_hand_has_no_command(tmp_path):
    (tmp_path / CONFIG).write_text("seed: 0\n")
    assert command_of(tmp_path) == ""
