"""GeoJSON features written straight as bytes by compiled loops, many times as fast as Python's formatting.

Not orjson: a nucleus with its outline takes it 22 microseconds on one thread and these loops 17, measured side by side;
and the loops release the interpreter's lock, so that several threads write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

POINT = ('{"type":"Point","coordinates":', "}")
POLYGON = ('{"type":"Polygon","coordinates":[[', "]]}")
NUMBER_CHARACTERS = 24
"""The most that a number takes, its sign, comma and brackets included."""
LARGEST = 1e11
"""Measurements are whole numbers of ten-thousandths: larger ones are left out, as what is not finite is."""
ZERO, COMMA, POINT_SIGN, MINUS, OPEN, CLOSE = (ord(sign) for sign in "0,.-[]")


@dataclass(frozen=True)
class CategoricalText:
    """A text for each of N features, out of a few.

    Attributes:
        choices: the texts, ASCII.
        which: (N,) int, number of each feature's text in ``choices``; -1 is the last one.
    """

    choices: Sequence[str]
    which: npt.NDArray[np.integer]


def features_text(
    ids: npt.NDArray[np.object_],
    offsets: Ints,
    hundredths: Ints,
    points: bool,
    classification: CategoricalText,
    measurements: dict[str, npt.NDArray[np.floating]],
    metadata: Sequence[CategoricalText],
) -> memoryview:
    """Return N features with a comma and a line's end between them.

    Args:
        ids: (N,) UUIDs as strings.
        offsets, hundredths: (N+1,) and (M, 2), the closed ring of each feature, or its one point, in hundredths of a
            pixel.
        points: the geometries are points.
        classification: the member ``"classification":...,``, or nothing.
        measurements: (N,) by name; written with up to four decimals.
        metadata: members ``"name":"text"``; empty ones are left out.
    """
    geometry = POINT if points else POLYGON
    fixed = [
        '{"type":"Feature","id":"',
        f'","geometry":{geometry[0]}',
        f'{geometry[1]},"properties":{{"objectType":"detection",',
        '"measurements":{',
        '},"metadata":{',
        "}}}",
        ",\n",
    ]
    keys = [f"{json.dumps(name)}:" for name in measurements]
    texts = [classification, *metadata]
    first = len(fixed) + len(keys)
    pieces, which = [*fixed, *keys], []
    for text in texts:
        which.append(len(pieces) + np.where(text.which < 0, text.which + len(text.choices), text.which))
        pieces += text.choices
    encoded = [piece.encode("ascii") for piece in pieces]
    lengths = np.array([len(piece) for piece in encoded], np.int64)
    longest = sum(max(map(len, text.choices)) + 1 for text in texts)
    identities = np.frombuffer("".join(ids.tolist()).encode("ascii"), np.uint8).reshape(len(ids), -1)
    most = (
        len(ids) * (lengths[:first].sum() + longest + identities.shape[1] + len(keys) * NUMBER_CHARACTERS)
        + hundredths.size * NUMBER_CHARACTERS
    )
    out = np.empty(most, np.uint8)
    end = _write(
        out,
        np.frombuffer(b"".join(encoded), np.uint8),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        len(fixed),
        identities,
        offsets,
        hundredths,
        np.stack([values.astype(np.float64) for values in measurements.values()], 1),
        np.stack(which, 1).astype(np.int64),
    )
    return out[:end].data


@jit
def _write(
    out: Bytes,
    pieces: Bytes,
    starts: Ints,
    first_key: int,
    ids: Bytes,
    offsets: Ints,
    hundredths: Ints,
    numbers: Floats,
    which: Ints,
) -> int:
    """Write the features to ``out``; where they end.

    Args:
        out: long enough.
        pieces, starts: texts, one behind the other: the seven fixed ones, the keys of the numbers, others.
        first_key: number of the first key.
        ids: (N, 36).
        offsets, hundredths: the coordinates.
        numbers: (N, K), the measurements.
        which: (N, 1 + T), numbers of the pieces that are the classification and the members of the metadata.
    """
    end = 0
    for i in range(len(ids)):
        if i:
            end = _copy(out, end, pieces, starts, 6)
        end = _copy(out, end, pieces, starts, 0)
        for k in range(ids.shape[1]):
            out[end + k] = ids[i, k]
        end = _copy(out, end + ids.shape[1], pieces, starts, 1)
        for point in range(offsets[i], offsets[i + 1]):
            if point > offsets[i]:
                out[end] = COMMA
                end += 1
            out[end] = OPEN
            end = _decimal(out, end + 1, hundredths[point, 0], hundredths[point, 0] < 0, 2, 0)
            out[end] = COMMA
            end = _decimal(out, end + 1, hundredths[point, 1], hundredths[point, 1] < 0, 2, 0)
            out[end] = CLOSE
            end += 1
        end = _copy(out, end, pieces, starts, 2)
        end = _copy(out, end, pieces, starts, which[i, 0])
        end = _copy(out, end, pieces, starts, 3)
        begun = end
        for k in range(numbers.shape[1]):
            if abs(numbers[i, k]) < LARGEST:  # nor is NaN
                if end > begun:
                    out[end] = COMMA
                    end += 1
                end = _copy(out, end, pieces, starts, first_key + k)
                ticks = np.rint(numbers[i, k] * 10000)
                end = _decimal(out, end, int(ticks), np.signbit(ticks), 4, 1)
        end = _copy(out, end, pieces, starts, 4)
        begun = end
        for k in range(1, which.shape[1]):
            piece = which[i, k]
            if starts[piece + 1] > starts[piece]:
                if end > begun:
                    out[end] = COMMA
                    end += 1
                end = _copy(out, end, pieces, starts, piece)
        end = _copy(out, end, pieces, starts, 5)
    return end


@jit
def _copy(out: Bytes, end: int, pieces: Bytes, starts: Ints, piece: int) -> int:
    """Append a piece; the new end."""
    for k in range(starts[piece], starts[piece + 1]):
        out[end] = pieces[k]
        end += 1
    return end


@jit
def _decimal(out: Bytes, end: int, value: int, negative: bool, places: int, least: int) -> int:
    """Append ``value / 10**places`` with at least ``least`` decimals and no further zeros behind; the new end."""
    value = abs(value)
    while places > least and value % 10 == 0:
        value //= 10
        places -= 1
    digits = 1
    power = 10
    while value >= power:
        digits += 1
        power *= 10
    digits = max(digits, places + 1)  # 0.05: a zero before the point, and behind it
    if negative:
        out[end] = MINUS
        end += 1
    length = digits + (1 if places else 0)
    for k in range(end + length - 1, end - 1, -1):
        if places and k == end + digits - places:
            out[k] = POINT_SIGN
        else:
            out[k] = ZERO + value % 10
            value //= 10
    return end + length
