"""A program that ends while a thread of lorakit computes ends with its own exit code."""

import subprocess
import sys

import pytest
from servers import tokenizer

from families import tiny

# Each leaves a thread in the middle of torch's operations when its last line is done.
LEFT = {
    "stream": """
from lorakit.execution.streaming import stream
model, tokenizer = lorakit.load_model(base)
pieces = stream(model, tokenizer, tokenizer("hello")["input_ids"], max_new_tokens=4000)
next(pieces)
""",
    "talk": """
from lorakit.models import ModelSpec
from lorakit.serving.sampling import Sampling
from lorakit.serving.talk import Talk
talk = Talk(ModelSpec(base), ["base"], most=1500)
pieces = talk.ask("hello", Sampling())
next(pieces)
""",
    "server": """
import json, threading, urllib.request
server = lorakit.serve(base, store=base + "-store", max_prompt=100, max_output=3000)
body = {"model": "base", "prompt": "hello", "max_tokens": 2500, "ignore_eos": True, "stream": True}
asked = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode())
asked.add_header("Content-Type", "application/json")
answer = urllib.request.urlopen(asked)
answer.readline()
""",
}


@pytest.fixture(scope="module")
def long_base(tmp_path_factory):
    """A base that reads 4,096 tokens, with products large enough to be in the middle of one."""
    folder = tmp_path_factory.mktemp("ending") / "base"
    model = tiny("llama", hidden_size=384, intermediate_size=1024, max_position_embeddings=4096)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("what", LEFT)
def test_a_program_that_ends_in_the_middle_ends_well(what, long_base):
    """Its exit code is 0, not that of an abort, and it does not wait for the whole answer."""
    script = f"import lorakit\nbase = {str(long_base)!r}\n{LEFT[what]}print('left')\n"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "left"
    assert "Traceback" not in done.stderr
