"""`lorakit serve --engine vllm` before vLLM's stand-in, which refuses what the real one refuses."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

import pytest
from engines import base
from servers import make_adapter
from stand_in import RUNTIME, VLLM_SPEC, Told, ended, rest, variables, vllm_serving
from test_attacks import bearer, call
from test_lifecycle import read_stream

from lorakit.adapters.store import Store
from lorakit.errors import EngineError
from lorakit.serving.keys import add_key


@pytest.fixture
def quick(house, tmp_path):
    """Starts a server before a stand-in that answers with letters of names: nothing to compute."""

    def start(**settings):
        settings = {"device": "cuda", "fault": False, **settings}
        return vllm_serving(house, tmp_path / "told.jsonl", **settings)

    return start


def ask(url, model="small", **more):
    return call(f"{url}/v1/completions", {"model": model, "prompt": "hello", **more})


def test_where_rows_stay_apart_the_base_is_asked_for_by_its_name(quick):
    with quick() as (running, told):
        assert ask(running.url, "tiny-base", max_tokens=4)[2]["choices"][0]["text"] == "tiny"
        assert told.of("start")[0]["max_loras"] == VLLM_SPEC.slots
        assert told.of("/v1/load_lora_adapter") == []


@pytest.mark.parametrize("fault", [True, False])
def test_whether_rows_stay_apart_is_tried_in_vllms_own_product(house, tmp_path, monkeypatch, fault):
    from lorakit.serving.vllm.program import find_program

    for name, value in variables(tmp_path / "told", device="cpu", fault=fault).items():
        monkeypatch.setenv(name, value)
    found = find_program(sys.executable)
    assert (found.version, found.device, found.apart) == ("0.0.stand-in", "cpu", not fault)


def test_an_adapter_is_registered_once_and_when_it_is_asked_for(quick):
    with quick() as (running, told):
        assert told.of("/v1/load_lora_adapter") == []
        threads = [threading.Thread(target=ask, args=(running.url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ask(running.url, "middle")
        loaded = told.of("/v1/load_lora_adapter")
        asked = told.of("/v1/completions")
        assert len(loaded) == 2
        assert len(asked) == 9
        # By content: a new version under a name is another adapter to vLLM, its cache another.
        assert {one["lora_name"] for one in loaded} == {one["model"] for one in asked}
        folder = Path(loaded[0]["lora_path"])
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    assert not folder.exists()


def test_a_new_version_is_another_adapter_and_an_old_one_can_be_asked_for(quick, tmp_path):
    store = Store(tmp_path / "store")
    for seed in (1, 2):
        make_adapter(base("llama"), tmp_path / str(seed), 8, seed)
    store.add(tmp_path / "1", "task")
    with quick(store=store.path) as (running, told):
        ask(running.url, "task")
        store.add(tmp_path / "2", "task")
        ask(running.url, "task")
        ask(running.url, "task@1")
        first, second, third = (one["model"] for one in told.of("/v1/completions"))
        assert first == third != second
        store.remove("task")
        assert ask(running.url, "task")[0] == 404


def test_an_adapter_wider_than_vllms_slots_is_refused_with_the_option_that_helps(quick, tmp_path):
    for name, rank in (("low", 4), ("high", 32)):
        make_adapter(base("llama"), tmp_path / name, rank, 1)
    store = Store(tmp_path / "store")
    store.add(tmp_path / "low", "low")
    with quick(store=store.path) as (running, told):
        assert told.of("start")[0]["max_lora_rank"] == 8
        store.add(tmp_path / "high", "high")
        status, _, body = ask(running.url, "high")
        assert status == 400
        assert "give --slot-rank 32" in body["error"]["message"]
        assert ask(running.url, "low", max_tokens=2)[0] == 200


def test_adapters_are_loaded_at_run_time_where_that_is_allowed(quick, tmp_path):
    make_adapter(base("llama"), tmp_path / "allowed" / "new", 8, 1)
    http = {"allow_loading": True, "loading_dirs": (str(tmp_path / "allowed"),)}
    with quick(http=http) as (running, told):
        url = f"{running.url}/v1/load_lora_adapter"
        assert call(url, {"lora_name": "new", "lora_path": str(tmp_path)})[0] == 403
        path = str(tmp_path / "allowed" / "new")
        assert call(url, {"lora_name": "new", "lora_path": path})[0] == 200
        assert told.of("/v1/load_lora_adapter") == []  # vLLM learns of it when it is asked for
        assert ask(running.url, "new", max_tokens=2)[0] == 200
        assert len(told.of("/v1/load_lora_adapter")) == 1


def test_what_was_not_asked_for_in_the_longest_time_is_forgotten_and_can_come_back(quick):
    with quick() as (running, told):
        running.engine.registered = 1
        ask(running.url, "small")
        ask(running.url, "middle")
        (gone,) = told.wait("/v1/unload_lora_adapter", 1)
        first = told.of("/v1/load_lora_adapter")[0]
        assert gone["lora_name"] == first["lora_name"]
        until = time.monotonic() + 5
        while Path(first["lora_path"]).exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert not Path(first["lora_path"]).exists()
        assert ask(running.url, "small", max_tokens=2)[0] == 200
        assert len(told.of("/v1/load_lora_adapter")) == 3


def test_names_keys_and_bounds_are_lorakits(quick, tmp_path):
    keys = tmp_path / "keys.json"
    secret = add_key(keys, "some", adapters=("sma*",))
    http = {"keys": str(keys), "max_body_kb": 10}
    with quick(http=http) as (running, told):
        url = running.url
        assert ask(url)[0] == 401
        asked = {"model": "small", "prompt": "hello", "max_tokens": 2}
        assert call(f"{url}/v1/completions", asked, bearer(secret))[0] == 200
        # What lorakit presents to vLLM opens nothing here.
        inner = told.of("start")[0]["variables"]["VLLM_API_KEY"]
        assert call(f"{url}/v1/completions", asked, bearer(inner))[0] == 401
        for name, said in (("smal", "did you mean 'small'"), ("middle", "for this key")):
            status, _, body = call(
                f"{url}/v1/completions", {**asked, "model": name}, bearer(secret)
            )
            assert status == 404
            assert said in body["error"]["message"]
        long = {**asked, "max_tokens": 61}
        status, _, body = call(f"{url}/v1/completions", long, bearer(secret))
        assert (status, "at most 60 are given" in body["error"]["message"]) == (400, True)
        long = {**asked, "prompt": "x" * 301}
        assert call(f"{url}/v1/completions", long, bearer(secret))[0] == 400
        assert (
            call(f"{url}/v1/completions", {**asked, "prompt": "x" * 20_000}, bearer(secret))[0]
            == 413
        )
        assert len(told.of("/v1/completions")) == 1


def test_a_full_queue_is_a_429(quick):
    outcomes = []
    with quick(pause=0.05) as (running, _told):

        def one():
            outcomes.append(ask(running.url, max_tokens=20))

        threads = [threading.Thread(target=one) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rest(running)
        assert running.engine.load == (0, 24)
    assert {status for status, _, _ in outcomes} == {200, 429}
    assert all(int(head["Retry-After"]) >= 1 for status, head, _ in outcomes if status == 429)


@contextlib.contextmanager
def begin(url, body):
    """A request that is sent; at the end of the block its client hangs up."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        yield


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer_in_vllm(quick, stream):
    with quick(pause=0.1) as (running, told):
        ask(running.url, max_tokens=1)
        body = {"model": "small", "prompt": "hello", "max_tokens": 60, "stream": stream, "n": 2}
        with begin(running.url, body):
            told.wait("/v1/completions", 3)
        (_, *gone) = told.wait("end", 3)
        assert [one["finish"] for one in gone] == [None, None]
        assert all(one["tokens"] < 60 for one in gone)
        rest(running)


def test_a_stream_passes_as_it_comes(quick):
    with quick(pause=0.1) as (running, _told):
        begun, lines = threading.Event(), []
        body = {"model": "small", "prompt": "hello", "max_tokens": 20, "stream": True}
        reader = threading.Thread(target=read_stream, args=(running.url, body, begun, lines))
        reader.start()
        assert begun.wait(10)
        assert running.engine.load[0] == 1  # the first words are here, the last are not made yet
        reader.join(20)
        assert len([line for line in lines if line.startswith("data: {")]) == 20


def test_what_ends_a_line_elsewhere_ends_no_event_of_a_stream(quick):
    said = "a\u2028b\x85c\x0c\u00e9 \n"
    with quick(says=said) as (running, _told):
        got = ask(running.url, max_tokens=len(said.encode()))[2]["choices"][0]
        assert got["text"] == said


def test_an_adapter_that_vllm_refuses_says_why_and_can_be_asked_for_again(quick):
    with quick() as (running, _told):
        exports = running.engine.exports
        exports.open = lambda folder, key: exports.root / "nowhere"
        for _ in range(2):
            status, _, body = ask(running.url)
            assert status == 503
            assert "No adapter found" in body["error"]["message"]
        del exports.open
        assert ask(running.url, max_tokens=2)[0] == 200


def test_a_vllm_that_does_not_start_gives_the_end_of_its_log(quick):
    fail = "Traceback …\nValueError: no memory for the cache"
    with (
        pytest.raises(EngineError, match=r"code 1; the end of its log(.|\n)*no memory"),
        quick(fail=fail),
    ):
        pass


def test_a_vllm_that_takes_too_long_is_ended(quick):
    runtime = replace(RUNTIME, vllm_seconds=0.01)
    with pytest.raises(EngineError, match="--vllm-seconds"), quick(runtime=runtime):
        pass


def test_a_vllm_that_ends_ends_the_server_and_every_request(quick):
    with quick(pause=0.1) as (running, told):
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(ask(running.url, max_tokens=60)))
        thread.start()
        told.wait("/v1/completions", 1)
        time.sleep(0.2)
        os.kill(told.of("start")[0]["pid"], signal.SIGKILL)
        thread.join(10)
        assert outcomes[0][0] == 503
        assert "vLLM" in outcomes[0][2]["error"]["message"]
        until = time.monotonic() + 5
        while running.engine.failure is None and time.monotonic() < until:
            time.sleep(0.02)
        assert "vLLM has ended: it ended with code 137" in running.engine.failure


def start(house, record, *more, **settings):
    """`lorakit serve --engine vllm` in a process of its own; the process and its URL."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "lorakit", "serve", "--base", str(house / "tiny-base")),
            *("--store", str(house / "store"), "--port", "0", "--engine", "vllm"),
            *("--vllm", sys.executable, "--max-prompt", "300", "--max-output", "200", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            **variables(record, device="cuda", fault=False, **settings),
            "LORAKIT_CACHE": str(house / "cache"),
            "COLUMNS": "200",
        },
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "serving tiny-base on http" in line:
            return process, line.split()[-1]
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_server_is_the_end_of_vllm(house, tmp_path, how):
    process, url = start(house, tmp_path / "told.jsonl", pause=0.05)
    told = Told(tmp_path / "told.jsonl")
    try:
        body = {"model": "small", "prompt": "hello", "max_tokens": 40, "stream": True}
        begun, lines = threading.Event(), []

        def read():
            try:
                read_stream(url, body, begun, lines)
            except (OSError, HTTPException):
                lines.append("broken off")

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(20)
        pid = told.of("start")[0]["pid"]
        folder = Path(told.of("/v1/load_lora_adapter")[0]["lora_path"]).parent
        process.send_signal(how)
        reader.join(20)
        assert ended(pid)
        if how == signal.SIGTERM:
            assert process.wait(20) == 0
            assert lines[-2].strip() == "data: [DONE]"
            assert len([line for line in lines if line.startswith("data: {")]) == 40
        until = time.monotonic() + 5
        while folder.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not folder.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_without_vllm_the_command_says_what_to_install(house, capfd, monkeypatch):
    from lorakit.cli.main import run

    monkeypatch.setenv("PATH", "")
    asked = ["serve", "--base", str(house / "tiny-base"), "--port", "0"]
    assert run([*asked, "--engine", "vllm"]) == 2
    said = capfd.readouterr().err
    assert "pip install vllm" in said
    assert "a torch and a transformers of its own" in said
    assert run([*asked, "--engine", "vllm", "--vllm", sys.executable]) == 2
    assert "No module named 'vllm'" in capfd.readouterr().err
    assert run([*asked, "--engine", "vlm"]) == 2
    assert "vllm" in capfd.readouterr().err
    assert run([*asked, "--vllm", "/env"]) == 2
    assert "--engine vllm" in capfd.readouterr().err
