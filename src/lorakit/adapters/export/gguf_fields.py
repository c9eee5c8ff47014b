"""The fields of a GGUF file changed, its tensors' bytes as they are."""

from collections.abc import Mapping
from pathlib import Path

import gguf

Field = str | bool | int


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
