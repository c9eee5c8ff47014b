"""Five minutes of `lorakit serve` under load, and what must still be true at the end.

    python benchmarks/serve_soak.py zipf --out benchmarks/results/serve_soak.jsonl
    python benchmarks/serve_soak.py clients --out benchmarks/results/serve_soak.jsonl

zipf: 1,000 registered adapters of rank 16, 16 slots, requests whose adapter is drawn by Zipf's law.
Memory must be flat after a warm-up, an adapter read from disk in 25 ms (p95), a change between
resident adapters planned in 1 ms (p99), no error. The adapters' files are links to 32 different
ones; each folder has a content id of its own.

clients: 64 clients, a third of whose requests are hung up on, while another process adds and removes
adapters; half-way the server is killed with SIGKILL and started again. Every whole answer must be
what the same adapter answered before to the same prompt (float32, greedy), every refusal a 404 (for a
name that is not there just then), 429 or 503, and at the end nothing may be in use.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from multiprocessing import Event, Process
from pathlib import Path
from typing import Any

import bench
import psutil
from serve import LORAKIT, make_adapters

PROMPTS = ["where is my order", "the parcel is late", "please refund me", "hello"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["zipf", "clients"])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench.measure({"adapters": str(Path(scratch) / "adapters")})
        soak = zipf if options.what == "zipf" else clients
        line = bench.session() | {"what": options.what} | soak(Path(scratch), options.seconds)
    bench.append(options.out, [line])
    print(json.dumps(line, indent=2))


def start(*flags: str) -> tuple[subprocess.Popen[str], str]:
    """`lorakit serve` on a free port; its process and URL."""
    command = [str(LORAKIT), "serve", "--port", "0", "--max-output", "64", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if " on http" in line:
            return process, line.split()[-1]
    raise SystemExit("".join(said))


async def post(url: str, body: bench.Line, hang_up: float | None = None) -> tuple[int, Any]:
    """Status and JSON of a completion; (0, None) where the client hung up or the server was gone."""
    host, port = url.removeprefix("http://").split(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        try:
            answer = await asyncio.wait_for(reader.read(), hang_up)
        except TimeoutError:
            return 0, None
        finally:
            writer.close()
    except OSError:
        return 0, None
    status, _, text = answer.partition(b"\r\n\r\n")
    if not status:
        return 0, None
    return int(status.split()[1]), json.loads(text[text.index(b"{") : text.rindex(b"}") + 1])


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines()]
    return {name: float(value) for name, value in lines if not name.startswith("#")}


def zipf(scratch: Path, seconds: float) -> bench.Line:
    many = scratch / "many"
    for number in range(1000):
        folder, source = many / f"task{number:04}", scratch / "adapters" / f"a{number % 32:02}"
        folder.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "adapter_config.json", "lorakit.json"):
            os.link(source / name, folder / name)
        (folder / "README.md").write_text(f"task {number}")
    process, url = start("--adapters", str(many), "--slots", "16", "--max-prompt", "448")
    weights = [1 / (rank + 1) for rank in range(1000)]
    draw, statuses, sizes = random.Random(0), Counter[int](), []
    until = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until:
            (number,) = draw.choices(range(1000), weights)
            body = {"model": f"task{number:04}", "prompt": draw.choice(PROMPTS), "max_tokens": 16}
            status, _ = await post(url, body)
            statuses[status] += 1

    async def watch() -> None:
        while time.monotonic() < until:
            sizes.append(psutil.Process(process.pid).memory_info().rss)
            await asyncio.sleep(1)

    async def everything() -> None:
        await asyncio.gather(watch(), *(client() for _ in range(16)))

    try:
        asyncio.run(everything())
        told = metrics(url)
    finally:
        process.terminate()
        process.wait()
    loads = told["lorakit_adapter_load_seconds_count"]
    warm = sizes[len(sizes) // 3 :]
    third = max(1, len(warm) // 3)
    return {
        "statuses": dict(statuses),
        "loads": loads,
        "share_read_in_25_ms": told['lorakit_adapter_load_seconds_bucket{le="0.025"}'] / loads,
        "mean_load_ms": 1e3 * told["lorakit_adapter_load_seconds_sum"] / loads,
        "mean_install_ms": 1e3 * told["lorakit_adapter_install_seconds_sum"] / loads,
        "swap_p99_ms": 1e3 * swap_p99(),
        "rss_start": statistics.median(warm[:third]),
        "rss_end": statistics.median(warm[-third:]),
        "rss_max": max(sizes),
    }


def swap_p99() -> float:
    """Seconds to find and plan another mix of 16 resident adapters in 32 rows."""
    import torch

    from lorakit.kernels.slot_plan import SlotRun, costs, plan_batch
    from lorakit.serving.pool import SlotPool

    pool, draw, device, seconds = SlotPool(16), random.Random(0), torch.device("cpu"), []
    for number in range(16):
        pool.place(str(number), 1)
    cost = costs(device, torch.bfloat16, 10_176, 16)
    for _ in range(2000):
        mix = Counter(draw.choices(range(16), k=32))
        began = time.perf_counter()
        found = sorted((pool.acquire(str(n)).slot, count) for n, count in mix.items())
        plan_batch(tuple(SlotRun(slot, 1, count) for slot, count in found), 32, device, cost)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[int(0.99 * len(seconds))]


def churn(store: str, folders: list[str], stop: Any) -> None:
    """Add and remove adapters, until told to stop."""
    from lorakit.adapters.store import Store

    kept, number = Store(store), 0
    while not stop.is_set():
        name = f"churn{number % 4}"
        if number % 8 < 4:
            kept.add(folders[number % len(folders)], name)
        else:
            kept.remove(name)
        number += 1
        time.sleep(0.3)


def clients(scratch: Path, seconds: float) -> bench.Line:
    from lorakit.adapters.store import Store

    folders = [str(scratch / "adapters" / f"a{i:02}") for i in range(12)]
    store = scratch / "store"
    for number, folder in enumerate(folders[:8]):
        Store(store).add(folder, f"task{number}")
    names = ["smollm2-135m", *(f"task{i}" for i in range(8))]
    flags = ("--store", str(store), "--slots", "6", "--dtype", "float32", "--max-prompt", "448")
    process, url = start(*flags)
    known: dict[tuple[str, str], str] = {}

    def body(name: str, prompt: str) -> bench.Line:
        return {"model": name, "prompt": prompt, "max_tokens": 24, "temperature": 0}

    async def learn() -> None:
        for name in names:
            for prompt in PROMPTS:
                status, said = await post(url, body(name, prompt))
                assert status == 200, said
                known[name, prompt] = said["choices"][0]["text"]

    asyncio.run(learn())
    stop = Event()
    other = Process(target=churn, args=(str(store), folders[8:], stop))
    other.start()
    statuses, wrong, hung = Counter[int](), 0, 0

    async def client(number: int, until: float) -> None:
        nonlocal wrong, hung
        draw = random.Random(number)
        while time.monotonic() < until:
            name = draw.choice([*names, *(f"churn{i}" for i in range(4))])
            prompt = draw.choice(PROMPTS)
            leaving = draw.random() < 1 / 3
            hung += leaving
            status, said = await post(
                url, body(name, prompt), draw.random() * 2 if leaving else None
            )
            statuses[status] += 1
            if status == 200 and (name, prompt) in known:
                wrong += said["choices"][0]["text"] != known[name, prompt]
            if status in (429, 503):
                await asyncio.sleep(1)

    async def half() -> None:
        until = time.monotonic() + seconds / 2
        await asyncio.gather(*(client(i, until) for i in range(64)))

    try:
        asyncio.run(half())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process, url = start(*flags)
        asyncio.run(half())
        time.sleep(2)
        told = metrics(url)
    finally:
        stop.set()
        other.join()
        process.terminate()
        process.wait()
    shutil.rmtree(store)
    return {
        "statuses": dict(statuses),
        "hung_up": hung,
        "wrong": wrong,
        "cells_in_use_at_the_end": told["lorakit_cache_tokens_in_use"],
        "running_at_the_end": told["lorakit_running_sequences"],
        "waiting_at_the_end": told["lorakit_waiting_sequences"],
    }


if __name__ == "__main__":
    bench.run(main, lambda task: make_adapters(Path(task["adapters"])))
