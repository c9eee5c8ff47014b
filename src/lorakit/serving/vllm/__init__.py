"""`lorakit serve --engine vllm`: vLLM computes, lorakit's server stands before it.

    Prompt → its adapter exported and registered → /v1/completions of a vLLM that only this process
    can reach → its stream → events, as lorakit's own engine gives them

program.py   which python has a vLLM, and what it says of itself; probe.py is what asks it
command.py   lorakit's options -> vLLM's (pure)
exports.py   adapters as vLLM takes them, and the adapter that changes nothing
child.py     vLLM's process, from its start to its end; tied.py ends it with this one
stream.py    a prompt -> vLLM's request; its stream -> events (pure)
engine.py    the Runtime
opening.py   all of it put together
"""
