"""The hash of rows' canonical texts, as PostgreSQL's ``hashtextextended`` computes it, for many texts at a time.

It is ``hash_bytes_extended`` of src/common/hashfn.c on a little-endian machine: Bob Jenkins' lookup3
(https://burtleburtle.net/bob/c/lookup3.c) with a seed. Two seeds give 128 bits a row. It is there to find
what went wrong by accident, not a forger; for that it is as good as MD5 and takes a fraction of the time.
A text longer than ``LONGEST`` bytes is hashed by way of its MD5, so that no value is too large for it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

LONGEST = 512
SEEDS = (0, 1)
# What a server must answer to SELECT hashtextextended(PROBE, 1) to be understood.
PROBE = "26 bytes: ключ и замок ✓"
_BLOCK = 12
_ROWS = 8_000

Words = np.ndarray[Any, np.dtype[np.uint32]]


def sum_texts(texts: Sequence[bytes]) -> tuple[int, int]:
    """Adds up the hashes of some texts, modulo 2**64, for each of the two seeds.

    >>> sum_texts([]), sum_texts([b"a", b"b"]) == sum_texts([b"b", b"a"])
    ((0, 0), True)
    """
    first = second = 0
    for start in range(0, len(texts), _ROWS):
        part = [_shorten(text) for text in texts[start : start + _ROWS]]
        lengths = np.fromiter(map(len, part), np.int64, len(part))
        width = choose_width(int(lengths.max()))
        padded = b"".join([text.ljust(width, b"\0") for text in part])
        sums = sum_padded(padded, lengths, width)
        first, second = first + sums[0], second + sums[1]
    return first, second


def _shorten(text: bytes) -> bytes:
    return text if len(text) <= LONGEST else hashlib.md5(text, usedforsecurity=False).hexdigest().encode()


def choose_width(longest: int) -> int:
    """Chooses to how many bytes texts are padded: whole blocks, and one for the rest.

    >>> choose_width(0), choose_width(11), choose_width(12)
    (12, 12, 24)
    """
    return (longest // _BLOCK + 1) * _BLOCK


def sum_padded(padded: Any, lengths: Any, width: int) -> tuple[int, int]:
    """Adds up the hashes of texts that lie one after the other, each padded with zeros.

    Args:
        padded: a buffer of ``len(lengths) * width`` bytes.
        lengths: how long each text is without its padding, in bytes.
        width: as :func:`choose_width` gives it.
    """
    words = np.frombuffer(padded, "<u4", len(lengths) * width // 4).reshape(len(lengths), width // 4)
    blocks = lengths // _BLOCK
    # Longest first: the rows that have another block are then always the first ones.
    order = np.argsort(-blocks, kind="stable")
    columns = np.ascontiguousarray(words[order].T)
    blocks, sizes = blocks[order], lengths[order].astype(np.uint32)
    first, second = (_sum_hashes(columns, blocks, sizes, seed) for seed in SEEDS)
    return first, second


def _sum_hashes(columns: Words, blocks: Any, sizes: Words, seed: int) -> int:
    start = np.uint32(0x9E3779B9 + 3923095)
    a, b, c = sizes + start, sizes + start, sizes + start
    if seed:
        a += np.uint32(seed >> 32)
        b += np.uint32(seed & 0xFFFFFFFF)
        _mix(a, b, c)
    most = int(blocks[0]) if len(blocks) else 0
    reaching = np.searchsorted(-blocks, np.arange(most) * -1, side="left")
    for block in range(most):
        active = int(reaching[block])
        head = slice(0, active)
        a[head] += columns[3 * block, head]
        b[head] += columns[3 * block + 1, head]
        c[head] += columns[3 * block + 2, head]
        _mix(a[head], b[head], c[head])
    rows = np.arange(len(sizes))
    a += columns[3 * blocks, rows]
    b += columns[3 * blocks + 1, rows]
    # The lowest byte of c is kept for the length.
    c += columns[3 * blocks + 2, rows] << np.uint32(8)
    _finish(a, b, c)
    hashes = (b.astype(np.uint64) << np.uint64(32)) | c
    return int(hashes.sum(dtype=np.uint64))


def _rotate(value: Words, bits: int) -> Words:
    return (value << np.uint32(bits)) | (value >> np.uint32(32 - bits))


def _mix(a: Words, b: Words, c: Words) -> None:
    for x, y, z, bits in ((a, c, b, 4), (b, a, c, 6), (c, b, a, 8), (a, c, b, 16), (b, a, c, 19), (c, b, a, 4)):
        x -= y
        x ^= _rotate(y, bits)
        y += z


def _finish(a: Words, b: Words, c: Words) -> None:
    for x, y, bits in ((c, b, 14), (a, c, 11), (b, a, 25), (c, b, 16), (a, c, 4), (b, a, 14), (c, b, 24)):
        x ^= y
        x -= _rotate(y, bits)
