"""Pages from templates: jinja2 with autoescape, written whole or not at all."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.files.whole import write_text
from lorakit.report import numbers

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> "Environment":
    """The templates of this room, with the filters of `numbers` under their own names.

    Autoescape is on for every template; a name that a template misses is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "loss", "count", "percent", "signed", "size", "duration"):
        environment.filters[name] = getattr(numbers, name)
    return environment


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Render a template of this room into `path`, whole or not at all.

    Raises OutputError where it cannot be written.
    """
    text = environment().get_template(template).render(**context)
    return write_text(path, text, what="page")
