"""This side's hash is the server's, for every length and any bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.embedded import EmbeddedServer
from migrator.row_hash import LONGEST, PROBE, sum_texts
from tests.conftest import Lab

MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def hasher(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(server, tmp_path_factory.mktemp("hashes"))


def ask_server(lab: Lab, texts: list[str]) -> tuple[int, int]:
    (row,) = lab.fetch(
        'SELECT sum(hashtextextended(t COLLATE "C", 0))::text, sum(hashtextextended(t COLLATE "C", 1))::text'
        " FROM (SELECT CASE WHEN octet_length(t) > 512 THEN md5(t) ELSE t END FROM unnest($1::text[]) AS t) AS q(t)",
        texts,
    )
    return int(row[0]) & MASK, int(row[1]) & MASK


def test_every_length_hashes_as_on_the_server(hasher: Lab) -> None:
    assert LONGEST == 512
    texts = ["x" * length for length in range(LONGEST + 30)] + [PROBE, "ключ" * 100_000]
    for text in texts:
        sums = sum_texts([text.encode()])
        assert (sums[0] & MASK, sums[1] & MASK) == ask_server(hasher, [text]), len(text)
    sums = sum_texts([text.encode() for text in texts])
    assert (sums[0] & MASK, sums[1] & MASK) == ask_server(hasher, texts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=80), min_size=1, max_size=40))
def test_any_texts_hash_as_on_the_server(hasher: Lab, texts: list[str]) -> None:
    sums = sum_texts([text.encode() for text in texts])
    assert (sums[0] & MASK, sums[1] & MASK) == ask_server(hasher, texts)
