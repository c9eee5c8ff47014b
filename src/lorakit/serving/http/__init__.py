"""The server that the openai package talks to.

app.py       the application: routes, who may ask, what every error looks like
schema.py    requests, as OpenAI's API has them, strict; messages.py, formats.py, fields.py: their parts
prompts.py   conversations -> tokens
wishes.py    what a request wishes of its answers, checked against tokenizer and model
service.py   between the event loop and the engine's thread
chat.py      /v1/chat/completions; completions.py: /v1/completions; shapes.py: what both share
adapters.py  /v1/models, and registering adapters by vLLM's convention
metrics.py   what Prometheus reads
guard.py     bodies that are too large, hosts that are not this one
"""
