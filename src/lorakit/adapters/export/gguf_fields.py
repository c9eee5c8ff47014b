"""The fields of a GGUF file changed, its tensors' bytes as they are.

What llama.cpp's converter makes of a folder says of conversations too little: it reads one eos, and
nothing of the end of turn that a template teaches; llama.cpp ends an answer at the eos, eot and eom
of the file, and at tokens whose names it knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

Field = str | bool | int
_TOKENIZER = gguf.Keys.Tokenizer


@dataclass(frozen=True)
class Speech:
    """What a file shall say of prompts and answers.

    Attributes:
        ends: ids that end an answer beside the eos, the end of a plain answer first; the file has
            places for two.
        bos: whether a prompt begins with the token that begins a text.
    """

    ends: Sequence[int] = ()
    bos: bool = False


def fields(file: Path, speech: Speech) -> dict[str, Field]:
    """The fields of a model's file that say so.

    The token that begins a text is put there by llama.cpp where the file asks for it, and a template
    that writes it too does not double it there. Where prompts begin without it, it must not be put.
    """
    reader = gguf.GGUFReader(file)
    changes: dict[str, Field] = dict(
        zip((_TOKENIZER.EOT_ID, _TOKENIZER.EOM_ID), speech.ends, strict=False)
    )
    asked = _value(reader, _TOKENIZER.ADD_BOS)
    if asked is None:  # llama.cpp's own rule for files that do not say
        asked = _value(reader, _TOKENIZER.MODEL) == "llama"
    changes[_TOKENIZER.ADD_BOS] = bool(asked) and speech.bos
    changes[_TOKENIZER.ADD_EOS] = False
    return changes


def copy_with_fields(source: Path, target: Path, changes: Mapping[str, Field]) -> None:
    """Write a copy of a GGUF file with other values of some fields.

    Args:
        source: a whole file.
        target: is written anew.
        changes: field -> a text, true or false, or an id (32 bits, unsigned).
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(_value(reader, gguf.Keys.General.ARCHITECTURE)))
    writer.data_alignment = reader.alignment
    try:
        for field in reader.fields.values():
            mine = field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE
            if mine or field.name in changes:
                continue
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
        for name, value in changes.items():
            writer.add_key_value(name, value, _type(value))
        for tensor in reader.tensors:
            data = tensor.data
            writer.add_tensor_info(
                tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(tensor.data)
    finally:
        writer.close()


def read_field(file: Path, name: str) -> object:
    """The value of a field; None where the file has none of that name."""
    return _value(gguf.GGUFReader(file), name)


def _value(reader: gguf.GGUFReader, name: str) -> object:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _type(value: Field) -> gguf.GGUFValueType:
    if isinstance(value, bool):
        return gguf.GGUFValueType.BOOL
    return gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.STRING
