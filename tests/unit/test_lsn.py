"""A position in the WAL is a number: it is compared and subtracted as one, and written as PostgreSQL reads it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from manatee.lsn import Lsn

positions = st.integers(min_value=0, max_value=2**64 - 1).map(Lsn)


@given(positions)
def test_what_is_written_is_read_back(lsn: Lsn) -> None:
    assert Lsn.parse(str(lsn)) == lsn
    assert Lsn.parse(str(lsn).lower()) == lsn


@given(positions)
def test_it_is_written_with_a_low_half_of_eight_digits_in_upper_case(lsn: Lsn) -> None:
    assert re.fullmatch(r"[0-9A-F]{1,8}/[0-9A-F]{8}", str(lsn))
    assert f"{lsn:>20}" == str(lsn).rjust(20)


@given(positions, positions)
def test_order_is_that_of_the_numbers(one: Lsn, other: Lsn) -> None:
    assert (one < other) == (int(one) < int(other))
    assert (Lsn.parse(str(one)) < Lsn.parse(str(other))) == (int(one) < int(other))


@given(st.integers(min_value=0, max_value=2**32 - 1), st.integers(min_value=0, max_value=2**32 - 1))
def test_halves_of_fewer_digits_are_the_same_position(high: int, low: int) -> None:
    assert Lsn.parse(f"{high:x}/{low:x}") == Lsn.parse(f"{high:08X}/{low:08X}") == high << 32 | low


def test_positions_are_not_compared_as_text() -> None:
    assert Lsn.parse("9/0") < Lsn.parse("10/0")
    assert Lsn.parse("0/A") < Lsn.parse("0/10")


def test_a_difference_is_in_bytes_across_the_halves() -> None:
    assert Lsn.parse("1/0") - Lsn.parse("0/FFFFFFF0") == 16


@given(st.text(alphabet="0123456789abcdefABCDEFg/ -x_\n٣", max_size=20))
def test_anything_else_is_refused(text: str) -> None:
    if re.fullmatch(r"[0-9a-fA-F]{1,8}/[0-9a-fA-F]{1,8}", text, re.ASCII):
        assert str(Lsn.parse(text))
    else:
        with pytest.raises(ValueError, match="is not a WAL position"):
            Lsn.parse(text)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_out_of_range_is_no_position(number: int) -> None:
    with pytest.raises(ValueError, match="is not a WAL position"):
        Lsn(number)


class Document(BaseModel):
    lsn: Lsn


@given(positions)
def test_in_json_it_is_its_written_form(lsn: Lsn) -> None:
    written = Document(lsn=lsn).model_dump_json()
    assert written == f'{{"lsn":"{lsn}"}}'
    assert Document.model_validate_json(written).lsn == lsn


@pytest.mark.parametrize("value", ["7", '"0/123456789"', '""', "null", '"B6-1"'])
def test_in_json_nothing_else_is_a_position(value: str) -> None:
    with pytest.raises(ValidationError):
        Document.model_validate_json(f'{{"lsn":{value}}}')
