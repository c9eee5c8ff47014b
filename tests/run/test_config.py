"""The run file and the flags."""

from dataclasses import fields

import pytest

from lorakit.config import RunConfig, load_config, options
from lorakit.errors import ConfigError


def test_names_are_unique_and_every_option_teaches():
    names = [option.name for option in options()]
    assert len(names) == len(set(names))
    assert all(len(option.help) > 10 for option in options())
    sections = {f.name for f in fields(RunConfig)} - {"given", "notes"}
    assert {option.section for option in options()} == sections


def test_the_flags_of_the_issue_are_there():
    wanted = [
        "model",
        "data",
        "eval_data",
        "prompt",
        "completion",
        "rank",
        "alpha",
        "targets",
        "exclude",
        "dropout",
        "learning_rate",
        "epochs",
        "max_steps",
        "batch_size",
        "batch_tokens",
        "max_length",
        "max_rows",
        "max_eval_rows",
        "eval_every",
        "checkpoint_every",
        "seed",
        "out",
        "resume",
    ]
    assert set(wanted) <= {option.name for option in options()}


def test_a_flat_copy_gives_the_same_configuration(tmp_path):
    import yaml

    config = load_config(
        None,
        {
            "rank": "4",
            "targets": "q_proj, v_proj",
            "learning_rate": "1e-3",
            "rank_pattern": "{q_proj: 2}",
            "data": "a.jsonl,b.csv",
            "rslora": True,
        },
    )
    assert (config.lora.rank, config.train.learning_rate) == (4, 1e-3)
    assert config.lora.targets == ("q_proj", "v_proj")
    assert config.lora.rank_pattern == {"q_proj": 2}
    assert config.data.data == ("a.jsonl", "b.csv")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.to_flat()))
    assert load_config(file, {}) == config


def test_a_regular_expression_keeps_its_commas():
    config = load_config(None, {"targets": r"re:.*(q|k)_proj{1,2}"})
    assert config.lora.targets == (r"re:.*(q|k)_proj{1,2}",)


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("rank: 4\nalpha: 8\n")
    config = load_config(file, {"rank": 16})
    assert (config.lora.rank, config.lora.alpha) == (16, 8.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak: 8", "unknown key 'rnak'; did you mean 'rank'"),
        ("rank: eight", "rank is 'eight'; it must be a whole number"),
        ("rank: 8.5", "rank is 8.5; it must be a whole number"),
        ("learning_rate: fast", "must be a number or 'auto'"),
        ("too_long: shorten", "'error' or 'drop' or 'cut'"),
        ("rank_pattern: 4", "a mapping such as"),
        ("- rank", "must hold 'name: value' lines"),
        ("rank: 0", "rank must be a whole number of at least 1"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match=r"is a folder; give the config\.yaml"):
        load_config(tmp_path, {})
