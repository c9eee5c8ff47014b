"""Which rank does this task need? Searched with evidence, at the cost of about two runs.

spec.py       what is asked for                         settings.py   with the run's options
search.py     what a search may ask for: pure           bracket.py    the search that is the default: pure
choose.py     from losses to an answer: pure            probing.py    learning rate and seed noise
trials.py     what trials are given and what they return
profile.py    the first trial                           workers.py    the others
lab.py        a Lab whose work is trials                checks.py     what else may be asked of a search
protocol.py   profile, probe, noise, search, checks     command.py    `lorakit rank`
summary.py    findings -> result.json                   wording.py    all sentences
alternatives/ the other methods, imported only where --method names one
"""
