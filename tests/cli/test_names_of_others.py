"""Names of other trainers, and lines as people type them: read, or answered with the line that works."""

import json
import shlex

import pytest

from lorakit.cli.main import COMMANDS, build
from lorakit.cli.mistakes import mended
from lorakit.config import options
from lorakit.other_names import COMMANDS as OTHER_COMMANDS
from lorakit.other_names import OPTIONS, VALUES, option_meant

FLAGS = {
    # peft
    "train --data a --r 8 --lora-alpha 16 --lora-dropout 0.1 --target-modules q_proj": (
        "train --data a --rank 8 --alpha 16 --dropout 0.1 --targets q_proj"
    ),
    "train --data a --init_lora_weights pissa_niter_4 --loraplus_lr_ratio 16": (
        "train --data a --init pissa_niter_4 --lora-plus 16"
    ),
    # transformers' Trainer and TRL
    "train --dataset a --lr 1e-4 --num-train-epochs 3 --per-device-train-batch-size 8": (
        "train --data a --learning-rate 1e-4 --epochs 3 --batch-size 8"
    ),
    "train --model-name-or-path m --dataset_name a --output_dir o --max_seq_length 512 --bf16 True": (
        "train --model m --data a --out o --max-length 512 --dtype bfloat16"
    ),
    "train --data a --learning_rate=2e-4 --gradient_checkpointing --warmup_ratio 0.1": (
        "train --data a --learning-rate 2e-4 --activation-checkpointing on --warmup 0.1"
    ),
    # LLaMA-Factory, axolotl, Unsloth, mlx-lm
    "train --lora_rank 8 --lora_target all --cutoff_len 512 --val_set_size 0.1 --data a": (
        "train --rank 8 --targets all --max-length 512 --eval-share 0.1 --data a"
    ),
    "train --base_model m --datasets a --lora_r 8 --sequence_len 512 --micro_batch_size 2": (
        "train --model m --data a --rank 8 --max-length 512 --batch-size 2"
    ),
    "train --model m --data a --iters 100 --num-layers 0-3": (
        "train --model m --data a --max-steps 100 --layers 0-3"
    ),
    "train --data a --random_state 3 --use_rslora true": "train --data a --seed 3 --rslora",
    "train --data a --use_rslora false": "train --data a --no-rslora",
    "train --data a --use_dora true": "train --data a --dora",
    "train --data a --load_in_4bit true": "train --data a --base-dtype nf4",
    "train --data a --load_in_8bit": "train --data a --base-dtype int8",
    "train --data a --optim adamw_8bit": "train --data a --moments 8bit",
    "train --data a --optim=adamw_bnb_8bit --lr 1": "train --data a --moments 8bit --learning-rate 1",
    "compare --data a --optimizer paged_adamw_8bit": "compare --data a --moments 8bit",
    # what there is not
    "train --data a --optim adamw_torch": "train --data a",
    "train --data a --gradient_accumulation_steps 4 --lr 1": "train --data a --learning-rate 1",
    "rank --data a --forecast": "rank --data a",
    "train --data a --dry-run": "train --data a",
    # other commands
    "eval --eval-data a": "eval --data a",
    "eval --test_data a --peft-model b": "eval --data a --adapter b",
    "generate --lora-path a hello": "generate --adapter a hello",
    "generate --max-tokens 3 hello": "generate --max-new-tokens 3 hello",
    "merge --lora a --output b": "merge --adapter a --out b",
    "export --adapter a --to ollama --outfile b": "export a --to ollama --out b",
    "export a --format peft --out b": "export a --to peft --out b",
    "serve --lora-modules a": "serve --adapters a",
    "rank --data a --per_device_train_batch_size 4": "rank --data a --batch-size 4",
    "compare --data a --lora-alpha 4": "compare --data a --alpha 4",
    "adapters combine a b --lora-rank 4": "adapters combine a b --rank 4",
    # one letter
    "train -d a -r 8 -m 'my model' -o out": "train --data a --rank 8 --model 'my model' --out out",
}
NAMES = {
    "trian --data a": "train --data a",
    "finetune --data 'a b'": "train --data 'a b'",
    "fine_tune --data a": "train --data a",
    "run --data a": "train --data a",
    "evaluate --data a": "eval --data a",
    "infer hello": "generate hello",
    "fuse --adapter a": "merge --adapter a",
    "ls": "adapters list",
    "list": "adapters list",
    "adapter list": "adapters list",
    "adapters lst": "adapters list",
    "adapters rm a": "adapters remove a",
    "adapters mv a b": "adapters rename a b",
    "Train --data a": "train --data a",
}


def answer(lorakit, line):
    outcome = lorakit(*shlex.split(line))
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    return outcome.err


@pytest.mark.parametrize("line", FLAGS)
def test_options_of_others(lorakit, line):
    said = answer(lorakit, line)
    assert said.rstrip().splitlines()[-1] == f"lorakit {FLAGS[line]}"
    # What is advised has no unknown name itself.
    words = shlex.split(FLAGS[line])
    command = build(words).commands[words[0]]
    path = words[: 2 if words[0] == "adapters" else 1]
    command = command.commands[words[1]] if len(path) == 2 else command
    assert mended(path, words[len(path) :], command.params) == words[len(path) :]


@pytest.mark.parametrize("line", NAMES)
def test_commands_of_others(lorakit, line):
    assert f"lorakit {NAMES[line]}" in answer(lorakit, line)


def test_nothing_is_guessed_of_what_is_like_nothing(lorakit):
    assert "`lorakit train --help`" in answer(lorakit, "train --zzz 3")
    said = answer(lorakit, "zzzz")
    assert "`lorakit --help`" in said
    assert all(name in said for name in COMMANDS)
    assert "--help" in answer(lorakit, "help")


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ("lora_r: 8\nlora_alpha: 16\n", ["rank: 8", "alpha: 16"]),
        ("num_train_epochs: 3\nlr: 0.001\n", ["epochs: 3", "learning_rate: 0.001"]),
        ("target_modules: [q_proj, v_proj]\n", ["targets: [q_proj, v_proj]"]),
        ("bf16: true\noutput_dir: a\n", ["dtype: bfloat16", "out: a"]),
        ("gradient_accumulation_steps: 4\n", ["leave it out"]),
        ("optim: adamw_bnb_8bit\n", ["moments: 8bit"]),
        ("optim: adafactor\n", ["leave it out", "--moments 8bit"]),
    ],
)
def test_keys_of_others(lorakit, tmp_path, keys, lines):
    file = tmp_path / "run.yaml"
    file.write_text(keys)
    for command in ("train", "compare", "rank"):
        said = answer(lorakit, f"{command} '{file}'")
        if command == "train":
            assert all(line in said for line in lines), said
        else:  # a search has no rank of its own: nothing else is guessed
            assert "unknown key" in said
            assert "rslora" not in said
    if ":" in lines[0]:
        file.write_text("\n".join(lines))
        assert "unknown key" not in lorakit("train", file, "--data", "none.jsonl").err


def test_the_tables_name_what_there_is():
    known = {option.name for option in options()} | {
        "adapter",
        "adapters",
        "metrics",
        "temperature",
        "to",
    }
    assert set(OPTIONS) - known == {"port", "host"}
    assert {option for option, _ in VALUES.values()} <= known
    for option in known & set(OPTIONS):
        assert option_meant(OPTIONS[option][0], [option]) == option
    assert set(OTHER_COMMANDS) <= {*COMMANDS, "adapters", *build([]).commands["adapters"].commands}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three"):
        row = {"prompt": f"say {name}", "completion": name}
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "four.jsonl").write_text((json.dumps(row) + "\n") * 4)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (["--data", "one.jsonl", "two.jsonl"], 2),
        (["--data", "one.jsonl", "two.jsonl", "three.jsonl", "--rank", "2"], 3),
        (["--data=one.jsonl", "--data", "two.jsonl"], 2),
        (["--data=one.jsonl,two.jsonl"], 2),
        (["--data", "*.jsonl"], 3),
        (["--data", "t*.jsonl"], 2),
        (["--data", "**/*.jsonl"], 4),
        (["--data", "mo?e/fou[r].jsonl"], 1),
        (["--data", "one.jsonl", "--eval-data", "two.jsonl", "three.jsonl"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_several_files(lorakit, rows, model_folder, given, files):
    """As a shell writes them for data/*.jsonl, and as a quoted pattern."""
    outcome = lorakit("check", "--model", model_folder, "--eval-share", 0, *given)
    assert outcome.code == 0, outcome.err
    assert f"{4 * files} training rows" in outcome.out
    if "--eval-data" in given:
        assert "8 held-out rows" in outcome.out


def test_a_pattern_that_matches_nothing(lorakit, rows, model_folder):
    outcome = lorakit("check", "--model", model_folder, "--data", "x*.jsonl")
    assert outcome.code == 2
    assert "x*.jsonl: no file here matches this pattern" in outcome.err


def test_a_word_that_is_no_file_stays_what_it_is(lorakit, rows):
    assert "run.yaml does not exist" in lorakit("train", "--data", "one.jsonl", "run.yaml").err
    assert "no adapter folder" in lorakit("eval", "--data", "one.jsonl", "--adapter", "./x").err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("merge mails --out b", "merge --adapter mails --out b"),
        ("eval mails --data one.jsonl", "eval --adapter mails --data one.jsonl"),
        ("eval one.jsonl --adapter mails", "eval --data one.jsonl --adapter mails"),
        ("chat mails", "chat --adapter mails"),
        ("serve mails", "serve --adapters mails"),
        ("train one.jsonl --out b", "train --data one.jsonl --out b"),
        ("rank one.jsonl", "rank --data one.jsonl"),
        ("train --data one.jsonl --resume true", "train --data one.jsonl --resume"),
        (
            "train --trust-remote-code false --data one.jsonl",
            "train --no-trust-remote-code --data one.jsonl",
        ),
        (
            "generate --data one.jsonl --resume yes --out a.csv",
            "generate --data one.jsonl --resume --out a.csv",
        ),
    ],
)
def test_a_word_without_its_flag(lorakit, rows, typed, meant):
    said = answer(lorakit, typed)
    assert said.startswith("error: ")
    assert said.rstrip().splitlines()[-1] == f"lorakit {meant}"


def test_a_word_may_be_called_as_an_argument_is(lorakit, tmp_path):
    """`adapters diff A B` has its arguments a and b."""
    said = answer(lorakit, f"adapters diff a b --store {tmp_path}")
    assert "no adapter 'a'" in said


@pytest.mark.parametrize("typed", ["adapters show a b", "count 8", "merge a --adapter b", "demo x"])
def test_a_word_that_has_no_place(lorakit, typed):
    said = answer(lorakit, typed)
    assert "is one too many" in said
    assert "--help` lists what there is" in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("export a --to vlm --out b", "--to is 'vlm'; did you mean 'vllm'?"),
        ("export a --to gguf --type q8 --out b", "--type is 'q8'; did you mean 'q8_0'?"),
        ("merge --adapter a --out b --dtype=int8", "--dtype is 'int8'; known: 'base', 'bfloat16'"),
    ],
)
def test_a_value_that_there_is_not_names_the_nearest(lorakit, typed, said):
    assert answer(lorakit, typed).startswith(f"error: {said}")
