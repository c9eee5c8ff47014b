"""A small run folder, as the training command leaves it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_pages import RESULT, SAMPLES


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    lines: list[dict[str, Any]] = [{"step": 0, "kind": "eval", "loss": 2.311}]
    for step in range(1, 41):
        lines.append(
            {"step": step, "kind": "train", "loss": 0.3 + 2 * math.exp(-step / 9),
             "learning_rate": 2e-4 * (1 - step / 40), "grad_norm": 0.5 + 9 / step,
             "tokens": 900, "seconds": 0.9, "real_tokens_per_second": 1000 + step}
        )  # fmt: skip
        if step % 10 == 0:
            lines.append({"step": step, "kind": "eval", "loss": 0.4 + 2 * math.exp(-step / 8)})
            lines.append({"step": step, "kind": "checkpoint", "path": "checkpoints/x"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "samples.json").write_text(json.dumps(SAMPLES))
    (folder / "config.yaml").write_text("model: tiny\nrank: 8\n")
    return folder
