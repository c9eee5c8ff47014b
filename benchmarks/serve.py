"""Answers of 32 requests at once: one base with no adapter, with 8, and with 32 of them.

    python benchmarks/serve.py --rounds 2 --out benchmarks/results/serve.jsonl
    python benchmarks/serve.py --rounds 1 --contenders lorakit,vllm --vllm ENV/bin/python

`lorakit serve` over HTTP, streaming, against peft's mixed batch (`adapter_names`), transformers' own
`generate` one by one and 32 at once, and vLLM's CPU build where it is installed. Contenders take
turns, every run in a process of its own; lorakit's server is a second process, whose client shares
the two cores with it. Adapters are of rank 16 on all linears, with random numbers; prompts are 48 to
79 random tokens; every answer is cut at `--new` tokens and never ends before. What is counted is
answered tokens over the time from the first request to the last token, prompts included.

The limit is that of decoding 32 rows (shared/reference: a step reads the base once and every adapter
once, and multiplies 2 (N + H + P r) a row): the slower of the matmul rate and the memory rate, both
measured in the process of the run.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench

FLIGHT, RANK = 32, 16
LORAKIT = Path(sys.executable).with_name("lorakit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--requests", type=int, default=64, help="of a run, after a warm-up")
    parser.add_argument("--contenders", default="lorakit,peft,transformers")
    parser.add_argument("--vllm", default=sys.executable, help="python of vLLM's environment")
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    options = parser.parse_args()
    same = bench.session()
    lines: list[bench.Line] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench.measure({"what": "adapters", "scratch": scratch})
        runs = {
            "lorakit": [("lorakit", n) for n in (0, 8, 32)],
            "peft": [("peft", n) for n in (8, 32)],
            "transformers": [("batch 1", 0), ("batch 32", 0)],
            "vllm": [("vllm", n) for n in (0, 8, 32)],
        }
        for turn in range(options.rounds):
            for name in options.contenders.split(","):
                for what, adapters in runs[name]:
                    task = {"what": what, "adapters": adapters, "scratch": scratch}
                    task |= {"new": options.new, "requests": options.requests}
                    made = in_vllm(options.vllm, task) if name == "vllm" else bench.measure(task)
                    line = same | {"turn": turn} | made
                    bench.note(json.dumps({k: v for k, v in line.items() if k not in same}))
                    lines.append(line)
                    bench.append(options.out, [line])
    print(table(lines))


def table(lines: list[bench.Line]) -> str:
    """Medians over the rounds."""
    found: dict[tuple[str, int], list[bench.Line]] = {}
    for line in lines:
        found.setdefault((line["what"], line["adapters"]), []).append(line)
    base = found.get(("lorakit", 0))
    rows = []
    for (what, adapters), some in found.items():
        rate = bench.median(some, "tokens_per_second")
        share = rate / bench.median(base, "tokens_per_second") if base else float("nan")
        cells = [what, str(adapters), f"{rate:.0f}", f"{share:.2f}"]
        if "first_p50" in some[0]:
            for name in ("first_p50", "first_p99", "between_p50", "between_p99"):
                cells.append(f"{1e3 * bench.median(some, name):.0f} ms")
            cells.append(f"{bench.median(some, 'fraction_of_limit'):.2f}")
        else:
            cells += [""] * 5
        rows.append(cells)
    head = ["who", "adapters", "tokens/s", "of base only", "first p50", "p99", "between p50", "p99"]
    return bench.table([*head, "of the decode limit"], rows)


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(1000, 40_000) for _ in range(48 + i % 32)] for i in range(count)]


def work(task: bench.Line) -> bench.Line:
    what = task["what"]
    if what == "adapters":
        return make_adapters(Path(task["scratch"]) / "adapters")
    told = {"what": what, "adapters": task["adapters"]}
    if what == "lorakit":
        return told | serve_lorakit(task)
    if what == "vllm":
        return told | run_vllm(task)
    return told | generate(task)


def make_adapters(folder: Path) -> bench.Line:
    import torch

    from lorakit.adapters import save_adapter
    from lorakit.lora import LoraSpec, attach, lora_layers
    from lorakit.models import load_model

    model, _ = load_model("smollm2-135m")
    attach(model, LoraSpec(rank=RANK))
    for number in range(FLIGHT):
        generator = torch.Generator().manual_seed(number)
        for layer in lora_layers(model).values():
            layer.B.data.normal_(0, 0.01, generator=generator)
        save_adapter(model, folder / f"a{number:02}")
    return {}


def limit(adapters: int) -> bench.Line:
    """Tokens/s that decoding 32 rows cannot pass on this machine."""
    import torch

    from lorakit.models import ModelSpec
    from lorakit.models.devices import torch_dtype

    n, h, p = 106_168_320, 28_311_552, 305_280
    dtype = torch_dtype(ModelSpec())
    x, w = torch.randn(1024, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    big = torch.randn(64 << 20).to(dtype)

    def rate(do: Any, amount: float) -> float:
        do()
        seconds = []
        for _ in range(7):
            began = time.perf_counter()
            do()
            seconds.append(time.perf_counter() - began)
        return amount / statistics.median(seconds)

    flops = rate(lambda: [x @ w.t() for _ in range(20)], 20 * 2 * 1024 * 576 * 1536)
    bandwidth = rate(lambda: big.sum(), big.numel() * big.element_size())
    pr = p * RANK
    step = max(
        2 * FLIGHT * (n + h + (pr if adapters else 0)) / flops,
        big.element_size() * (n + h + adapters * pr) / bandwidth,
    )
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "flops": flops,
        "bytes_per_second": bandwidth,
        "limit": FLIGHT / step,
    }


def serve_lorakit(task: bench.Line) -> bench.Line:
    told = limit(task["adapters"])
    with server(f"{task['scratch']}/adapters", [str(LORAKIT)]) as url:
        figures = asyncio.run(closed_loop(url, task))
    figures["fraction_of_limit"] = figures["tokens_per_second"] / told["limit"]
    return told | figures


@contextmanager
def server(
    adapters: str, lorakit: list[str], environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`lorakit serve` with 32 slots, for a while; where it answers."""
    command = [*lorakit, "serve", "--port", "0", "--slots", str(FLIGHT)]
    command += ["--slot-rank", str(RANK), "--max-output", "256", "--max-prompt", "768"]
    command += ["--adapters", adapters]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as p:
        assert p.stdout is not None
        said = []
        try:
            for line in p.stdout:
                said.append(line)
                if " on http" in line:
                    yield line.split()[-1]
                    break
            else:
                raise SystemExit("the server ended:\n" + "".join(said))
        finally:
            p.terminate()
            p.wait()


async def closed_loop(url: str, task: bench.Line) -> bench.Line:
    """32 clients, each with one request at a time, until all have been answered."""
    asked = prompts(FLIGHT + task["requests"])
    await burst(url, task, asked[:FLIGHT])  # adapters come into their slots
    return await burst(url, task, asked[FLIGHT:])


async def burst(url: str, task: bench.Line, asked: list[list[int]]) -> bench.Line:
    """These prompts through 32 clients, each with one request at a time; speed and times."""
    adapters = task["adapters"]
    names = [f"a{i % adapters:02}" if adapters else "smollm2-135m" for i in range(FLIGHT)]
    first: list[float] = []
    gaps: list[float] = []

    async def client(name: str, mine: list[list[int]]) -> None:
        for ids in mine:
            body = {"model": name, "prompt": ids, "max_tokens": task["new"]}
            body |= {"temperature": 0, "ignore_eos": True, "stream": True}
            await stream(url, body, first, gaps)

    began = time.perf_counter()
    await asyncio.gather(*(client(name, asked[i::FLIGHT]) for i, name in enumerate(names)))
    return {
        "tokens_per_second": len(asked) * task["new"] / (time.perf_counter() - began),
        "first_p50": quantile(first, 0.5),
        "first_p99": quantile(first, 0.99),
        "between_p50": quantile(gaps, 0.5),
        "between_p99": quantile(gaps, 0.99),
    }


async def stream(url: str, body: bench.Line, first: list[float], gaps: list[float]) -> None:
    """One streaming request over a connection of its own; its times go to the lists."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    began = last = time.perf_counter()
    seen = False
    async for line in reader:
        if line.startswith(b"data: {"):
            now = time.perf_counter()
            (gaps if seen else first).append(now - (last if seen else began))
            seen, last = True, now
            if b'"error"' in line:
                raise SystemExit(line.decode())
        elif line.startswith(b"HTTP/1.1") and b" 200 " not in line:
            raise SystemExit((line + await reader.read()).decode())
    writer.close()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def generate(task: bench.Line) -> bench.Line:
    """transformers' generate, with peft's mixed batch or without."""
    import torch

    from lorakit.models import load_model

    model, tokenizer = load_model("smollm2-135m")
    extra: dict[str, Any] = {}
    if task["what"] == "peft":
        from peft import PeftModel

        folder = Path(task["scratch"]) / "adapters"
        names = [f"a{i:02}" for i in range(task["adapters"])]
        model = PeftModel.from_pretrained(model, folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, name)
        extra["adapter_names"] = [names[i % len(names)] for i in range(FLIGHT)]
    model.eval()

    def run(some: list[list[int]], new: int) -> None:
        longest = max(map(len, some))
        ids = torch.full((len(some), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(some):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                **extra,
            )

    one = task["what"] == "batch 1"
    asked = prompts(FLIGHT + task["requests"])[FLIGHT:][: 2 if one else FLIGHT]
    run(asked[: 1 if one else FLIGHT], 2)
    began = time.perf_counter()
    for some in ([p] for p in asked) if one else [asked]:
        run(some, task["new"])
    return {"tokens_per_second": len(asked) * task["new"] / (time.perf_counter() - began)}


def in_vllm(python: str, task: bench.Line) -> bench.Line:
    """A task in vLLM's own environment, which need not have lorakit."""
    from lorakit.models import ModelSpec
    from lorakit.models.sources import resolve

    given = json.dumps(task | {"base": str(resolve(ModelSpec()).folder)})
    quiet = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": ""}
    command = [python, __file__, "--task", given]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not answers:
        sys.stderr.write(done.stderr[-4000:])
        raise SystemExit(f"{python} ended with {done.returncode}")
    made: bench.Line = json.loads(answers[-1])
    return made


def run_vllm(task: bench.Line) -> bench.Line:
    """vLLM's own engine, offline, its CPU build."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folder = Path(task["scratch"]) / "adapters"
    llm = LLM(
        task["base"],
        enable_lora=task["adapters"] > 0,
        max_loras=max(1, task["adapters"]),
        max_lora_rank=RANK,
        max_model_len=1024,
        max_num_seqs=FLIGHT,
        kv_cache_memory_bytes=1 << 30,
    )
    asked = [{"prompt_token_ids": ids} for ids in prompts(FLIGHT)]
    loras = None
    if task["adapters"]:
        every = [
            LoRARequest(f"a{i:02}", i + 1, str(folder / f"a{i:02}"))
            for i in range(task["adapters"])
        ]
        loras = [every[i % len(every)] for i in range(FLIGHT)]
    short = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    llm.generate(asked, short, lora_request=loras, use_tqdm=False)
    params = SamplingParams(temperature=0, max_tokens=task["new"], ignore_eos=True)
    began = time.perf_counter()
    llm.generate(asked, params, lora_request=loras, use_tqdm=False)
    return {"tokens_per_second": FLIGHT * task["new"] / (time.perf_counter() - began)}


if __name__ == "__main__":
    bench.run(main, work)
