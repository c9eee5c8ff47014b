"""Clients that go away, full queues, new versions, many adapters, signals: small forms of 4 and 5."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
from engines import base
from servers import SPEC, make_adapter, serving
from test_attacks import call

from lorakit.adapters.store import Store
from lorakit.kernels import native

ASK = {"prompt": "hello", "temperature": 0}


def stream_and_hang_up(url, body):
    """Send a request, read a little, close the connection."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        if body.get("stream"):
            assert b"200" in line.recv(4096)
        else:
            time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_cells_and_slot(running, stream):
    body = {"model": "small", **ASK, "max_tokens": 60, "ignore_eos": True, "stream": stream, "n": 4}
    steps = []
    own = running.engine.observer.step
    # Slow steps, so that the answer is not over before a busy machine sees that nobody reads it.
    running.engine.observer.step = lambda *told: (time.sleep(0.02), steps.append(told), own(*told))
    try:
        stream_and_hang_up(running.url, body)
        running.rest(5)
    finally:
        running.engine.observer.step = own
    assert len(steps) < 60


def test_a_full_queue_is_a_429_that_says_when_and_nothing_breaks(running):
    """24 answers fit (8 running, 16 waiting); of 40 some are refused, and each other one is right."""
    alone = call(f"{running.url}/v1/completions", {"model": "small", **ASK, "max_tokens": 30})
    outcomes = []

    def ask():
        outcomes.append(
            call(f"{running.url}/v1/completions", {"model": "small", **ASK, "max_tokens": 30})
        )

    # Slow steps, so that the requests meet however slow their own threads are.
    own = running.engine.observer.step
    running.engine.observer.step = lambda *told: (time.sleep(0.02), own(*told))
    try:
        threads = [threading.Thread(target=ask) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        running.engine.observer.step = own
    assert {status for status, _, _ in outcomes} == {200, 429}
    for status, head, said in outcomes:
        if status == 429:
            assert int(head["Retry-After"]) >= 1
        else:
            assert said["choices"][0]["text"] == alone[2]["choices"][0]["text"]
    running.rest()


def test_a_new_version_of_a_name_is_used_at_once_and_meets_no_old_cache(house, tmp_path):
    store = Store(tmp_path / "store")
    first = make_adapter(base("llama"), tmp_path / "one", 8, 1)
    second = make_adapter(base("llama"), tmp_path / "two", 8, 2)
    store.add(first, "task")
    long = {"prompt": "the same prompt, long enough to be kept " * 2, "temperature": 0}
    with serving(house / "tiny-base", store.path) as server:
        url = f"{server.url}/v1/completions"

        def ask(name):
            body = {"model": name, **long, "max_tokens": 12}
            status, _, said = call(url, body)
            assert status == 200, said
            return said

        old = ask("task")
        assert ask("task")["usage"]["prompt_tokens_details"]["cached_tokens"] > 50
        store.add(second, "task")
        new = ask("task")
        assert new["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert new["choices"][0]["text"] != old["choices"][0]["text"]
        assert ask("task@1")["choices"][0]["text"] == old["choices"][0]["text"]
        store.rollback("task")
        assert ask("task")["choices"][0]["text"] == old["choices"][0]["text"]
        store.remove("task")
        assert call(url, {"model": "task", **long})[0] == 404


def test_many_more_adapters_than_slots_by_zipfs_law(house, tmp_path):
    """40 adapters, 6 slots: every answer is what the same adapter answered before."""
    folders = [make_adapter(base("llama"), tmp_path / f"a{i:02}", 8, i) for i in range(40)]
    with serving(house / "tiny-base", tmp_path / "none", adapters=[tmp_path]) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def ask(name):
            made = client.completions.create(
                model=name, prompt="hello", temperature=0, max_tokens=6
            )
            return made.choices[0].text

        known = {folder.name: ask(folder.name) for folder in folders}
        assert len(set(known.values())) > 20
        draw = random.Random(0)
        weights = [1 / (rank + 1) for rank in range(len(folders))]
        names = draw.choices([f.name for f in folders], weights, k=120)
        wrong, lock = [], threading.Lock()

        def work():
            while True:
                with lock:
                    if not names:
                        return
                    name = names.pop()
                if (got := ask(name)) != known[name]:
                    wrong.append((name, got))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        server.rest()
        assert len(server.engine.pool.resident) == SPEC.slots
        metrics = call(f"{server.url}/metrics")[2]
        chosen = native.choose(torch.float32, torch.device("cpu")).name
        code = "compiled kernels" if chosen == "avx2" else "short code"
        way = f"by lorakit's {code}, all sequences in one row"
        assert f'lorakit_steps_info{{way="{way}"}}' in metrics
        assert 'lorakit_completion_tokens_total{model="a00"}' in metrics
        assert "lorakit_adapter_load_seconds_bucket" in metrics
        client.close()


def start(house, *more):
    """`lorakit serve` in a process of its own; the process and its URL."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-X", "faulthandler", "-m", "lorakit", "serve"),
            *("--base", str(house / "tiny-base")),
            *("--store", str(house / "store"), "--port", "0", "--dtype", "float32"),
            *("--cache-gb", "0.02", "--max-prompt", "300", "--max-output", "200", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LORAKIT_CACHE": str(house / "cache"), "COLUMNS": "200"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "serving tiny-base on http" in line:
            return process, line.split()[-1]
    raise AssertionError("".join(lines))


def read_stream(url, body, begun, out):
    asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        for line in answer:
            out.append(line.decode())
            begun.set()


def test_sigterm_lets_answers_end_and_kill_9_is_survived(house):
    process, url = start(house)
    try:
        body = {"model": "small", **ASK, "max_tokens": 200, "ignore_eos": True, "stream": True}
        before = call(f"{url}/v1/completions", {**body, "stream": False})[2]["choices"][0]["text"]
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        process, url = start(house)
        begun, lines = threading.Event(), []
        reader = threading.Thread(target=read_stream, args=(url, body, begun, lines))
        reader.start()
        assert begun.wait(20)
        process.send_signal(signal.SIGTERM)
        reader.join(30)
        assert lines[-2].strip() == "data: [DONE]"
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(c["choices"][0]["text"] for c in chunks) == before
        assert process.wait(20) == 0, process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_port_that_is_taken_and_an_adapter_that_is_not_there_are_clear(house, capfd):
    from lorakit.cli.main import run

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        taken.listen()
        assert run(["serve", "--base", str(house / "tiny-base"), "--port", port]) == 2
    assert "--port 0 takes a free one" in capfd.readouterr().err
    asked = ["serve", "--base", str(house / "tiny-base"), "--store", str(house / "store")]
    assert run([*asked, "--port", "0", "--adapters", "smal"]) == 2
    assert "did you mean 'small'" in capfd.readouterr().err
    assert run([*asked, "--slots", "many"]) == 2
    assert "slots is 'many'" in capfd.readouterr().err


def test_a_key_is_made_by_the_command(tmp_path, capfd):
    from lorakit.cli.main import run
    from lorakit.serving.keys import read_keys

    path = tmp_path / "keys.json"
    asked = ["serve", "--new-key", "team", "--keys", str(path), "--key-adapters", "a,b*"]
    assert run(asked) == 0
    key = read_keys(path).find(capfd.readouterr().out.strip())
    assert key.adapters == ("a", "b*")
    assert run(asked) == 2
    assert Path(path).stat().st_mode & 0o077 == 0
