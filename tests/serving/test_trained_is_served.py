"""A row trained is a row served: the server's own prompt for each turn begins the training sequence."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families import tokenizer
from lorakit.data import DataSpec, Example, resolve_template
from lorakit.data.encode import encode_examples
from lorakit.serving.http.prompts import Prompts
from lorakit.serving.http.schema import ChatRequest
from template_families import FAMILIES, SPECIALS

WORDS = st.lists(
    st.sampled_from(["lamp", "desk", "river", "stone", "a", "."]), min_size=1, max_size=4
)


@pytest.fixture(scope="module", params=FAMILIES)
def words(request):
    """The tests' tokenizer with one family's chat template."""
    made = tokenizer()
    made.chat_template = FAMILIES[request.param]
    made.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *SPECIALS]}
    )
    return made


@given(texts=st.lists(WORDS, min_size=2, max_size=6), system=st.booleans())
@settings(max_examples=12, deadline=None)
def test_each_trained_prefix_is_the_prompt_of_the_same_request(words, texts, system):
    template = resolve_template(DataSpec(), words)
    messages = [{"role": "system", "content": "river stone"}] if system else []
    for i, text in enumerate(texts[: len(texts) // 2 * 2]):
        messages.append({"role": ("user", "assistant")[i % 2], "content": " ".join(text)})
    row = Example("f:1", messages=tuple(messages))
    (found,) = encode_examples([row], words, template)
    trained = [
        sequence.ids[: int(start) + 1].tolist()
        for sequence in found.sequences
        for start in np.flatnonzero(np.diff(sequence.weight.astype(int)) == 1)
    ]
    prompts, model = Prompts(words, frozenset()), types.SimpleNamespace(name="m", template=template)
    served = [
        prompts.chat(model, ChatRequest(model="m", messages=messages[:n]))
        for n, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    assert sorted(trained) == sorted(served)
