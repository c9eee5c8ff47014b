"""Models that read images or sound beside text, on rows of text: loaded, trained, saved, merged, read by peft.

The oracle is the class of transformers itself, with peft's layers or with the merged files.
"""

import pytest
import torch
import transformers
from peft import PeftModel

import lorakit
from architectures import tiny_config
from families import tokenizer
from lorakit.errors import ModelError
from lorakit.execution.generate import end_tokens, generate
from lorakit.execution.streaming import stream
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.models.load import empty_model, load_model, load_outline

# Images by two ways, a mixture of experts, sound, and a language tower that was saved by itself.
CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "aya_vision": "AyaVisionForConditionalGeneration",
    "cosmos3_omni": "Cosmos3OmniForConditionalGeneration",
    "aria": "AriaForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "emu3": "Emu3ForCausalLM",
}
ROWS = [
    {"prompt": "say lamp", "completion": "pmal"},
    {"prompt": "write the number after twelve", "completion": "thirteen, and then fourteen"},
]
IDS = torch.randint(5, 260, (1, 19), generator=torch.Generator().manual_seed(0))


def saved(family, folder):
    """The class of transformers, after a folder of it with tiny random weights was written."""
    cls = getattr(transformers, CLASSES.get(family, family))
    config = tiny_config(family) if family in CLASSES else tiny_config(cls.config_class.model_type)
    if cls.config_class is not type(config):
        config = config.get_text_config()
    torch.manual_seed(0)
    cls(config).eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return cls


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


# peft 0.21 asks transformers 5.24 by an older name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", CLASSES)
def test_text_rows(family, tmp_path):
    base = tmp_path / "base"
    cls = saved(family, base)
    model, words = load_model(str(base), dtype="float32")
    assert type(model) is cls
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for empty in (empty_model(str(base)), load_outline(str(base))[0]):
        assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    plain = logits(cls.from_pretrained(base, dtype=torch.float32))
    assert torch.equal(logits(model), plain)
    attach(model, LoraSpec(rank=2))
    trained = lorakit.train(
        model, words, ROWS, eval_share=0, max_steps=4, batch_size=2, learning_rate=0.05
    )
    assert trained.steps == 4
    right = logits(model)
    assert (right - plain).abs().max() > 1e-3
    # The language tower is adapted, and nothing else is.
    tower = "model.language_model."
    if not any(path.startswith(tower) for path, _ in model.named_modules()):
        tower = "model."
    assert all(path.startswith(tower) for path in lora_layers(model))
    lorakit.save_adapter(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(
        cls.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    assert (logits(theirs) - right).abs().max() <= 1e-4 * right.abs().max()
    lorakit.merge(tmp_path / "adapter", tmp_path / "merged", model=str(base))
    merged = cls.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (logits(merged) - right).abs().max() <= 1e-4 * right.abs().max()
    assert len(lorakit.generate(model, ["say lamp", "a"], tokenizer=words, max_new_tokens=4)) == 2


@pytest.mark.parametrize("family", ["qwen3_omni_moe_thinker", "llava"])
def test_text_is_continued_as_by_the_own_forward(family, tmp_path):
    """transformers' generate does not run the first of them for a text alone."""
    cls = saved(family, tmp_path)
    model, words = load_model(str(tmp_path), dtype="float32")
    own = cls.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompts = [IDS[0, :n].tolist() for n in (5, 12, 19)]
    ends = end_tokens(model, words)
    answers = generate(model, words, prompts, max_new_tokens=6)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            with torch.no_grad():
                best = int(
                    own(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()
                )
            if best in ends:
                break
            ids.append(best)
        assert list(answer.ids) == ids[len(prompt) :]
    streamed = "".join(stream(model, words, prompts[1], max_new_tokens=6))
    assert streamed == answers[1].text


def test_a_model_that_needs_an_image_is_refused_by_name(tmp_path):
    saved("BlipForConditionalGeneration", tmp_path)
    model, words = load_model(str(tmp_path))
    attach(model, LoraSpec(rank=2))
    with pytest.raises(
        ModelError, match=r"BlipForConditionalGeneration does not run .*pixel_values"
    ):
        lorakit.train(model, words, ROWS, eval_share=0, max_steps=1)


def test_an_encoder_and_decoder_of_images_is_no_causal_model(tmp_path):
    saved("Pix2StructForConditionalGeneration", tmp_path)
    with pytest.raises(ModelError, match="Pix2StructForConditionalGeneration, not a causal"):
        load_model(str(tmp_path))
