"""Which rank does this task need? Searched with evidence, at the cost of about two runs.

The way from the command to the decision, and back to the words:

command.py    `lorakit rank`, from top to bottom        spec.py       what is asked for
probing.py    learning rate and seed noise              bracket.py    the search that is the default: pure
lab.py        what was trained and measured, by trials  choose.py     from losses to an answer: pure
checks.py     what else may be asked, and only then     summary.py    findings -> result.json
wording.py    all sentences                             notebook.py   lorakit.rank

A trial, in a process of its own:

trials.py     what it is given and what it returns      profile.py    the first
workers.py    the others                                pairs.py      A and B of concurrent jobs

inspect.py looks at an adapter that is there. The package alternatives has the other methods, imported
only where --method names one.
"""
