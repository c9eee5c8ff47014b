"""Help of options that belong to a spec outside the run file."""

from dataclasses import fields


def help_of(spec: type, name: str) -> str:
    """The help that a field of a spec carries in its metadata.

    >>> from lorakit.adapters.specs import ShrinkSpec
    >>> help_of(ShrinkSpec, "threshold").split(",")[0]
    'Apply one threshold to the singular values of all modules'
    """
    (found,) = [field for field in fields(spec) if field.name == name]
    return str(found.metadata["help"])
