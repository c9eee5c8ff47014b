"""A run's folder: what is in it, and how each file comes to be there whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.config import RESUME
from lorakit.errors import OutputError
from lorakit.files.whole import is_stage, write_text
from lorakit.files.wording import command_line

CONFIG, METRICS, RESULT, SAMPLES = "config.yaml", "metrics.jsonl", "result.json", "samples.json"
PROBE = "probe.json"


def check_folder(path: Path, *, resume: bool) -> None:
    """Check that a run can be written here, or that there is one to resume.

    Raises:
        OutputError: it holds something and `resume` is off; or nothing to resume from.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; --out needs a folder")
    # What a run left that was killed at its first file holds nothing: the next one removes it.
    names = (p.name for p in path.iterdir() if not is_stage(p)) if path.exists() else ()
    inside = sorted(names)
    if inside and not resume:
        has = (path / "checkpoints").is_dir() or (path / "trials").is_dir()
        hint = "go on with --resume, or " if has else ""
        raise OutputError(
            f"{path} is not empty (it holds {', '.join(inside[:4])}): {hint}give another --out"
        )
    if resume and not (path / CONFIG).is_file():
        raise OutputError(f"{path} holds no run to resume: there is no {CONFIG} in it")


def make_folder(path: Path) -> None:
    """Make a folder, and what it lies in.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}") from None


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """YAML in the order given, written by `write_text`."""
    import yaml

    write_text(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def write_recorded(folder: Path, repeat: Mapping[str, Any], outside: Mapping[str, Any]) -> None:
    """config.yaml, which repeats a run; what writes outside the run folder is kept apart from it.

    Args:
        folder: of the run.
        repeat: every option but those that write outside.
        outside: these, where they are set: resuming the run takes them, repeating it does not.
    """
    import yaml

    text = yaml.safe_dump(dict(repeat), sort_keys=False, allow_unicode=True)
    if outside:
        text = _LEFT_OUT + text
        write_yaml(folder / RESUME, outside)
    write_text(folder / CONFIG, text)


_COMMENT = "# "
_LEFT_OUT = """\
# save_as is not repeated, so that no version in the store is replaced by accident:
# add --save-as NAME to store the adapter of another run.
"""


def write_config(folder: Path, content: Mapping[str, Any], command: str) -> None:
    """config.yaml, with the command that made it as a comment above; it may have several lines."""
    import yaml

    above = "".join(f"{_COMMENT}{line}\n" for line in command.split("\n"))
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    write_text(folder / CONFIG, above + text)


def command_of(folder: Path) -> str:
    """The command above a folder's config.yaml; '' where there is none."""
    found: list[str] = []
    for line in (folder / CONFIG).read_text(encoding="utf-8").split("\n"):
        if not line.startswith(_COMMENT):
            break
        found.append(line.removeprefix(_COMMENT))
    return "\n".join(found)


class MetricsFile:
    """metrics.jsonl: one line an event, flushed as it comes.

    On resuming, lines after the checkpoint's step are dropped: those steps will be done again.
    Without a checkpoint to go on from, all of them are.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self._path = path
        self._file = path.open("a" if keep else "w", encoding="utf-8")

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Append an event."""
        if event["kind"] == "resume":
            self._forget_after(event["step"])
            return
        self._file.write(json.dumps(dict(event)) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _forget_after(self, step: int) -> None:
        self._file.close()
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl; a last line cut short by a kill is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def repeating(command: str, out: str | Path) -> str:
    """The command that does a run again, into another folder.

    >>> repeating("train", "runs/a b")
    "lorakit train 'runs/a b/config.yaml' --out 'runs/a b-again'"
    """
    return command_line(command, Path(out) / CONFIG, "--out", f"{Path(out)}-again")
