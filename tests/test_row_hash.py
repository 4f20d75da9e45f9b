"""This side's hashes are the server's: for cells of every length, values of every type, and whole rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.embedded import EmbeddedServer
from migrator.cells import IrregularError, hash_canonical, read_clock, read_days, read_moments
from migrator.datatypes import Kind
from migrator.row_hash import LONGEST, hash_rows, hash_texts
from tests.conftest import Lab

MASK = (1 << 64) - 1
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=80)


@pytest.fixture(scope="module")
def hasher(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(server, tmp_path_factory.mktemp("hashes"))


def ask_server(lab: Lab, query: str, *values: Any) -> list[int]:
    return [row[0] & MASK for row in lab.fetch(query, *values)]


def test_cells_of_every_length_hash_as_on_the_server(hasher: Lab) -> None:
    texts = ["x" * length for length in range(LONGEST + 30)] + ["ключ" * 100_000]
    query = (
        "SELECT hashtextextended(CASE WHEN octet_length(t) > 512 THEN md5(t) ELSE t END, 0)"
        " FROM unnest($1::text[]) WITH ORDINALITY AS q(t, n) ORDER BY n"
    )
    wanted = ask_server(hasher, query, texts)
    assert hash_texts([text.encode() for text in texts]).tolist() == wanted
    assert [hash_texts([text.encode()]).tolist() for text in texts] == [[one] for one in wanted]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.none() | TEXTS, st.none() | TEXTS), min_size=1, max_size=40))
def test_rows_hash_as_on_the_server(hasher: Lab, rows: list[tuple[str | None, str | None]]) -> None:
    query = (
        "SELECT hashint4extended(0, hash_record_extended(ROW(a, b), 0))"
        " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS q(a, b, n) ORDER BY n"
    )
    first, second = zip(*rows, strict=True)
    cells = [
        hash_canonical(Kind.TEXT, [None if t is None else f"{len(t.encode())}:{t}" for t in column])
        for column in (first, second)
    ]
    assert hash_rows(cells, len(rows)).tolist() == ask_server(hasher, query, list(first), list(second))


@pytest.mark.parametrize(
    ("kind", "cell", "values"),
    [
        (Kind.BIGINT, "int8send(v::int8)", ["0", "-1", "4294967295", "9223372036854775807", "-9223372036854775808"]),
        (Kind.DOUBLE, "float8send(v::float8)", ["0", "-0", "0.1", "1e308", "Infinity", "5e-324"]),
        (Kind.BOOLEAN, "boolsend(v::bool)", ["true", "false"]),
        (Kind.DATE, "date_send(v::date)", ["2000-01-01", "0001-01-01", "9999-12-31", "2024-02-29", "1999-12-31"]),
        (Kind.TIME, "time_send(v::time)", ["00:00:00", "23:59:59.999999", "09:30:00.5", "24:00:00"]),
        (
            Kind.TIMESTAMPTZ,
            "timestamptz_send(v::timestamptz)",
            ["2000-01-01 00:00:00+00", "1969-12-31 23:59:59.000001+00", "9999-12-31 23:59:59.9+00"],
        ),
        (Kind.TIMESTAMP, "timestamp_send(v::timestamp)", ["1900-03-01 00:00:00", "12024-02-29 12:00:00.123"]),
        (Kind.UUID, "uuid_send(v::uuid)", ["00112233-4455-6677-8899-aabbccddeeff"]),
        (Kind.NUMERIC, "trim_scale(v::numeric)::text", ["12345678901234567890.5", "-1"]),
        (Kind.BYTEA, r"('\x' || v)::bytea", ["", "00ff", "ab" * 100]),
    ],
)
def test_cells_of_every_type_hash_as_on_the_server(hasher: Lab, kind: Kind, cell: str, values: list[str]) -> None:
    query = (
        f"SELECT hashint4extended(0, hash_record_extended(ROW({cell}), 0))"
        " FROM unnest($1::text[]) WITH ORDINALITY AS q(v, n) ORDER BY n"
    )
    canonical = (
        ["8000000000000000" if v == "-0" else _write_double(v) for v in values] if kind is Kind.DOUBLE else values
    )
    wanted = ask_server(hasher, query, values)
    assert hash_rows([hash_canonical(kind, canonical)], len(values)).tolist() == wanted
    for text, one in zip(canonical, wanted, strict=True):
        assert hash_rows([hash_canonical(kind, [text])], 1).tolist() == [one]


def _write_double(text: str) -> str:
    return np.array([float(text)]).astype(">f8").tobytes().hex()


def test_values_that_fit_no_type_are_told_apart() -> None:
    for kind in Kind:
        unfit, other, null = hash_canonical(kind, ["?'x'", "?'y'", None]).tolist()
        assert unfit != other and 0 not in (unfit, other) and null == 0, kind


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_days, "2024-02-30"), (read_days, "2023-02-29"), (read_days, "2024-13-01"), (read_days, "2024-00-01"),
        (read_days, "0000-01-01"), (read_days, "2024-01-00"), (read_days, "2024/01/01"), (read_days, "202a-01-01"),
        (read_clock, "24:00"), (read_clock, "12:60"), (read_clock, "12:00:60"), (read_clock, "12.00"),
        (read_clock, "12:00:00,5"), (read_clock, "1 :00"), (read_moments, "2024-01-01_10:00:00"),
        (read_moments, "2024-01-01 10:00:00Z"), (read_moments, "2024-01-01 10-00-00"),
    ],
)  # fmt: skip
def test_irregular_texts_are_refused(read: Any, text: str) -> None:
    with pytest.raises(IrregularError):
        read(np.frombuffer(text.encode(), np.uint8).reshape(-1, 1))
