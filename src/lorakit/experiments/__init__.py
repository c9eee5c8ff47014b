"""Many trials, results as they end: processes here, other executors behind the same interface.

    runner = processes(folder, workers=1)
    for outcome in runner([Trial("package.module:function", spec), ...]):
        outcome.result

A trial is a frozen description and the name of the function that does it. Its result is kept under
the hash of the two, so that whatever is asked for twice is done once, and a kill loses no more
than what was running.
"""

from lorakit.experiments.pool import in_process, processes
from lorakit.experiments.spec import Outcome, Report, Runner, Trial, in_order

__all__ = ["Outcome", "Report", "Runner", "Trial", "in_order", "in_process", "processes"]
