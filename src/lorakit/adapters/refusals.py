"""What peft can write into adapter_config.json and lorakit does not do, each with its reason.

Reading such an adapter as if it were plain LoRA would give other answers without a word, so
each is refused by name. What `lorakit.lora.variants` has is done, and no longer refused; nor are the
keys of `BESIDE`, which say what is trained beside the pairs, and those of `TRAINING`, which act in
training alone (held against peft's logits in tests/parity/test_peft_beside.py).
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.errors import did_you_mean
from lorakit.lora import variants

PEFT_READ = "0.21"
VARIANTS = {
    "lora_bias": "a trained bias on B",
    "modules_to_save": "modules trained and saved whole",
    "trainable_token_indices": "single rows of the embedding trained whole",
    "layer_replication": "layers repeated to make a deeper model",
    "use_qalora": "QA-LoRA pools its input in groups",
    "use_bdlora": "block-diagonal pairs",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA truncates the base's weight and adds a diagonal between A and B",
    "monteclora_config": "MonteCLoRA samples its pairs in training",
    "velora_config": "VeLoRA keeps projections of its own in training",
    "megatron_config": "tensor-parallel layers of Megatron",
    "ensure_weight_tying": "one pair shared by tied layers",
}
BESIDE = ("lora_bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying")
TRAINING = ("monteclora_config", "velora_config")
_INITS = {
    "pissa": "PiSSA moves part of the base's weight into A and B",
    "olora": "OLoRA moves part of the base's weight into A and B",
    "corda": "CorDA moves part of the base's weight into A and B",
    "lora_ga": "LoRA-GA subtracts its start from the base's weight",
    "loftq": "LoftQ replaces the base by a quantized one and keeps the rest in A and B",
}
# Starts that leave the base alone: nothing of them matters once A and B are trained.
HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Kept for other readers, or read by peft while training starts; loading does not depend on them.
INFORMATIVE = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
)
READ = (
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
)


# Kinds of peft's adapters that have no weights to merge: they add tokens or states to the input.
_PROMPTS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
    *("ADAPTION_PROMPT", "XLORA"),
)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why lorakit cannot read an adapter with this configuration; None where it can."""
    kind = config.get("peft_type")
    if kind is None and "lora_parameters" in config:
        return "it is mlx-lm's: `lorakit import FOLDER --base BASE --out NEW` converts it"
    if kind != "LORA":
        return f"peft_type is {kind!r}; lorakit reads 'LORA'"
    for key, reason in VARIANTS.items():
        done = key in variants.peft_keys() or key in BESIDE or key in TRAINING
        if not done and not _at_rest(config.get(key)):
            return f"{key} is {config[key]!r} ({reason}); lorakit does {variants.names()} alone"
    init = config.get("init_lora_weights", True)
    if init not in HARMLESS_INITS:
        reason = next((r for name, r in _INITS.items() if str(init).startswith(name)), "unknown")
        return (
            f"init_lora_weights is {init!r} ({reason}), so the adapter does not fit the untouched "
            "base: save it from peft with path_initial_model_for_weight_conversion"
        )
    known = (*VARIANTS, *INFORMATIVE, *READ, *variants.peft_keys())
    for key, value in config.items():
        if key not in known and not _at_rest(value):
            return (
                f"the key {key!r} ({value!r}) is unknown, and may change what the adapter means; "
                f"{did_you_mean(key, known)} If it is a note of another program, remove it from the "
                f"file: peft {PEFT_READ}, too, reads the adapter without it"
            )
    return None


def way_on(folder: Path, config: Mapping[str, Any]) -> str:
    """What can be done with an adapter that is refused: peft makes an ordinary model of it.

    "" where peft cannot, or where the reason says what to do.
    """
    kind, known = config.get("peft_type"), (*VARIANTS, *INFORMATIVE, *READ, *variants.peft_keys())
    strange = any(key not in known and not _at_rest(value) for key, value in config.items())
    untouched = config.get("init_lora_weights", True) in HARMLESS_INITS
    if kind is None or kind in _PROMPTS or (kind == "LORA" and (strange or not untouched)):
        return ""
    # These act on some tokens only.
    if any(config.get(key) for key in ("alora_invocation_tokens", "arrow_config")):
        return ""
    return f". {merged_by_peft(folder)}"


def merged_by_peft(folder: Path) -> str:
    """The command by which peft makes an ordinary model of an adapter, with the tokenizer it needs."""
    words = "'merged'"
    tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else None
    source = repr(tokenizer) if tokenizer else "m.peft_config['default'].base_model_name_or_path"
    python = (
        "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
        f"m = M.from_pretrained({str(folder)!r}); t = T.from_pretrained({source}); "
        f"m.merge_and_unload().save_pretrained({words}); t.save_pretrained({words})"
    )
    return f"peft makes an ordinary model of it: python -c {shlex.quote(python)}"


def _at_rest(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")
