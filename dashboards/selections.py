"""Selected images as text for the address, and back. Knows row numbers; not runs, and nothing of Streamlit.

    encode([0, 1, 2, 8])        # "1-3_9", counted from 1 as on the pages
    decode("1-3_9", images=50)  # rows (0, 1, 2, 8)

A few images are written as numbers and ranges. Many that lie scattered are written as one bit an image, compressed, in
base64: any selection from 11,000 images fits the 2,000 characters that chats and proxies let pass. What does not fit is
given back as a fingerprint, for which the caller keeps the rows.
"""

import base64
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from htc_probe.extract.errors import UserError

_MOST = 1900
"""Characters of an address for the selection, so that 2,000 hold the rest too."""
_READABLE = 300
"""Up to so many, numbers are written although bits would be shorter."""
_MOST_BYTES = 2**20
"""Of bits: more images than a run that is shown can have."""
_BITS, _KEPT = "~", "~~"


class Decoded(NamedTuple):
    """What an address says of a run."""

    rows: tuple[int, ...]
    """Ascending, from 0."""
    beyond: int
    """Selected images that the run does not have."""


def encode(rows: Iterable[int]) -> str:
    """Text of letters, digits, `-`, `_` and `~`, which addresses leave as they are; "" for none."""
    rows_n = np.unique(np.fromiter(rows, np.int64))
    if not len(rows_n):
        return ""
    numbers = "_".join(_ranges(rows_n))
    if len(numbers) <= _READABLE:
        return numbers
    flags = np.zeros(int(rows_n[-1]) + 1, bool)
    flags[rows_n] = True
    packed = np.packbits(flags).tobytes()
    bits = _BITS + base64.urlsafe_b64encode(zlib.compress(packed, 9)).decode().rstrip("=")
    shortest = min(numbers, bits, key=len)
    return shortest if len(shortest) <= _MOST else _KEPT + hashlib.sha256(packed).hexdigest()[:32]


def is_fingerprint(text: str) -> bool:
    """Whether `encode` gave it for a selection that does not fit."""
    return text.startswith(_KEPT)


def decode(text: str, images: int) -> Decoded:
    """The rows of a run of so many images. Raises UserError for what `encode` does not write."""
    wrong = UserError(
        f"the address holds a selection that cannot be read, {text[:40]!r}; expected numbers and ranges of images from "
        "1, such as 1-3_9"
    )
    if text.startswith(_BITS):
        rows_n = _of_bits(text.removeprefix(_BITS), wrong)
        here_n = rows_n[rows_n < images]
        return Decoded(tuple(here_n.tolist()), len(rows_n) - len(here_n))
    step_N = np.zeros(images + 1, np.int64)  # +1 where a range begins, -1 after its end
    beyond = 0
    for part in re.split("[_,]", text) if text else ():
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if found is None:
            raise wrong
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last:
            raise wrong
        beyond += max(0, last - max(images, first - 1))
        if first <= images:
            step_N[first - 1] += 1
            step_N[min(last, images)] -= 1
    return Decoded(tuple(np.flatnonzero(step_N.cumsum()[:images]).tolist()), beyond)


def _of_bits(text: str, wrong: UserError) -> np.ndarray:
    """Rows, ascending."""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        unpacking = zlib.decompressobj()
        flags = unpacking.decompress(packed, _MOST_BYTES)  # however many they claim to be
    except (ValueError, zlib.error) as error:
        raise wrong from error
    if not unpacking.eof:
        raise wrong
    return np.flatnonzero(np.unpackbits(np.frombuffer(flags, np.uint8)))


def _ranges(rows_n: np.ndarray) -> Iterator[str]:
    for run in np.split(rows_n + 1, np.flatnonzero(np.diff(rows_n) != 1) + 1):
        yield f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}"
