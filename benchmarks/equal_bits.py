"""Do two commits compute the same bytes? The proof that a refactoring asks for.

    python benchmarks/equal_bits.py BEFORE            # against the working tree
    python benchmarks/equal_bits.py BEFORE AFTER      # two commits

Each side runs in processes of its own, from its own checkout, with this Python's packages:

  flat     examples/train_flat.py on a tiny llama, and `lorakit train` on the same rows
  train    ten steps of `lorakit train` on the built-in model
  unlike   the same on a tiny model whose blocks run by the model's own code
  served   tokens and log-probabilities of a mixed batch, adapters of several ranks, two families

What is compared are the SHA-256 of adapters and the figures of every step to the last digit. The
exit code is 0 where all are equal, 1 where one is not.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CITIES = ["Oslo", "Lima", "Accra", "Quito", "Hanoi", "Turin", "Cairo", "Dakar", "Perth", "Riga"]
ROWS = [
    {
        "prompt": f"Order {17 * i + 3}: {i % 7 + 1} boxes for {city}, {'urgent' * (i % 3 == 0)} please",
        "completion": f"boxes={i % 7 + 1}; city={city.lower()}; urgent={i % 3 == 0}",
    }
    for i, city in enumerate(CITIES * 6)
]
PROMPTS = [[5, 9, 3], [7] * 18, [4, 8, 15, 16, 23, 42], [5, 9, 3, 2], list(range(3, 30)), [11]]


def main() -> int:
    """Run both sides and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="another; the working tree if left out")
    parser.add_argument("--only", help="parts, by comma: flat,train,unlike,served")
    asked = parser.parse_args()
    parts = asked.only.split(",") if asked.only else list(PARTS)
    with tempfile.TemporaryDirectory() as temporary:
        sides = []
        for number, commit in enumerate((asked.before, asked.after)):
            tree = ROOT if commit is None else _checkout(commit, Path(temporary) / f"tree{number}")
            work = Path(temporary) / f"work{number}"
            try:
                sides.append({part: _probe(tree, part, work) for part in parts})
            finally:
                if commit is not None:
                    _git("worktree", "remove", "--force", str(tree))
    names = (asked.before, asked.after or "the working tree")
    unequal = 0
    for part in parts:
        for what in sorted(sides[0][part].keys() | sides[1][part].keys()):
            values = [json.dumps(side[part].get(what)) for side in sides]
            same = values[0] == values[1]
            unequal += not same
            print(f"{'equal  ' if same else 'UNEQUAL'}  {part}: {what}  {values[0][:70]}")
            if not same:
                print(f"         {names[1]}: {values[1][:70]}")
    print(f"{names[0]} and {names[1]}: " + (f"{unequal} differ" if unequal else "the same bytes"))
    return 1 if unequal else 0


def _checkout(commit: str, folder: Path) -> Path:
    _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    return folder


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)


def _probe(tree: Path, part: str, work: Path) -> dict[str, Any]:
    """What one part gives, computed by the code of that checkout."""
    work.mkdir(parents=True, exist_ok=True)
    tests = [str(p) for p in (tree / "tests", tree / "tests/serve", tree / "tests/serving")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), *tests]),
        "PYTHONWARNINGS": "ignore",
    }
    out = work / f"{part}.json"
    command = [sys.executable, str(Path(__file__).resolve()), "--probe", part, str(tree), str(out)]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{part} in {tree}:\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _flat(tree: Path) -> dict[str, Any]:
    model = _tiny("llama")
    rows = _rows()
    flat = subprocess.run(
        [
            *(sys.executable, str(tree / "examples/train_flat.py"), str(rows)),
            *("--model", str(model), "--out", "flat", "--epochs", "1"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "the example's losses": flat.stdout.replace("flat", ""),
        "the example's adapter": _sha("flat/adapter_model.safetensors"),
        **_train("tiny", "--model", str(model), "--max-steps", "6", "--batch-size", "4"),
    }


def _train_builtin(tree: Path) -> dict[str, Any]:
    return _train("builtin", "--max-steps", "10", "--batch-size", "4", "--max-eval-rows", "8")


def _unlike(tree: Path) -> dict[str, Any]:
    return _train("gpt2", "--model", str(_tiny("gpt2")), "--max-steps", "6", "--batch-size", "4")


def _served(tree: Path) -> dict[str, Any]:
    import torch
    from engines import Driven, base, make_adapter

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for family in ("llama", "gpt2"):
        engine = Driven(family)
        engine.folders = {
            name: make_adapter(base(family), Path(f"{family}-{name}"), rank, seed=rank)
            for name, rank in (("r4", 4), ("r8", 8), ("r32", 32))
        }
        for number, ids in enumerate(PROMPTS):
            for key in ("", *engine.folders):
                engine.ask((key, number), ids, key, logprobs=1, n=1 + number % 2)
        engine.settle()
        found[family] = [
            [str(tag), answer.ids, [x.hex() for x in answer.logprobs]]
            for tag, answer in sorted(engine.answers.items(), key=lambda item: str(item[0]))
        ]
    digest = {k: hashlib.sha256(json.dumps(v).encode()).hexdigest() for k, v in found.items()}
    return {f"{k}, {len(found[k])} answers": digest[k] for k in found}


PARTS = {"flat": _flat, "train": _train_builtin, "unlike": _unlike, "served": _served}


def _rows() -> Path:
    path = Path("rows.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def _tiny(family: str) -> Path:
    """A folder with a tiny model of that family, the same weights whoever asks."""
    from families import saved

    folder = Path(f"tiny-{family}")
    return folder if folder.exists() else saved(folder, family)


def _train(name: str, *options: str) -> dict[str, Any]:
    """`lorakit train`: the adapter's bytes, and every loss and gradient norm."""
    command = [sys.executable, "-m", "lorakit", "train", "--data", str(_rows()), "--out", name]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": _sha(f"{name}/adapter/adapter_model.safetensors"),
        "losses": [(x["kind"], x["loss"]) for x in lines if "loss" in x],
        "gradient norms": [x["grad_norm"] for x in lines if "grad_norm" in x],
    }


def _sha(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        _, _, which, checkout, target = sys.argv
        Path(target).write_text(json.dumps(PARTS[which](Path(checkout))))
        sys.exit(0)
    sys.exit(main())
