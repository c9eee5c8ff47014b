"""Stands in for vLLM: as much of it as lorakit talks to, and a record of what it was told.

The variable STAND_IN holds JSON: {"record": a file for what it was told, "device": cpu or cuda, "fail":
what to print before it ends at once, "fault": whether rows of the base get another's adapter, "model":
whether it computes with the model and peft, or answers with the letters of a text over and over, "says":
that text, the model's name without it, "pause": seconds for each token}.
"""

import json
import os

__version__ = "0.0.stand-in"
SETTINGS = {"device": "cpu", "fault": True, "model": False, "pause": 0.0}
SETTINGS |= json.loads(os.environ.get("STAND_IN", "{}"))
