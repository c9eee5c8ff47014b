"""An experiment called from Python, perhaps on rows in memory, which its trials read from its folder."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lorakit.data.given import GIVEN, GIVEN_HELD_OUT, GivenRows, as_source, origin
from lorakit.errors import DataError, OutputError
from lorakit.experiments.experiment import MakeRunner
from lorakit.experiments.pool import processes
from lorakit.experiments.settings import Form
from lorakit.experiments.spec import Report, Runner
from lorakit.files.whole import write_text
from lorakit.run import folder as folders

_FILES = {GIVEN: "rows.jsonl", GIVEN_HELD_OUT: "held-out.jsonl"}


class RunExperiment(Protocol):
    """A use case that runs a whole experiment, such as `run_compare`."""

    def __call__(
        self, settings: Any, /, *, command: str, report: Report, runner: MakeRunner
    ) -> dict[str, Any]:
        """Give what result.json holds."""


@dataclass(frozen=True)
class RowsInFolder:
    """Options of an experiment that is called from Python, and the rows that its folder will hold.

    A trial reads its rows from a file; a row of the file is a row of what the caller gave, and
    messages name the latter.

    Attributes:
        folder: the experiment's.
        options: by name, "data", "eval_data", "out" and "resume" among them.
        texts: what to write, by file.
    """

    folder: Path
    options: Mapping[str, Any]
    texts: Mapping[Path, str] = field(default_factory=dict)

    def run(
        self, experiment: RunExperiment, form: Form[Any], *, command: str, report: Report
    ) -> dict[str, Any]:
        """Run the experiment, or go on with it, a process a trial; give what result.json holds.

        Args:
            experiment: the use case.
            form: which options it has.
            command: how to repeat it.
            report: told of phases, trials and steps.
        """
        settings = form.read(None, self.options)

        def make_runner(root: Path, report: Report) -> Runner:
            self.write()  # the folder is there by now
            return processes(root, workers=settings.spec.workers, report=report)

        with self.naming_rows():
            return experiment(settings, command=command, report=report, runner=make_runner)

    def write(self) -> None:
        """Write the rows that are not in the folder yet."""
        for file, text in self.texts.items():
            if not file.is_file():
                write_text(file, text)

    @contextlib.contextmanager
    def naming_rows(self) -> Iterator[None]:
        """Errors name the rows that were given; rows whose experiment was not begun are removed."""
        try:
            yield
        except DataError as error:
            text = str(error)
            for name, file_name in _FILES.items():
                if self.folder / file_name in self.texts:
                    text = _renamed(text, str(self.folder / file_name), name)
            raise type(error)(text) from None
        finally:
            if not (self.folder / folders.CONFIG).is_file():
                for file in self.texts:
                    file.unlink(missing_ok=True)


def given_rows(
    data: Any, eval_data: Any, out: str | Path, options: Mapping[str, Any]
) -> RowsInFolder:
    """The options of an experiment that is called from Python: begun, or gone on with.

    Args:
        data, eval_data: rows in any form.
        out: the experiment's folder.
        options: the others.

    Raises:
        DataError: rows in memory cannot be read.
        OutputError: the folder holds something else, or an experiment on other rows.
    """
    folder = Path(out)
    resume = (folder / folders.CONFIG).is_file()
    if not resume:
        folders.check_folder(folder, resume=False)
    sources, texts = {}, {}
    for option, rows, name in (("data", data, GIVEN), ("eval_data", eval_data, GIVEN_HELD_OUT)):
        if rows is None:
            continue
        source = as_source(rows, name)
        if isinstance(source, GivenRows):
            file = folder / _FILES[name]
            texts[file] = _jsonl(source)
            if resume and file.is_file() and file.read_text(encoding="utf-8") != texts[file]:
                raise OutputError(
                    f"{folder} was begun with other rows than {name}: give another out"
                )
            source = str(file)
        sources[option] = (source,)
    return RowsInFolder(folder, {**options, **sources, "out": str(out), "resume": resume}, texts)


def _renamed(text: str, file: str, name: str) -> str:
    """A message about a file as one about the rows that were written into it.

    >>> _renamed("run/rows.jsonl:3: 'text' is empty", "run/rows.jsonl", "the rows you gave")
    "row 3 of the rows you gave: 'text' is empty"
    """
    text = re.sub(rf"{re.escape(file)}:(\d+)", lambda m: origin(name, int(m[1])), text)
    return text.replace(file, name)


def _jsonl(rows: GivenRows) -> str:
    """One line a row, in their order."""
    lines = []
    for number, row in rows:
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except TypeError as error:
            raise DataError(f"{origin(rows.name, number)}: {error}") from None
    return "".join(lines)


def call(name: str, options: Mapping[str, Any]) -> str:
    """How to repeat a call, for a page: the rows are left out.

    >>> call("lorakit.rank", {"max_rank": 8})
    'lorakit.rank(max_rank=8)'
    """
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
