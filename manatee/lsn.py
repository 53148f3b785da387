"""Positions in PostgreSQL's write-ahead log.

An LSN is a byte offset into the log (PostgreSQL documentation, "pg_lsn Type"). It is a number that is written as
two hexadecimal halves; comparing the written form as text is a mistake that has lost data elsewhere, so positions are
parsed once, where they enter the process, and are `Lsn` from there on.
"""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_WRITTEN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_LIMIT = 1 << 64


class Lsn(int):
    """A position in the write-ahead log, in bytes; ordered and subtracted as the number it is.

    >>> Lsn.parse("B6/952E6978") < Lsn.parse("B7/0")
    True
    >>> str(Lsn.parse("0/A"))
    '0/0000000A'
    >>> Lsn.parse("1/0") - Lsn.parse("0/FFFFFFF0")
    16
    """

    __slots__ = ()

    def __new__(cls, position: int = 0) -> Self:
        if not 0 <= position < _LIMIT:
            raise ValueError(f"{position} is not a WAL position: it must lie between 0 and 2^64")
        return super().__new__(cls, position)

    @classmethod
    def parse(cls, written: str) -> Lsn:
        """The position written as `X/X` in hexadecimal, upper or lower case, halves of one to eight digits.

        Raises ValueError for anything else.
        """
        match = _WRITTEN.fullmatch(written)
        if match is None:
            raise ValueError(
                f'"{written}" is not a WAL position: expected two hexadecimal numbers, such as B6/952E6978'
            )
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        """As Manatee writes it: the low half always with eight digits."""
        return f"{int(self) >> 32:X}/{int(self) & 0xFFFFFFFF:08X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In JSON an LSN is its written form."""
        written = core_schema.no_info_after_validator_function(cls.parse, core_schema.str_schema())
        return core_schema.json_or_python_schema(
            json_schema=written,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), written]),
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )
