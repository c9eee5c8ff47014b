"""`lorakit.serve`: a handle to a server that runs beside the program."""

import json
import urllib.error
import urllib.request

import pytest

import lorakit
from families import saved
from lorakit.errors import ConfigError


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return saved(tmp_path / "model")


def complete(url, model):
    body = {"model": model, "prompt": "Hello", "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        url + "/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())["choices"][0]["text"]


def test_it_answers_until_it_is_closed(base):
    model, _ = lorakit.load_model(str(base))
    lorakit.attach(model, lorakit.LoraSpec(rank=2))
    with lorakit.serve(base, adapters=[model]) as server:
        assert server.models == ["model", "adapter-1"]
        # B is zero: the adapter changes nothing.
        assert complete(server.url, "model") == complete(server.url, "adapter-1")
    with pytest.raises(urllib.error.URLError):
        complete(server.url, "model")
    assert repr(server).startswith("<closed model on http://127.0.0.1:")
    server.close()  # a second time does nothing


def test_what_cannot_be_used_is_said(base):
    with pytest.raises(ConfigError, match="unknown option 'slot'; did you mean 'slots'"):
        lorakit.serve(base, slot=1)
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        lorakit.serve(base, host="0.0.0.0")
