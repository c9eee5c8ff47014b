"""What a default search does not need is not imported: the other methods, and the checks."""

import subprocess
import sys

# The first training of a search ends it: which modules it has imported by then is all that is asked.
SEARCH = """
import sys
from unittest import mock
from lorakit.ranking import command
from lorakit.ranking.notebook import rank
from lorakit.ranking.spec import RankSpec

class Reached(Exception):
    pass

lab = mock.Mock(steps=10, spent=0.0, measuring=0.0)
lab.train.side_effect = Reached
try:
    command._search(lab, RankSpec(method=sys.argv[1]), mock.Mock(), 1e-3, 0, 2.5)
except Reached:
    print(*(f"lorakit.ranking.{name}" in sys.modules for name in ("alternatives", "checks")))
"""


def imported(method):
    command = [sys.executable, "-c", SEARCH, method]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_default_search_does_not_import_the_others():
    assert imported("bracket") == ["False", "False"]
    assert imported("halving") == ["True", "False"]
