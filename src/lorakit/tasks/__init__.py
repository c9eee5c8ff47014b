"""What is trained for: a task turns rows into batches, and says what its loss and its measures are.

A task is one file in this room and one line in `TASKS`. Tasks do not know each other.
"""

from lorakit.tasks.answers import TaskAnswer
from lorakit.tasks.causal_lm import CausalLM
from lorakit.tasks.task import AnswerPlan, Comparison, Session, Task

CAUSAL_LM = CausalLM()
TASKS: dict[str, Task] = {task.name: task for task in (CAUSAL_LM,)}
"""Every task by its name."""

__all__ = ["CAUSAL_LM", "TASKS", "AnswerPlan", "Comparison", "Session", "Task", "TaskAnswer"]
