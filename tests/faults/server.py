"""One warm process that runs `lorakit` command lines in forked children, each with a fault or none.

A request is a line of JSON on stdin, see `Warm.run` in harness.py; the answer is the exit code, or
the signal's number negated. torch, transformers and lorakit are imported here, once. This process
computes nothing: a child of one whose OpenMP threads had started would wait for them for ever.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}

from shim import Shim, install

PATIENCE = 60  # seconds that one command may take
MODULES = (
    "lorakit.cli.main",
    "lorakit.cli.train_command",
    "lorakit.cli.answer_file",
    "lorakit.cli.merge_command",
    "lorakit.cli.export_command",
    "lorakit.cli.adapters.add_command",
    "lorakit.cli.adapters.gc_command",
    "lorakit.run.commands.training",
    "lorakit.serving.answering.command",
    "lorakit.run.commands.merging",
    "lorakit.run.commands.exporting",
    "lorakit.report",
    "sacrebleu.metrics",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.font_manager",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    # A table of a thousand patterns, compiled at the first model: a third of what loading one takes.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            serve(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def serve(request: dict[str, Any]) -> None:
    """Run a command in this process, which it ends."""
    signal.alarm(PATIENCE)
    code = 1
    try:
        for handle, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, handle)
        os.chdir(request["folder"])
        os.environ |= request["environment"]
        # torch makes its pool of threads anew after a fork, and two threads that come first at once find none.
        sys.modules["torch"].set_num_threads(1)
        sys.argv = ["lorakit", *request["argv"]]
        for name in request["without"]:
            sys.modules[name] = None  # importing it fails, as where it is not installed
        install(Shim(Path(request["folder"]), request["trace"], request["at"], request["how"]))
        from lorakit.cli.main import main as command

        command()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
