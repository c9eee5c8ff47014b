"""Which rank does this task need? Searched with evidence, at the cost of about two runs.

spec.py       what is asked for                    settings.py   with the run's options
search.py     ways to search: pure, over a Lab     bracket.py    the one that is the default: pure
choose.py     from losses to an answer: pure       probing.py    learning rate and seed noise
lab.py        a Lab whose work is trials           workers.py    what these trials do
protocol.py   look, probe, noise, search, checks   command.py    `lorakit rank`
"""
