"""llama.cpp itself as the reader of GGUF files, through ctypes: logits and greedy answers.

The library is ik_llama.cpp (PyPI: ik-llama-cpp-python), a fork that keeps llama.cpp's file formats.
Its package binds no adapters, so the four calls of llama.h that load one are declared here.
"""

import ctypes
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

api = pytest.importorskip("ik_llama_cpp._ctypes_api")

_lib = api._lib
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_said: list[str] = []


@_LOG
def _log(level: int, text: bytes, data: object) -> None:
    _said.append(text.decode("utf-8", "replace"))


_lib.llama_log_set.argtypes = [_LOG, ctypes.c_void_p]
_lib.llama_lora_adapter_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_lib.llama_lora_adapter_init.restype = ctypes.c_void_p
_lib.llama_lora_adapter_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
_lib.llama_lora_adapter_set.restype = ctypes.c_int32
_lib.llama_token_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
_lib.llama_token_is_eog.restype = ctypes.c_bool
_lib.llama_log_set(_log, None)
api.llama_backend_init()


class RefusedError(Exception):
    """llama.cpp did not load a file; the text is what it logged last."""


class LlamaCpp:
    """A GGUF model, with a GGUF adapter or without, in float32 arithmetic where its weights are."""

    def __init__(self, model: Path, adapter: Path | None = None, *, context: int = 512) -> None:
        self._model = self._context = None
        _said.clear()
        model_parameters = api.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(model).encode(), model_parameters)
        if not self._model:
            raise RefusedError("".join(_said[-4:]))
        parameters = api.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        parameters.flash_attn = False
        # Fused products read the base's weights alone, without a word about the adapter.
        parameters.fused_up_gate = parameters.fused_mmad = False
        # float32 keys; values in float16, which is what it takes where flash attention is off.
        parameters.type_k, parameters.type_v = 0, 1
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RefusedError("".join(_said[-4:]))
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        if adapter is not None:
            # Freed with the model.
            lora = _lib.llama_lora_adapter_init(self._model, str(adapter).encode())
            if not lora:
                raise RefusedError("".join(_said[-4:]))
            assert _lib.llama_lora_adapter_set(self._context, lora, 1.0) == 0

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *error: object) -> None:
        if self._context:
            api.llama_free(self._context)
        if self._model:
            api.llama_free_model(self._model)

    def tokens(self, text: str) -> list[int]:
        """The file's own tokenizer, special tokens recognised in the text and none added."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        n = api.llama_tokenize(self._model, raw, len(raw), room, len(room), False, True)
        return list(room[:n])

    def ends(self, token: int) -> bool:
        """Whether an answer ends at this token, by what the file says."""
        return bool(_lib.llama_token_is_eog(self._model, token))

    def prompt(self, text: str) -> list[int]:
        """As its server tokenizes a prompt: with the token that the file asks for before it."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        n = api.llama_tokenize(self._model, raw, len(raw), room, len(room), True, True)
        return list(room[:n])

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """The likeliest continuation up to and with the token at which the file says that it ends."""
        tokens = self.greedy(ids, most, [i for i in range(self.vocabulary) if self.ends(i)])
        if len(tokens) == most:
            return tokens
        last = int(self.logits([*ids, *tokens])[-1].argmax())
        return [*tokens, last]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(tokens, vocabulary) after each token of a fresh sequence."""
        api.llama_kv_cache_clear(self._context)
        return self._decode(ids, 0)

    def greedy(self, ids: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """The likeliest continuation, without the end token."""
        api.llama_kv_cache_clear(self._context)
        row, answer = self._decode(ids, 0, every=False)[-1], []
        while len(answer) < most:
            token = int(row.argmax())
            if token in ends:
                break
            answer.append(token)
            row = self._decode([token], len(ids) + len(answer) - 1, every=False)[-1]
        return answer

    def _decode(self, ids: Sequence[int], start: int, *, every: bool = True) -> Tensor:
        batch = api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, start + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = every or i == len(ids) - 1
            assert api.llama_decode(self._context, batch) == 0
            return torch.stack([self._row(i) for i in (range(len(ids)) if every else [-1])])
        finally:
            api.llama_batch_free(batch)

    def _row(self, i: int) -> Tensor:
        pointer = api.llama_get_logits_ith(self._context, i)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (self.vocabulary,)).copy())
