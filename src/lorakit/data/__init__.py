"""A file of rows -> supervised tokens -> the batches of a step.

    file or hub id   records.py   rows that know their file and line   (files.py opens them)
                     documents.py, tables.py, arrow.py   the formats;  folders.py   which files
    Row              recognising.py, shapes.py   Example: prompt + completion, messages, text (mapping.py: '{a.b}')
                     conversations.py, calls.py   other tools' forms of messages and tool calls
    Example          encode.py    Encoded: token ids and their loss mask
                     template.py  by a chat template or raw, recorded with the adapter
                     chat.py      where in a chat template's text the answers are
    Encoded          table.py     TokenTable: all rows, 5 bytes a token
    TokenTable       batches.py   the order of steps; padding-free batches within a token budget

prompt_form.py makes an example of what is asked later: a typed text, named columns, a row without
its answer. load.py does all of these steps: `load_data(spec, tokenizer)`. split.py chooses the held-out rows,
notes.py words what was decided, preview.py computes what `lorakit check` shows, and tickets.py
generates the demo's rows.

Uses torch, numpy, jinja2 (its errors), and zstandard, pyarrow or datasets where a source needs
them (lorakit[data]). The tokenizer is passed in: nothing here imports transformers.

The names below are loaded when first used: `DataSpec` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.data.batches import Batch, micro_batches, order, total_steps
    from lorakit.data.encode import encode_all, encode_prompt
    from lorakit.data.files import check_sources
    from lorakit.data.load import Dataset, load_data, load_rows
    from lorakit.data.notes import RowCounts
    from lorakit.data.prompt_form import PromptForm
    from lorakit.data.recognising import recognise
    from lorakit.data.records import read_rows
    from lorakit.data.row import Row
    from lorakit.data.shapes import Example, Message, Shape
    from lorakit.data.spec import DataSpec
    from lorakit.data.table import Encoded, TokenTable
    from lorakit.data.template import Template, Tokenizer, resolve_template
    from lorakit.data.tickets import write_tickets

_HOMES = {
    "Batch": "batches",
    "DataSpec": "spec",
    "Dataset": "load",
    "Encoded": "table",
    "Example": "shapes",
    "Message": "shapes",
    "PromptForm": "prompt_form",
    "Row": "row",
    "RowCounts": "notes",
    "Shape": "shapes",
    "Template": "template",
    "TokenTable": "table",
    "Tokenizer": "template",
    "check_sources": "files",
    "encode_all": "encode",
    "encode_prompt": "encode",
    "load_data": "load",
    "load_rows": "load",
    "micro_batches": "batches",
    "order": "batches",
    "read_rows": "records",
    "recognise": "recognising",
    "resolve_template": "template",
    "total_steps": "batches",
    "write_tickets": "tickets",
}

__all__ = [
    "Batch",
    "DataSpec",
    "Dataset",
    "Encoded",
    "Example",
    "Message",
    "PromptForm",
    "Row",
    "RowCounts",
    "Shape",
    "Template",
    "TokenTable",
    "Tokenizer",
    "check_sources",
    "encode_all",
    "encode_prompt",
    "load_data",
    "load_rows",
    "micro_batches",
    "order",
    "read_rows",
    "recognise",
    "resolve_template",
    "total_steps",
    "write_tickets",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
