"""`vllm serve`, as far as lorakit uses it; refuses what the real one refuses."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from vllm import SETTINGS

_CHOICES = {"auto", "half", "float16", "bfloat16", "float", "float32"}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_END = 1


def record(kind, **told):
    if SETTINGS.get("record"):
        with Path(SETTINGS["record"]).open("a") as file:
            file.write(json.dumps({"kind": kind, **told}) + "\n")


def dumps(content):
    """As pydantic does it: nothing but what JSON asks for is escaped."""
    return json.dumps(content, ensure_ascii=False)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="vllm")
    serve = parser.add_subparsers(dest="command", required=True).add_parser("serve")
    serve.add_argument("folder", type=Path)
    for name in ("--served-model-name", "--uds"):
        serve.add_argument(name, required=True)
    serve.add_argument("--dtype", choices=sorted(_CHOICES), required=True)
    serve.add_argument("--max-lora-rank", type=int, choices=_RANKS, default=16)
    serve.add_argument("--generation-config", default="auto")
    serve.add_argument("--structured-outputs-config", type=json.loads, default={})
    for name in (
        *("--max-model-len", "--max-num-seqs", "--max-loras", "--max-num-batched-tokens"),
        "--kv-cache-memory-bytes",
    ):
        serve.add_argument(name, type=int)
    for name in (
        *("--enable-lora", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
        *("--trust-remote-code", "--enforce-eager"),
    ):
        serve.add_argument(name, action="store_true")
    return parser.parse_args(arguments)


class Letters:
    """Answers with the bytes of a text, over and over, as token ids."""

    def __init__(self, names):
        self.names = names

    def add(self, name, folder):
        self.names.append(name)

    def next(self, model, ids, prompt_length):
        said = SETTINGS.get("says", model).encode()
        letter = said[(len(ids) - prompt_length) % len(said)]
        return letter, {letter: -0.25, letter + 1: -1.5}

    def text(self, ids):
        return bytes(ids).decode(errors="replace")


class Model:
    """Answers with the model in the folder, and adapters as peft loads them; greedy."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.folder, self.tokenizer = folder, AutoTokenizer.from_pretrained(folder)
        self.open = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.models = {}

    def add(self, name, folder):
        from peft import PeftModel

        model = self.open().eval()
        self.models[name] = PeftModel.from_pretrained(model, folder) if folder else model

    def next(self, model, ids, prompt_length):
        import torch

        with torch.no_grad():
            logits = self.models[model](torch.tensor([ids]), use_cache=False).logits[0, -1]
        values, best = logits.log_softmax(-1).topk(6)
        return int(best[0]), dict(zip(best.tolist(), values.tolist(), strict=True))

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def make_app(asked):
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    base = asked.served_model_name
    source = Model(asked.folder) if SETTINGS["model"] else Letters([])
    source.add(base, None)
    adapters, seen = {}, set()

    def problem(status, text):
        error = {"message": text, "type": "BadRequestError", "param": None, "code": status}
        return JSONResponse({"error": error}, status)

    def guarded(do):
        async def asked_for(request):
            if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            body = await request.json()
            record(request.url.path, **body)
            return await do(body)

        return asked_for

    async def load(body):
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in adapters or name == base:
            return problem(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return problem(404, f"No adapter found for {folder}")
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > asked.max_lora_rank:
            return problem(500, f"LoRA rank {config['r']} is greater than max_lora_rank")
        if config["rank_pattern"] or config["alpha_pattern"] or config["use_rslora"]:
            return problem(500, "the stand-in takes one rank and one scale")
        source.add(name, folder)
        adapters[name] = folder
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(body):
        if adapters.pop(body["lora_name"], None) is None:
            return problem(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return PlainTextResponse("Success")

    async def completions(body):
        model = body["model"]
        if model != base and model not in adapters:
            return problem(404, f"The model `{model}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > asked.max_model_len:
            return problem(400, "This model's maximum context length is exceeded")
        if "<[" in (body.get("structured_outputs") or {}).get("grammar", ""):
            return problem(400, "Grammar error: special token with no tokenizer")
        if SETTINGS["fault"] and model == base and adapters:
            model = [*adapters][-1]  # the fault, at its worst
        return StreamingResponse(stream(body, model), media_type="text/event-stream")

    async def stream(body, model):
        prompt, new, sent, finish = body["prompt"], [], "", None
        held = max((len(s) - 1 for s in body["stop"]), default=0)
        beginning = (model, *prompt[:16])
        try:
            while finish is None:
                await asyncio.sleep(SETTINGS["pause"])
                id, likely = source.next(model, [*prompt, *new], len(prompt))
                new.append(id)
                ended = id in body["stop_token_ids"] or (id == _END and not body["ignore_eos"])
                text = source.text(new[:-1] if ended else new)
                cuts = [at for s in body["stop"] if (at := text.find(s)) >= 0]
                if cuts:
                    text = text[: min(cuts)]
                if ended or cuts:
                    finish = "stop"
                elif len(new) >= body["max_tokens"]:
                    finish = "length"
                ready = text if finish else text[: len(text) - held]
                if "\ufffd" in ready[-1:] and not finish:
                    ready = sent
                choice = {
                    "index": 0,
                    "text": ready[len(sent) :],
                    "logprobs": None,
                    "finish_reason": finish,
                    "token_ids": [id] if body["return_token_ids"] else None,
                }
                if body.get("logprobs") is not None:
                    top = dict(list(likely.items())[: max(1, body["logprobs"])])
                    choice["logprobs"] = {
                        "tokens": [f"token_id:{id}"],
                        "token_logprobs": [likely[id]],
                        "top_logprobs": [{f"token_id:{i}": p for i, p in top.items()}],
                        "text_offset": [0],
                    }
                sent = ready
                yield f"data: {dumps({'choices': [choice]})}\n\n"
            cached = 16 if beginning in seen else 0
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(new)}
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
            yield f"data: {dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            seen.add(beginning)
            record("end", model=model, tokens=len(new), finish=finish)

    async def health(request):
        return PlainTextResponse("")

    return Starlette(
        routes=[
            Route("/health", health),
            *(
                Route(path, guarded(do), methods=["POST"])
                for path, do in (
                    ("/v1/completions", completions),
                    ("/v1/load_lora_adapter", load),
                    ("/v1/unload_lora_adapter", unload),
                )
            ),
        ]
    )


def main():
    asked = parse(sys.argv[1:])
    said = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    names = ("VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    record(
        "start", **said, pid=os.getpid(), variables={name: os.environ.get(name) for name in names}
    )
    if SETTINGS.get("fail"):
        sys.exit(SETTINGS["fail"])
    import uvicorn

    uvicorn.run(make_app(asked), uds=asked.uds, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
