"""The hash of rows as PostgreSQL's ``hash_record_extended`` computes it, for many rows at a time.

A row is hashed by its cells, each of them some bytes or NULL: a cell's hash is ``hash_bytes_extended`` of
src/common/hashfn.c on a little-endian machine, which is Bob Jenkins' lookup3
(https://burtleburtle.net/bob/c/lookup3.c); a row's is made of its cells' as src/backend/utils/adt/rowtypes.c
does it, and mixed once more as ``hashint4extended`` does it with the row's hash for a seed. Without that last
step a sum over rows would not notice two rows that have exchanged their values in a column.

It is there to find what went wrong by accident, not a forger: 64 bits let one accident in 2**64 pass.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# A cell that is longer is hashed by way of its MD5, so that no value is too large for it.
LONGEST = 512
_BLOCK = 12
_TEXTS_AT_ONCE = 8_000
_START = 0x9E3779B9 + 3923095

Array = np.ndarray[Any, Any]


def hash_rows(cells: Iterable[Array], rows: int) -> Array:
    """Makes the hashes of rows of the hashes of their cells.

    Args:
        cells: for each column the hashes of its cells (uint64); 0 for NULL.
        rows: how many there are.
    """
    hashes = np.zeros(rows, np.uint64)
    for column in cells:
        hashes *= np.uint64(31)
        hashes += column
    low, high = (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32), (hashes >> np.uint64(32)).astype(np.uint32)
    start = np.uint32((_START + 4) & 0xFFFFFFFF)
    a, b, c = high + start, low + start, np.full(rows, start, np.uint32)
    _mix(a, b, c)
    unseeded = hashes == 0
    if unseeded.any():
        for word in (a, b, c):
            word[unseeded] = start
    return _finish(a, b, c)


def sum_hashes(hashes: Array) -> int:
    """Adds up hashes, modulo 2**64."""
    return int(hashes.sum(dtype=np.uint64))


def hash_numbers(numbers: Array) -> Array:
    r"""Hashes cells that are whole numbers, of the numbers' own width, the most significant byte first.

    >>> bool(hash_numbers(np.array([1], np.int32)) == hash_texts([b"\0\0\0\1"]))
    True
    """
    width = numbers.dtype.itemsize
    if width < 4:
        words = [numbers.astype(np.uint32)]
    else:
        swapped = np.ascontiguousarray(numbers).byteswap().view(np.uint32).reshape(len(numbers), width // 4)
        words = [np.ascontiguousarray(swapped[:, place]) for place in range(width // 4)]
    start = np.uint32((_START + width) & 0xFFFFFFFF)
    a = words[0] + start
    b = words[1] + start if len(words) > 1 else np.full(len(numbers), start, np.uint32)
    return _finish(a, b, np.full(len(numbers), start, np.uint32))


def hash_texts(texts: Sequence[bytes]) -> Array:
    """Hashes cells of any length."""
    if not texts:
        return np.zeros(0, np.uint64)
    return np.concatenate(
        [_hash_some(texts[start : start + _TEXTS_AT_ONCE]) for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    )


def _hash_some(texts: Sequence[bytes]) -> Array:
    part = [_shorten(text) for text in texts]
    lengths = np.fromiter(map(len, part), np.int64, len(part))
    width = choose_width(int(lengths.max()))
    return hash_padded(b"".join([text.ljust(width, b"\0") for text in part]), lengths, width)


def _shorten(text: bytes) -> bytes:
    return text if len(text) <= LONGEST else hashlib.md5(text, usedforsecurity=False).hexdigest().encode()


def choose_width(longest: int) -> int:
    """Chooses to how many bytes texts are padded: whole blocks, and one for the rest.

    >>> choose_width(0), choose_width(11), choose_width(12)
    (12, 12, 24)
    """
    return (longest // _BLOCK + 1) * _BLOCK


def hash_padded(padded: Any, lengths: Array, width: int) -> Array:
    """Hashes cells that lie one after the other, each padded with zeros.

    Args:
        padded: a buffer of ``len(lengths) * width`` bytes.
        lengths: how long each cell is without its padding, in bytes.
        width: as :func:`choose_width` gives it.
    """
    words = np.frombuffer(padded, "<u4", len(lengths) * width // 4).reshape(len(lengths), width // 4)
    blocks = lengths // _BLOCK
    if not len(blocks) or blocks.min() == blocks.max():
        return _hash_words(np.ascontiguousarray(words.T), blocks, lengths.astype(np.uint32))
    # Longest first: the cells that have another block are then always the first ones.
    order = np.argsort(-blocks, kind="stable")
    columns = np.ascontiguousarray(words[order].T)
    hashes = np.empty(len(lengths), np.uint64)
    hashes[order] = _hash_words(columns, blocks[order], lengths[order].astype(np.uint32))
    return hashes


def _hash_words(columns: Array, blocks: Array, sizes: Array) -> Array:
    start = np.uint32(_START & 0xFFFFFFFF)
    a, b, c = sizes + start, sizes + start, sizes + start
    most = int(blocks[0]) if len(blocks) else 0
    reaching = np.searchsorted(-blocks, np.arange(most) * -1, side="left")
    for block in range(most):
        head = slice(0, int(reaching[block]))
        a[head] += columns[3 * block, head]
        b[head] += columns[3 * block + 1, head]
        c[head] += columns[3 * block + 2, head]
        _mix(a[head], b[head], c[head])
    if len(blocks) and blocks[-1] == most:
        rest = columns[3 * most : 3 * most + 3]
    else:
        rows = np.arange(len(sizes))
        rest = np.stack([columns[3 * blocks + place, rows] for place in range(3)])
    a += rest[0]
    b += rest[1]
    # The lowest byte of c is kept for the length.
    c += rest[2] << np.uint32(8)
    return _finish(a, b, c)


def _rotate(value: Array, bits: int) -> Array:
    high = value << np.uint32(bits)
    high |= value >> np.uint32(32 - bits)
    return high


def _mix(a: Array, b: Array, c: Array) -> None:
    for x, y, z, bits in ((a, c, b, 4), (b, a, c, 6), (c, b, a, 8), (a, c, b, 16), (b, a, c, 19), (c, b, a, 4)):
        x -= y
        x ^= _rotate(y, bits)
        y += z


def _finish(a: Array, b: Array, c: Array) -> Array:
    for x, y, bits in ((c, b, 14), (a, c, 11), (b, a, 25), (c, b, 16), (a, c, 4), (b, a, 14), (c, b, 24)):
        x ^= y
        x -= _rotate(y, bits)
    hashes = b.astype(np.uint64)
    hashes <<= np.uint64(32)
    hashes |= c
    return hashes
