"""What a run's folder keeps of how it was made."""

import shlex

import pytest

from lorakit.config import read_yaml
from lorakit.errors import OutputError
from lorakit.run.folder import CONFIG, check_folder, command_of, take_folder, write_config


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
    half, own = tmp_path / f".{CONFIG}.partial-0123abcd", tmp_path / ".adapter.replaced-0123abcd"
    half.write_text("see")
    own.mkdir()
    (own / "README.md").write_text("of the adapter before")
    check_folder(tmp_path, resume=False)
    take_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".partial-0123abcd", ".notes.partial-1", "x.partial-0123abcd"])
def test_what_no_run_calls_so_is_not_touched(tmp_path, name):
    (tmp_path / name).write_text("somebody's own")
    take_folder(tmp_path)
    assert (tmp_path / name).read_text() == "somebody's own"
    with pytest.raises(OutputError, match="is not empty"):
        check_folder(tmp_path, resume=False)
