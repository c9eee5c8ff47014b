"""LoRA against full fine-tuning on one's own rows, measured fairly.

spec.py          the protocol's settings, and the run's options beside them
methods.py       the arms: what is trained, what is kept
planning.py      what it will take
protocol.py      what is run, in which order, and with what in common
base_trials.py   trials without training; arm_trials.py those with it
general.py       rows to measure forgetting on; prompts.py the project's own
differences.py   intervals, paired by seed and row; costs.py what was measured
verdict.py       the judgement in words
summary.py       all of it as result.json
command.py       `lorakit compare`; notebook.py lorakit.compare
"""
