"""Mutated inputs: damaged bytes, and JSON with values of other types than expected.

In: the bytes of a valid file and a random generator. Out: other bytes. The same generator gives the same bytes.
"""

import json
import random
from typing import Any

ODD_BYTES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n" * 50, b'"', b"'", b"{" * 60, b"[" * 2000, b"<", b"&x;",
    b"\\ud800", b"-1", b"9" * 400, b"1e999", b"NaN", b",,,,", b"\xd5\xe3", b"../" * 3, b"%s", b"[/b]",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", " ", "\x00", "\ud800", "a" * 5000, "../x",
    "/dev/zero", [], [[]], {}, {"a": {}}, ["x"] * 300, {"": None}, "否" * 50, "[/b]", "\u202e", "x\ny",
)  # fmt: skip


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four changes of a few bytes or of a stretch."""
    for _ in range(draw.randint(1, 4)):
        position, length = draw.randrange(len(data) + 1), draw.choice((1, 2, 4, 16, 200))
        change = draw.randrange(7)
        if change == 0 and data:
            flipped = bytearray(data)
            flipped[position % len(data)] ^= 1 << draw.randrange(8)
            data = bytes(flipped)
        elif change == 1:
            data = data[:position]
        elif change == 2:
            data = data[:position] + data[position + length :]
        elif change == 3:
            data = data[:position] + data[position : position + length] * draw.choice((2, 3, 50)) + data[position:]
        elif change == 4:
            data = data[:position] + draw.randbytes(length) + data[position + length :]
        else:
            data = data[:position] + draw.choice(ODD_BYTES) + data[position + draw.choice((0, length)) :]
    return data


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """A JSON document, or JSON lines, with some values and keys replaced; a third of the time damaged bytes."""
    if draw.random() < 0.33:
        return mutate_bytes(data, draw)
    try:
        return json.dumps(mutate_value(json.loads(data), draw), ensure_ascii=draw.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except ValueError:
        lines = data.splitlines()
        number = draw.randrange(len(lines))
        try:
            lines[number] = json.dumps(mutate_value(json.loads(lines[number]), draw)).encode()
        except ValueError:
            lines[number] = mutate_bytes(lines[number], draw)
        return b"\n".join(lines) + b"\n"


def mutate_value(value: Any, draw: random.Random) -> Any:
    """The value with one part of it, at any depth, replaced, removed or repeated."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        change = draw.randrange(8)
        if change == 0:
            return {name: item for name, item in value.items() if name != key}
        if change == 1:
            return value | {draw.choice(("", "x" * 400, "image", "\ud800", key.upper())): draw.choice(ODD_VALUES)}
        return value | {key: mutate_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        number = draw.randrange(len(value))
        change = draw.randrange(8)
        if change == 0:
            return value[:number] + value[number + 1 :]
        if change == 1:
            return [*value, *value[:1] * draw.choice((1, 40))]
        return [*value[:number], mutate_value(value[number], draw), *value[number + 1 :]]
    return draw.choice(ODD_VALUES)
