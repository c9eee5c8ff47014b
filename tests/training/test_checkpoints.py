"""What a kill leaves beside a checkpoint is gone once the run goes on."""

import pytest
import torch

from lorakit.errors import OutputError
from lorakit.training.checkpoint import Progress, load_checkpoint, save_checkpoint


def test_what_a_kill_left_beside_the_newest_checkpoint_is_removed(tmp_path):
    newest = save_checkpoint(tmp_path, Progress(step=4), {"flat": torch.ones(3)}, None, run="a")
    half = tmp_path / "step-000002"  # its removal had begun
    half.mkdir()
    (half / "progress.json").write_text("{}")
    (tmp_path / ".step-000004.partial-0123abcd" / "new").mkdir(parents=True)
    progress, state, best = load_checkpoint(tmp_path, run="a")
    assert (progress.step, state["flat"].tolist(), best) == (4, [1.0, 1.0, 1.0], None)
    assert list(tmp_path.iterdir()) == [newest]


def test_a_refused_checkpoint_removes_nothing(tmp_path):
    save_checkpoint(tmp_path, Progress(step=4), {"flat": torch.ones(3)}, None, run="a")
    (tmp_path / "step-000002").mkdir()
    with pytest.raises(OutputError, match="other data, model or settings"):
        load_checkpoint(tmp_path, run="b")
    assert (tmp_path / "step-000002").is_dir()
