"""What other trainers call lorakit's options and commands, so that a mistake is answered with ours.

peft, transformers, TRL, Unsloth, LLaMA-Factory, axolotl, torchtune and mlx-lm.

Longer than 300 lines: they are tables, a name a line.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from lorakit.errors import did_you_mean

OPTIONS: dict[str, tuple[str, ...]] = {
    "model": (
        *("model_name_or_path", "model_name", "model_id", "model_path", "base_model", "base"),
        *(
            "pretrained_model_name_or_path",
            "base_model_name_or_path",
            "hf_model",
            "checkpoint_dir",
            "m",
        ),
    ),
    "revision": ("model_revision", "base_model_revision", "model_name_or_path_revision"),
    "data": (
        *(
            "dataset",
            "datasets",
            "dataset_name",
            "dataset_path",
            "dataset_dir",
            "data_path",
            "data_dir",
        ),
        *("train_file", "train_data", "train_dataset", "training_data", "train_path", "train", "d"),
        *("data_files", "input", "input_file", "eval_data", "test_data", "rows"),
    ),
    "eval_data": (
        *(
            "eval_dataset",
            "eval_file",
            "eval_path",
            "validation_file",
            "validation_data",
            "val_data",
        ),
        *(
            "valid_data",
            "val_file",
            "test_data",
            "test_datasets",
            "test_file",
            "valid",
            "validation",
        ),
        *("validation_dataset", "held_out"),
    ),
    "eval_share": (
        "val_set_size",
        "val_size",
        "validation_split",
        "test_size",
        "eval_split",
        "val_split",
    ),
    "completion": (
        "response_column",
        "output_column",
        "answer_column",
        "label_column",
        "response",
        "answer",
    ),
    "prompt": (
        "prompt_column",
        "input_column",
        "question_column",
        "prompt_template",
        "instruction",
    ),
    "text": ("dataset_text_field", "text_column", "text_field"),
    "system": ("system_prompt", "default_system", "system_message"),
    "template": ("chat_template",),
    "max_length": (
        *("max_seq_length", "max_seq_len", "max_len", "cutoff_len", "sequence_len", "seq_len"),
        *("model_max_length", "block_size", "seq_length", "context_length", "max_tokens_per_row"),
    ),
    "max_rows": ("max_samples", "max_train_samples", "num_samples", "limit", "max_examples"),
    "max_eval_rows": ("max_eval_samples",),
    "rank": ("r", "lora_r", "lora_rank", "lora_dim", "adapter_rank", "network_dim"),
    "alpha": ("lora_alpha", "lora_scaling", "network_alpha", "a"),
    "dropout": ("lora_dropout", "peft_dropout"),
    "rslora": ("use_rslora", "rs_lora"),
    "dora": ("use_dora",),
    "alora": ("alora_invocation_tokens", "invocation_tokens", "invocation_string", "use_alora"),
    "targets": (
        *(
            "target_modules",
            "lora_target_modules",
            "lora_target",
            "lora_targets",
            "target",
            "modules",
        ),
        *("lora_attn_modules", "target_linear"),
    ),
    "exclude": ("exclude_modules",),
    "layers": ("layers_to_transform", "num_layers", "lora_layers", "peft_layers_to_transform"),
    "init": ("init_lora_weights", "init_method", "lora_init", "initialization", "pissa_init"),
    "eva_rho": ("rho",),
    "lora_plus": ("loraplus_lr_ratio", "lora_plus_ratio", "loraplus", "lora_plus_lr_ratio"),
    "modules_to_save": ("additional_target", "lora_modules_to_save", "unfrozen_modules"),
    "bias": ("lora_bias_mode", "train_bias", "bias_trainable"),
    "keep_ties": ("ensure_weight_tying",),
    "token_rows": ("trainable_token_indices", "lora_trainable_token_indices"),
    "train_tokens": ("trainable_tokens", "train_new_tokens"),
    "from": (
        *(
            "resume_adapter_file",
            "adapter_path_to_resume",
            "pretrained_adapter",
            "init_from",
            "parent",
        ),
        *("continue_from", "start_from", "resume_from"),
    ),
    "loss": ("loss_type", "loss_function"),
    "label_smoothing": ("label_smoothing_factor", "label_smoothing_epsilon"),
    "learning_rate": ("lr", "peak_lr", "max_lr", "base_lr"),
    "epochs": (
        "num_train_epochs",
        "num_epochs",
        "n_epochs",
        "epoch",
        "max_epochs",
        "train_epochs",
        "e",
    ),
    "max_steps": (
        "iters",
        "max_iters",
        "steps",
        "num_steps",
        "train_steps",
        "max_train_steps",
        "total_steps",
    ),
    "batch_size": (
        *(
            "per_device_train_batch_size",
            "train_batch_size",
            "micro_batch_size",
            "bs",
            "batch",
            "b",
        ),
        *("per_device_batch_size", "per_gpu_train_batch_size", "train_micro_batch_size_per_gpu"),
        "global_batch_size",
    ),
    "schedule": (
        "lr_scheduler_type",
        "lr_scheduler",
        "scheduler",
        "lr_schedule",
        "lr_schedule_type",
    ),
    "warmup": ("warmup_ratio",),
    "weight_decay": ("wd",),
    "beta1": ("adam_beta1",),
    "beta2": ("adam_beta2",),
    "clip": ("max_grad_norm", "grad_clip", "gradient_clip", "gradient_clipping", "clip_grad_norm"),
    "eval_every": ("eval_steps", "steps_per_eval", "eval_interval", "evals_per_epoch", "val_steps"),
    "checkpoint_every": ("save_steps", "save_every", "save_interval", "checkpoint_interval"),
    "patience": ("early_stopping_patience",),
    "activation_checkpointing": (
        *("gradient_checkpointing", "grad_checkpoint", "use_gradient_checkpointing"),
        "enable_activation_checkpointing",
    ),
    "seed": ("random_state", "random_seed", "data_seed"),
    "dtype": ("torch_dtype", "precision", "compute_dtype", "torch_dtype_name"),
    "device": ("device_map", "gpu", "cuda"),
    "resume": ("resume_from_checkpoint", "overwrite_output_dir"),
    "out": (
        *(
            "output_dir",
            "output",
            "outdir",
            "out_dir",
            "save_dir",
            "adapter_path",
            "output_path",
            "o",
        ),
        *("save_path", "run_dir", "to_dir", "outfile", "output_file"),
    ),
    "save_as": ("adapter_name", "run_name", "hub_model_id"),
    "max_new_tokens": (
        "max_tokens",
        "max_gen_len",
        "num_predict",
        "n_predict",
        "generation_max_length",
    ),
    "samples": ("num_eval_samples",),
    "template_option": ("chat_template_kwargs", "template_kwargs"),
    "adapter": (
        *(
            "adapter_name_or_path",
            "adapter_path",
            "lora_path",
            "lora",
            "peft_model",
            "lora_weights",
        ),
        *(
            "lora_model_dir",
            "lora_dir",
            "peft",
            "adapters",
            "adapter_dir",
            "adapter_file",
            "lora_modules",
        ),
    ),
    "adapters": ("adapter", "lora", "lora_modules", "lora_path"),
    "to": ("format", "target", "target_format", "outtype"),
    "metrics": ("metric",),
    "temperature": ("temp",),
    "port": ("http_port", "p"),
    "host": ("bind", "address"),
}
"""Option of a command -> what other programs call it. The first that a command has is meant."""
VALUES: dict[str, tuple[str, str]] = {
    "bf16": ("dtype", "bfloat16"),
    "fp16": ("dtype", "float16"),
    "fp32": ("dtype", "float32"),
    "use_dft_loss": ("loss", "dft"),
    "load_in_4bit": ("base_dtype", "nf4"),
    "load_in_8bit": ("base_dtype", "int8"),
}
"""Switches of others that are a value of an option here."""
CHOICES: dict[str, dict[str, tuple[str, str]]] = {
    **dict.fromkeys(
        ("optim", "optimizer"),
        dict.fromkeys(
            (
                *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw8bit"),
                *("adamw_torch_8bit", "adam_8bit", "adam8bit", "bitsandbytes.optim.adamw8bit"),
                *("bitsandbytes.optim.pagedadamw8bit", "torchao.optim.adamw8bit"),
            ),
            ("moments", "8bit"),
        ),
    ),
}
"""Options of others of which some values, in lower case, are a value of an option here."""
WITHOUT: dict[str, str] = {
    "gradient_accumulation_steps": "a step of --batch-size rows is split by itself, so that memory does "
    "not decide: give --batch-size the product of the two",
    "grad_accumulation_steps": "a step of --batch-size rows is split by itself: give --batch-size the "
    "product of the two",
    "warmup_steps": "--warmup is a share of the steps",
    "num_warmup_steps": "--warmup is a share of the steps",
    "logging_steps": "every step is logged",
    "packing": "rows are always packed, each attending to itself alone",
    "sample_packing": "rows are always packed, each attending to itself alone",
    "group_by_length": "rows are always packed, each attending to itself alone",
    "forecast": "`lorakit check` forecasts a run, and a search says before it begins what it costs at most",
    "dry_run": "`lorakit check` forecasts a run, and a search says before it begins what it costs at most",
    "optim": "the optimizer is AdamW; --moments 8bit holds its moments in 8 bits",
    "optimizer": "the optimizer is AdamW; --moments 8bit holds its moments in 8 bits",
    "report_to": "metrics are in metrics.jsonl; --tensorboard writes them for TensorBoard too",
    "use_peft": "an adapter is always trained",
    "use_lora": "an adapter is always trained",
    "finetuning_type": "an adapter is always trained",
    "peft_type": "an adapter is always trained",
    "task_type": "causal language models are trained",
    "stage": "rows with answers are trained on",
    "do_train": "`lorakit train` trains",
    "do_eval": "held-out rows are measured by themselves",
    "eval_strategy": "--eval-every says how often",
    "evaluation_strategy": "--eval-every says how often",
    "save_strategy": "--checkpoint-every says how often",
    "num_proc": "rows are read in one process",
    "dataloader_num_workers": "rows are read in one process",
}
"""What others have and lorakit does otherwise, in words."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (
        "finetune",
        "fine-tune",
        "fine_tune",
        "tune",
        "sft",
        "fit",
        "run",
        "lora",
        "learn",
        "start",
    ),
    "eval": ("evaluate", "test", "validate", "measure", "score", "benchmark", "perplexity"),
    "generate": ("infer", "inference", "predict", "complete", "ask", "answer", "sample", "prompt"),
    "check": (
        "estimate",
        "forecast",
        "dry-run",
        "dryrun",
        "plan",
        "inspect",
        "preview",
        "validate-data",
    ),
    "serve": ("server", "api", "host", "deploy"),
    "merge": ("fuse", "bake", "merge-lora", "merge_lora", "merge_and_unload"),
    "export": ("convert", "gguf", "ollama", "vllm"),
    "push": ("upload", "publish"),
    "pull": ("download", "fetch", "get"),
    "count": ("params", "parameters", "size"),
    "demo": ("example", "quickstart", "tutorial"),
    "adapters": ("adapter", "store", "loras", "models"),
    "list": ("ls",),
    "remove": ("rm", "delete", "del"),
    "rename": ("mv", "move"),
    "show": ("info", "describe", "cat"),
    "diff": ("compare",),
    "log": ("history",),
    "rollback": ("restore", "undo", "revert"),
    "gc": ("prune", "clean"),
    "combine": ("merge", "add-weighted", "mix"),
    "shrink": ("truncate", "compress", "resize"),
    "verify": ("check", "fsck"),
    "add": ("import", "put", "save", "register"),
}
"""Command -> what people type for it."""


def plain(name: str) -> str:
    """An option's name without what differs from program to program: --LoRA-R is lora_r."""
    return name.lstrip("-").replace("-", "_").replace(".", "_").lower()


def option_meant(name: str, known: Collection[str]) -> str | None:
    """The option among `known` that is meant by a name; None where none is near.

    >>> option_meant("lora_r", {"rank", "alpha"}), option_meant("--Batch-size", {"batch_size"})
    ('rank', 'batch_size')
    >>> option_meant("rnak", {"rank", "alpha"}), option_meant("zzz", {"rank"})
    ('rank', None)
    """
    asked = plain(name)
    for option in (asked, asked.removeprefix("lora_"), asked.removeprefix("training_args_")):
        if option in known:
            return option
    meant = [option for option, others in OPTIONS.items() if asked in others]
    if meant:  # no other one is, however near its name
        return next((option for option in meant if option in known), None)
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.6)
    return near[0] if near else None


def command_meant(name: str, known: Collection[str]) -> str | None:
    """The command among `known` that is meant; None where none is near.

    >>> command_meant("finetune", {"train"}), command_meant("trian", {"train", "rank"})
    ('train', 'train')
    """
    asked = name.lower()
    for command, others in COMMANDS.items():
        if asked in others and command in known:
            return command
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.6)
    return near[0] if near else None


def unknown_keys(values: Mapping[str, Any], known: Collection[str], source: str) -> str:
    """The message for keys of a run file that lorakit has not, with the lines that are meant.

    >>> print(unknown_keys({"lora_r": 8, "lr": "1e-4"}, ["rank", "learning_rate"], "run.yaml"))
    run.yaml: unknown key 'lora_r'; did you mean 'rank'? Write
    rank: 8
    run.yaml: unknown key 'lr'; did you mean 'learning_rate'? Write
    learning_rate: 1e-4

    Args:
        values: the unknown keys with their values.
        known: the options there are.
        source: the file.
    """
    lines = []
    for key, value in values.items():
        name, start = plain(str(key)), f"{source}: unknown key {key!r}; "
        meant = option_meant(str(key), known)
        chosen = CHOICES.get(name, {}).get(str(value).lower())
        if chosen is not None and chosen[0] in known:
            lines.append(f"{start}did you mean {chosen[0]!r}? Write\n{chosen[0]}: {chosen[1]}")
        elif name in WITHOUT:
            lines.append(f"{start}leave it out: {WITHOUT[name]}")
        elif name in VALUES and VALUES[name][0] in known:
            option, fixed = VALUES[name]
            lines.append(f"{start}did you mean {option!r}? Write\n{option}: {fixed}")
        elif meant is None and (own := [o for o, others in OPTIONS.items() if name in others]):
            lines.append(f"{start}lorakit calls it {own[0]!r}, and that has no place here")
        elif meant is None or isinstance(value, Mapping):
            lines.append(start + did_you_mean(str(key), known))
        else:
            listed = "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else value
            lines.append(f"{start}did you mean {meant!r}? Write\n{meant}: {listed}")
    return "\n".join(lines)
