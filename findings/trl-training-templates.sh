#!/usr/bin/env bash
# trl 1.16.0: what its training templates supervise, against the prompt that is served.
#
# Versions: trl 1.16.0, transformers 5.24.0 (return_assistant_tokens_mask), tokenizers 0.23.
# Guess: a template with {% generation %} marks what the model generates, no more and no less: the
#   mask of an answer begins where the generation prompt ends.
# Seen: for the answer to one question,
#   - gptoss and muse_glimmer supervise '<|start|>assistant', qwen3_5_nothink the whole empty
#     thinking block and qwen3_5_think, qwen3_6 and qwen3_8 its first line: the prompt holds them;
#   - deepseek_r1_distill, deepseekv3 and the nemotron_3 templates train a text of which the
#     prompt that is served is no beginning.
#   After a tool result, deepseek_r1_distill and deepseekv3 supervise the token that closes the tool's
#   own output, '<｜tool▁outputs▁end｜>'; diffusion_gemma leaves out the header '<|turn>model' that
#   the prompt does not hold there.
# lorakit: the prompt as served is never supervised, whatever is marked; see docs/templates.md.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q transformers==5.24.0 jinja2==3.1.6
"$place/venv/bin/pip" install -q --no-deps trl==1.16.0
cat > "$place/look.py" <<'PY'
import importlib.util
import pathlib
import re
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

folder = pathlib.Path(importlib.util.find_spec("trl").submodule_search_locations[0])


def tokenizer_for(source):
    """One token a byte, and the special tokens that the template names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=source)
    named = set(re.findall(r"<[|｜][^<>\s]{1,40}[|｜]>", source)) | {"<bos>", "<eos>"}
    tokenizer.add_special_tokens(
        {"bos_token": "<bos>", "eos_token": "<eos>", "additional_special_tokens": sorted(named)}
    )
    return tokenizer


call = {"type": "function", "function": {"name": "look", "arguments": {"town": "Oslo"}}}
ask = {"role": "user", "content": "Which river?"}
answer = {"role": "assistant", "content": "The Seine."}
result = {"role": "tool", "name": "look", "content": "cold"}


def judge(tokenizer, messages):
    """Where the mask of the last answer begins, against the prompt for it."""
    tools = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {
        "type": "object", "properties": {"town": {"type": "string"}}}}}]
    tools = tools if len(messages) > 2 else None
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tools=tools, add_generation_prompt=True, tokenize=False)
    row = tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = row["input_ids"], row["assistant_masks"]
    start = max(i for i in range(1, len(ids)) if mask[i] and not mask[i - 1])
    before, after = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
    if after.startswith("<｜tool▁outputs▁end｜>"):
        return "supervises '<｜tool▁outputs▁end｜>'"
    if not (before + after).startswith(prompt):
        return "the prompt is no beginning"
    if len(before) > len(prompt):
        return f"leaves out {before[len(prompt):]!r}"
    return "" if before == prompt else f"supervises {prompt[len(before):]!r}"


found = []
for file in sorted((folder / "chat_templates").glob("*_training.jinja")):
    tokenizer = tokenizer_for(file.read_text())
    text_call = {**call, "function": {**call["function"], "arguments": '{"town": "Oslo"}'}}
    for name, messages in {
        "one answer": [ask, answer],
        "after a tool": [ask, {"role": "assistant", "content": "", "tool_calls": [call]}, result, answer],
        "after a tool, text": [ask, {"role": "assistant", "content": "", "tool_calls": [text_call]}, result, answer],
    }.items():
        try:
            said = judge(tokenizer, messages)
        except Exception:
            continue
        if said:
            found.append(f"{file.name.removesuffix('_training.jinja')}, {name}: {said}")
print("\n".join(found))
expected = {
    "gptoss, one answer: supervises '<|start|>assistant'",
    "muse_glimmer, one answer: supervises '<|start|>assistant'",
    "qwen3_5_nothink, one answer: supervises '<think>\\n\\n</think>\\n\\n'",
    "qwen3_6, one answer: supervises '<think>\\n'",
    "deepseek_r1_distill, one answer: the prompt is no beginning",
    "deepseek_r1_distill, after a tool: supervises '<｜tool▁outputs▁end｜>'",
    "deepseekv3, one answer: the prompt is no beginning",
    "nemotron_3_nano, one answer: the prompt is no beginning",
    "diffusion_gemma, after a tool: leaves out '<|turn>model\\n'",
}
sys.exit(0 if expected <= set(found) else 1)
PY
"$place/venv/bin/python" "$place/look.py"
