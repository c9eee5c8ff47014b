"""One base, many adapters, each request its own task.

    HTTP → a name's content id → the pool gives it slots → the scheduler sorts the step's tokens by
    adapter → one forward pass of the base, one grouped low-rank product → sample, stream, release

spec.py       what a server may use and what it allows
scheduler.py  which sequences a step computes (pure); cache.py, pool.py: KV-cache positions and adapter slots (pure)
forward.py    a step through the base; lean.py: blocks of the llama family; bank.py: the slots
engine.py     the thread that runs steps; opening.py: prepares a base for it
runtime.py    what computes, as http/ sees it; vllm/: vLLM in the engine's place
sampling.py   the next token; adjusting.py: what changes its logits; grammar.py: schemas; text.py: its text
tools/        tool calls: the form in which a model writes them, read and forced
catalog.py    which adapters there are, by name
keys.py       API keys and their rates
http/         the server that the openai package talks to
"""
