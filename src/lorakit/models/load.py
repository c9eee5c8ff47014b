"""A name -> a frozen model and its tokenizer, or one clear message.

Nothing is unpickled: weights come from safetensors (or GGUF) files, whose lengths are checked
before they are opened.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lorakit.errors import ModelError
from lorakit.files.cache import Progress, no_progress
from lorakit.models import default, files, gguf
from lorakit.models.classes import built_empty, class_of
from lorakit.models.devices import torch_device
from lorakit.models.quiet import quiet
from lorakit.models.reading import one_line, read_model
from lorakit.models.sources import Resolved, check_named, resolve
from lorakit.models.spec import PACKED, ModelSpec, as_spec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger("lorakit.models")
# Which spec and which folder a model was loaded from: what its identity is computed from (fingerprint.py).
_sources: "WeakKeyDictionary[nn.Module, tuple[ModelSpec, Path]]" = WeakKeyDictionary()

# In this order, what stands in for a missing pad token: never a new token, the end token last.
_PADS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<unk>")
_PADS_OF_BASES = ("<|endoftext|>", "<|end_of_text|>")


def load_model(
    model: str | ModelSpec = "smollm2-135m", *, progress: Progress = no_progress, **options: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a base model, frozen and in eval mode, with its tokenizer.

    The tokenizer has a pad token and the vocabulary it came with. Padding is never supervised, so
    where the model has no token to spare the pad token may be the end token.

    >>> model, tokenizer = load_model("smollm2-135m")  # doctest: +SKIP

    Args:
        model: a built-in name, a model folder, a .gguf file, a hub id, or a whole `ModelSpec`.
        progress: told about a download ("download", bytes) or conversion ("convert", steps).
        **options: the other fields of `ModelSpec`: revision, device, dtype, base_dtype, and so on.

    Raises:
        ModelError: unknown name, missing or broken files, no causal language model, remote code.
        ConfigError: an unknown option or value, or a set of kernels that is not here.
    """
    from lorakit.kernels.native import requested

    spec = as_spec(model, options)
    requested()  # a wrong LORAKIT_KERNELS is an error before anything heavy is read
    where = resolve(spec, progress=progress)
    config, cls = _config(where, spec)
    weights = files.weight_files(where.folder)
    for file in weights:
        files.check_whole(file)
    tokenizer = _tokenizer(where, spec)
    loaded = read_model(cls, config, where.folder, spec)
    _check_ids(tokenizer, loaded, where)
    loaded.requires_grad_(False)
    loaded.eval()
    loaded.to(torch_device(spec))
    _sources[loaded] = spec, where.folder
    return loaded, tokenizer


def source_of(model: "nn.Module") -> ModelSpec | None:
    """The spec that `load_model` made this very model from; None for a model made elsewhere."""
    known = _sources.get(model)
    return None if known is None else known[0]


def folder_of(model: "nn.Module") -> Path | None:
    """The folder of files that `load_model` made this very model from; None for another."""
    known = _sources.get(model)
    return None if known is None else known[1]


def empty_model(model: str | ModelSpec = "smollm2-135m", **options: Any) -> "PreTrainedModel":
    """The model on the meta device: shapes and names from the configuration, no weights, no bytes.

    The built-in model's configuration is known without its download, and a GGUF file's is read from
    its header.

    Raises:
        ModelError: as `load_model`, but weights need not be there.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    cls: Any = AutoModelForCausalLM
    spec = as_spec(model, options)
    path = Path(spec.model).expanduser()
    if spec.model == default.NAME:
        config: Any = LlamaConfig(**default.CONFIG)
    elif _is_unconverted(path, spec):
        check_named(spec)
        config = gguf.read_config(path)  # the conversion would unpack every weight
    else:
        config, cls = _config(resolve(spec, weights=False), spec)
    with torch.device("meta"), quiet():
        empty: Any = built_empty(cls, config, spec)
    return empty.requires_grad_(False).eval()


def _is_unconverted(path: Path, spec: ModelSpec) -> bool:
    """Whether a name is a GGUF file that no conversion, or only the unpacked one, is at hand of."""
    is_file = path.is_file() and path.suffix.lower() == ".gguf"
    return is_file and (spec.base_dtype == PACKED or not gguf.converted(path).is_dir())


def load_tokenizer(
    model: str | ModelSpec = "smollm2-135m", **options: Any
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base alone; of a hub id no weights are fetched.

    Raises:
        ModelError: as `load_model`, but weights need not be there.
    """
    spec = as_spec(model, options)
    return _tokenizer(resolve(spec, weights=False), spec)


def load_outline(
    model: str | ModelSpec = "smollm2-135m", *, progress: Progress = no_progress, **options: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Path]":
    """All of a base but its weights, for when another program computes with them.

    Returns:
        The model on the meta device, with the end tokens that its files declare; its tokenizer; and
        the folder of its files, weights among them, which were checked and not read.

    Raises:
        ModelError: as `load_model`.
    """
    import torch
    from transformers import GenerationConfig

    spec = as_spec(model, options)
    where = resolve(spec, progress=progress)
    config, cls = _config(where, spec)
    for file in files.weight_files(where.folder):
        files.check_whole(file)
    with torch.device("meta"), quiet():
        empty: Any = built_empty(cls, config, spec)
        if (where.folder / "generation_config.json").is_file():
            empty.generation_config = GenerationConfig.from_pretrained(
                where.folder, local_files_only=True
            )
    return empty.requires_grad_(False).eval(), _tokenizer(where, spec), where.folder


def _config(where: Resolved, spec: ModelSpec) -> "tuple[PretrainedConfig, Any]":
    """The configuration and the class to load, once it is known to be a causal language model that
    needs no code."""
    from transformers import CONFIG_MAPPING, AutoConfig

    raw = files.read_config(where.folder)
    remote = raw.get("auto_map", {})
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING and not spec.trust_remote_code:
        if remote:
            raise ModelError(
                f"{spec.model} brings its own Python code ({', '.join(sorted(remote))}), which "
                "lorakit does not run by default: read that code, then set trust_remote_code "
                "(--trust-remote-code)."
            )
        raise ModelError(
            f"{where.folder}/config.json: model_type is {kind!r}, which this transformers does "
            "not know; a newer transformers may."
        )
    packed = raw.get("quantization")
    if isinstance(packed, dict) and "bits" in packed:
        raise ModelError(
            f"{where.folder} is quantized by mlx-lm ({packed['bits']} bits), whose weights transformers "
            "does not read: name the model that it was made from, or write it out with `mlx_lm.convert "
            "--dequantize`"
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                where.folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{where.folder}/config.json cannot be used: {error}") from error
    made_for = raw.get("architectures") or []
    cls = class_of(config, made_for, remote)
    # BERT and its kin can be built as causal models, but their weights were not trained as such.
    masked = any(name.endswith(("MaskedLM", "Classification")) for name in made_for)
    # transformers finds a model for such a folder, and gives it a head that nobody trained.
    bodies = [
        name for name in made_for if name.endswith("Model") and not name.endswith("LMHeadModel")
    ]
    if bodies and files.is_sentence_transformers(where.folder):
        raise ModelError(
            f"{spec.model} is a model of sentence-transformers (modules.json), a {bodies[0]} that turns "
            "texts into vectors and has no output head: name the language model that it was made from"
        )
    if cls is None or masked or config.is_encoder_decoder:
        raise ModelError(
            f"{spec.model} is {', '.join(made_for) or kind}, not a causal language model: lorakit "
            "trains models that predict the next token."
        )
    return config, cls


def _tokenizer(where: Resolved, spec: ModelSpec) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    files.require_tokenizer(where.folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                where.folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # tokenizers raises bare exceptions about damaged files
        raise ModelError(
            f"{where.folder} has no tokenizer that can be read (tokenizer.json): "
            f"{one_line(error)}; fetch or copy it again"
        ) from error
    _give_pad(tokenizer)
    return tokenizer


def _give_pad(tokenizer: Any) -> None:
    """Choose a pad token out of the vocabulary, other than the end token where there is one."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is not None and pad != end:
        return
    vocabulary = tokenizer.get_vocab()
    unknown = tokenizer.unk_token
    for token in (*_PADS, *_PADS_OF_BASES, unknown, tokenizer.eos_token):
        if token in vocabulary and (vocabulary[token] != end or token == tokenizer.eos_token):
            tokenizer.pad_token = token
            return
    if pad is None:
        raise ModelError("the tokenizer has neither a pad nor an end token; set eos_token in it")


def _check_ids(tokenizer: Any, model: Any, where: Resolved) -> None:
    """Warn when the tokenizer can give ids for which the embedding has no row."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted(token for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        _log.warning(
            "the tokenizer in %s has %d tokens that the model has no embedding for (first: %r); "
            "a text that holds one cannot be used",
            where.folder,
            len(beyond),
            beyond[0],
        )
