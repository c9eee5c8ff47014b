"""What a user may write for an adapter in the store.

invoices            what the name points at now
invoices@3          the third version that was put under the name
invoices@4f1dc0     the version of the name whose id begins so
@4f1dc0             the version of any name, or of none
"""

import re
from dataclasses import dataclass

from lorakit.errors import StoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class StoreReference:
    """A reference taken apart.

    Attributes:
        name: "" where only a version is given.
        number: of the version under its name, or None.
        prefix: first digits of the version's id, or None.
    """

    name: str
    number: int | None = None
    prefix: str | None = None

    @property
    def bare(self) -> bool:
        """Whether it is a name alone."""
        return self.number is None and self.prefix is None


def parse(text: str) -> StoreReference:
    """Take a reference apart; up to seven decimal digits are a number, not the start of an id.

    >>> parse("invoices@3")
    StoreReference(name='invoices', number=3, prefix=None)
    >>> parse("@4f1dc0").prefix
    '4f1dc0'

    Raises:
        StoreError: it is of no such form.
    """
    name, at, version = text.partition("@")
    if name or not at:
        check_name(name)
    if not at:
        return StoreReference(name)
    if name and _NUMBER.fullmatch(version):
        return StoreReference(name, number=int(version))
    if _PREFIX.fullmatch(version.lower()):
        return StoreReference(name, prefix=version.lower())
    raise StoreError(
        f"{text!r} names no version: after '@' stands a number (invoices@3) or at least four of "
        "the hexadecimal digits that its id begins with (invoices@4f1d)"
    )


def check_name(name: str) -> None:
    """Check that a text can be an adapter's name.

    Raises:
        StoreError: it has other characters, or none.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be an adapter's name: letters, digits, '.', '_' and '-', at most "
            "100, the first a letter or a digit"
        )
