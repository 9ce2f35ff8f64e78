"""Selected images as text for the address: what is written is read again, is short, and what is damaged is refused."""

import string
import zlib
from base64 import urlsafe_b64encode

import numpy as np
import pytest

from htc_probe.dashboards.selections import decode, encode, is_fingerprint
from htc_probe.extract.errors import UserError

PLAIN = set(string.ascii_letters + string.digits + "-_~")


@pytest.mark.parametrize("images", [1, 2, 9, 200, 2_000, 10_000])
@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 0.97, 1.0])
def test_what_is_written_is_read_again_and_short(images: int, share: float) -> None:
    rows = tuple(np.flatnonzero(np.random.default_rng(images).random(images) < share).tolist())
    text = encode(rows)
    assert decode(text, images) == (rows, 0)
    assert len(text) < 2_000 and set(text) <= PLAIN, "an address leaves it as it is"


def test_few_images_are_written_as_a_person_would() -> None:
    assert encode([8, 0, 1, 2, 2]) == "1-3_9" and encode([]) == ""
    assert decode("1-3,9", 50) == decode("1-3_9", 50) == ((0, 1, 2, 8), 0)
    assert decode("5_1-3_2-4", 50).rows == (0, 1, 2, 3, 4)
    assert encode(range(40_000)) == "1-40000"


def test_images_that_the_run_does_not_have_are_counted() -> None:
    assert decode("3-6_99", 4) == ((2, 3), 3)
    assert decode("999999998-999999999", 4) == ((), 2)
    many = np.flatnonzero(np.random.default_rng(0).random(2_000) < 0.5)
    found = decode(encode(many), 500)
    assert found.rows == tuple(many[many < 500].tolist()) and found.beyond == (many >= 500).sum()


def test_what_fits_no_address_has_a_fingerprint_of_its_own() -> None:
    drawn = np.random.default_rng(0).random(40_000)
    texts = {encode(np.flatnonzero(drawn < share)) for share in (0.4, 0.5)}
    assert len(texts) == 2 and all(is_fingerprint(text) and len(text) < 40 for text in texts)
    assert not is_fingerprint(encode(range(5))) and not is_fingerprint(encode(np.flatnonzero(drawn < 0.03)))


@pytest.mark.parametrize("text", ["x", "0", "3-1", "1--2", "1.5", "_", "1_", "~", "~x", "٣", "1" * 10, "-1", "~é"])
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(UserError, match="numbers and ranges"):
        decode(text, 10)


def test_damage_to_bits_is_noticed() -> None:
    text = encode(np.flatnonzero(np.random.default_rng(0).random(2_000) < 0.5))
    for damaged in (text[:-9], text[:50] + ("A" if text[50] != "A" else "B") + text[51:]):
        with pytest.raises(UserError, match="numbers and ranges"):
            decode(damaged, 2_000)


def test_bits_that_would_fill_the_memory_are_refused() -> None:
    bomb = "~" + urlsafe_b64encode(zlib.compress(bytes(2**28), 9)).decode()
    with pytest.raises(UserError, match="numbers and ranges"):
        decode(bomb, 10)
