"""What a run's folder keeps of how it was made."""

import shlex

import pytest

from lorakit.config import read_yaml
from lorakit.errors import OutputError
from lorakit.run.folder import CONFIG, check_folder, command_of, write_config


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


def test_a_run_killed_at_its_first_file_can_be_begun_again(tmp_path):
    (tmp_path / f".{CONFIG}.partial-0123abcd" / "new").mkdir(parents=True)
    check_folder(tmp_path, resume=False)
    write_config(tmp_path, {"seed": 0}, "lorakit train")
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]


@pytest.mark.parametrize("name", [".partial-0123abcd", ".notes.partial-1", "x.partial-0123abcd"])
def test_a_hidden_folder_of_somebody_else_is_something(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="is not empty"):
        check_folder(tmp_path, resume=False)
