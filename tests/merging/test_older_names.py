"""What transformers 5 keeps in rope_parameters, also under the names that older readers know."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from lorakit.merging.older_names import with_older_names

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
# The older keys are those that the same model's config.json had when it was published: Llama 3.1,
# Gemma 3, Phi-2, Pythia, Phi-3 with 128k, Qwen2-VL and OLMo 3.
PUBLISHED = {
    "plain": (
        {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
    ),
    "scaled": (
        {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}},
    ),
    "by layer": (
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0},
        },
    ),
    "partial": (
        {
            "model_type": "phi",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.4,
            },
        },
        {"rope_theta": 1e4, "partial_rotary_factor": 0.4},
    ),
    "GPT-NeoX": (
        {
            "model_type": "gpt_neox",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
            },
        },
        {"rotary_emb_base": 1e4, "rotary_pct": 0.25},
    ),
    "Phi-3": (
        {
            "model_type": "phi3",
            "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 4096,
                "short_factor": [1.0, 2.0],
                "long_factor": [3.0, 4.0],
            },
        },
        {
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 2.0],
                "long_factor": [3.0, 4.0],
            },
        },
    ),
    "sections": (
        {
            "model_type": "qwen2_vl_text",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
        },
        {
            "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]},
        },
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_the_keys_of_published_models(case):
    config, older = PUBLISHED[case]
    before = json.dumps(config)
    assert with_older_names(config) == config | older
    assert json.dumps(config) == before
    inside = with_older_names({"model_type": "outer", "text_config": config})
    assert inside == {"model_type": "outer", "text_config": config | older}


def test_what_is_there_stays():
    config = {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert with_older_names(config) == config
    for config in ({"rope_theta": 7.0}, {"rope_parameters": None}, {"rope_parameters": {}}):
        assert with_older_names(config) == config


def test_transformers_reads_every_causal_model_as_before(tmp_path):
    """Not one configuration of transformers turns its rotation by the older keys beside the new."""
    compared = 0
    # Models of one's own that another test has registered are none of transformers'.
    known = {c.model_type for c in MODEL_FOR_CAUSAL_LM_MAPPING} & CONFIG_MAPPING_NAMES.keys()
    for kind in sorted(known):
        try:
            config = CONFIG_MAPPING[kind]().to_dict()
            new = read_again(config, tmp_path / f"{kind}-new")
        except (TypeError, ValueError, ImportError, AttributeError, StrictDataclassError):
            continue  # one that has no defaults, or whose defaults transformers does not read
        older = with_older_names(config)
        if older == config:
            continue
        both = read_again(older, tmp_path / f"{kind}-both")
        for part in ("itself", "text_config"):
            mine, theirs = (getattr(c, part, c) for c in (both, new))
            if hasattr(theirs, "rope_parameters"):
                assert without_type(mine.rope_parameters) == without_type(theirs.rope_parameters), (
                    kind
                )
                compared += 1
    assert compared > 60


def read_again(config, folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return AutoConfig.from_pretrained(folder)


def without_type(value):
    """`type` is what `rope_type` was called before; transformers keeps both and reads the latter."""
    if isinstance(value, dict):
        return {k: without_type(v) for k, v in value.items() if k != "type"}
    return value
