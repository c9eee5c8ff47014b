"""A trial's own process: `python -m lorakit.experiments.worker FOLDER`.

Events go to standard output, one JSON object a line; whatever else is printed goes to standard
error. The exit code is 0 with result.json in the folder, or 1 with error.json.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError
from lorakit.experiments.folder import ERROR, TIED, work
from lorakit.files.whole import write_json
from lorakit.models.light import import_light
from lorakit.run.limits import limit_caches


def main(arguments: list[str]) -> int:
    """Do the trial in the folder that is named; with --tied end when standard input does."""
    limit_caches()
    import_light()
    folder = Path(arguments[0])
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if TIED in arguments:
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(event: Mapping[str, Any]) -> None:
        events.write(json.dumps(dict(event)) + "\n")
        events.flush()

    try:
        work(folder, report)
    except LorakitError as error:
        write_json(folder / ERROR, {"kind": type(error).__name__, "message": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        write_json(folder / ERROR, {"kind": "TrialError", "message": message})
        return 1
    return 0


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: when it is killed, so is this process."""
    while os.read(0, 1):  # unbuffered: a lock held here would stand in the way of the exit
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
