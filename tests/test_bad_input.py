"""Files as people have them, through the real command: read right, or told with their path and left out.

What a table of labels can get wrong is in test_imagefolder.py; values that a run cannot hold are in test_store.py.
"""

import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from htc_probe.extract import images, models
from htc_probe.extract.cli import main
from htc_probe.extract.data.files import printable, read_image
from htc_probe.extract.data.imagefolder import ImageFolder
from htc_probe.extract.data.source import ImageError
from htc_probe.extract.errors import UserError
from htc_probe.extract.images import Fit, prepare, thumbnail
from htc_probe.extract.store import Run, open_run
from htc_probe.extract.vlm.config import CLIP_MEAN

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
MEAN = tuple(int(255 * channel) for channel in CLIP_MEAN)

Colour = tuple[int, ...]


def saved(image: Image.Image, format: str, **settings: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def plain(format: str, mode: str = "RGB", colour: Any = RED, size: tuple[int, int] = (40, 40), **more: Any) -> bytes:
    return saved(Image.new(mode, size, colour), format, **more)


def noise(format: str) -> bytes:
    return saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), format)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def tiff(bits: int, photometric: int, row: bytes, order: str = "<") -> bytes:
    """A grey image of 8 x 8, every row the same."""
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 8, 279: 8 * len(row)}
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    head = start + entries + struct.pack(order + "I", 0)
    return head.ljust(122, b"\0") + 8 * row


def transparent_palette(format: str) -> bytes:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([*RED, *BLUE])
    return saved(image, format, transparency=1)


def turned(format: str) -> bytes:
    """Red on the left and blue on the right, by a camera that was turned by 90 degrees: red is above."""
    image = Image.new("RGB", (40, 40), RED)
    image.paste(BLUE, (20, 0, 40, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    return saved(image, format, exif=exif, quality=95, subsampling=0)


def animated(format: str) -> bytes:
    return plain(format, save_all=True, append_images=[Image.new("RGB", (40, 40), BLUE)])


# Name: content, and the colour of the thumbnail above and below its middle (one colour: the same in both).
GOOD: dict[str, tuple[bytes, Colour | tuple[Colour, Colour]]] = {
    "a jpeg called.png": (plain("JPEG"), RED),
    "a png called.jpg": (plain("PNG"), RED),
    "cmyk.jpg": (plain("JPEG", "CMYK", (0, 255, 255, 0)), RED),
    "cmyk.tif": (plain("TIFF", "CMYK", (0, 255, 255, 0)), RED),
    "grey 16.png": (png(8, 8, 16, 0, 8 * (b"\0" + 8 * b"\x80\x10")), GREY),
    "colour 16.png": (png(8, 8, 16, 2, 8 * (b"\0" + 8 * b"\xff\xff\0\0\0\0")), RED),
    "grey 16.tif": (tiff(16, 1, 8 * b"\x10\x80"), GREY),
    "grey 16 big-endian.tif": (tiff(16, 1, 8 * b"\x80\x10", ">"), GREY),
    "grey 16, white is 0.tif": (tiff(16, 0, 8 * b"\x10\x3f"), (192, 192, 192)),
    "grey 8, white is 0.tif": (tiff(8, 0, 8 * b"\x3f"), (192, 192, 192)),
    "grey 12.tif": (tiff(12, 1, 4 * b"\x80\x18\x01"), GREY),
    "bits.png": (plain("PNG", "1", 1), (255, 255, 255)),
    "palette.gif": (plain("GIF", "P", 0), (0, 0, 0)),
    "transparent palette.png": (transparent_palette("PNG"), BLUE),
    "transparent palette.gif": (transparent_palette("GIF"), BLUE),
    "transparent.png": (plain("PNG", "RGBA", (*GREEN, 0)), GREEN),
    "half transparent.webp": (plain("WEBP", "RGBA", (*GREEN, 128), lossless=True), GREEN),
    "grey with alpha.png": (plain("PNG", "LA", (128, 0)), GREY),
    "animated.gif": (animated("GIF"), RED),
    "animated.png": (animated("PNG"), RED),
    "animated.webp": (animated("WEBP"), RED),
    "turned.jpg": (turned("JPEG"), (RED, BLUE)),
    "turned.png": (turned("PNG"), (RED, BLUE)),
    "turned.tif": (turned("TIFF"), (RED, BLUE)),
    "turned.webp": (turned("WEBP"), (RED, BLUE)),
    "broken exif.jpg": (plain("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), RED),
    "one pixel.png": (plain("PNG", size=(1, 1)), RED),
    "line.png": (plain("PNG", size=(5000, 1)), MEAN),
    "column.png": (plain("PNG", size=(1, 5000)), MEAN),
    "two\nlines.png": (plain("PNG"), RED),
    os.fsdecode(b"caf\xe9.png"): (plain("PNG"), RED),
    "写真.png": (plain("PNG"), RED),
}


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


# Name: how it is made, and what is said of it.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (write(b""), "the file is empty"),
    "cut.jpg": (write(noise("JPEG")[:1000]), "damaged or unreadable (image file is truncated"),
    "cut.png": (write(noise("PNG")[:1000]), "damaged or unreadable"),
    "cut.gif": (write(noise("GIF")[:1000]), "damaged or unreadable"),
    "cut.tif": (write(noise("TIFF")[:1000]), "damaged or unreadable"),
    "cut.webp": (write(noise("WEBP")[:400]), "damaged or unreadable"),
    "header.jpg": (write(noise("JPEG")[:20]), "not an image"),
    "flipped.png": (write(plain("PNG").replace(b"IDAT", b"IDAT\xff", 1)), "damaged or unreadable"),
    "text.png": (write(b"hello"), "not an image of a format that is read (BMP, GIF, JPEG, PNG, TIFF, WEBP)"),
    "program.png": (write(plain("EPS")), "not an image of a format that is read"),
    "float.tif": (write(plain("TIFF", "F", 0.5)), "mode F, in which no value is white"),
    "integers.tif": (write(plain("TIFF", "I", 70000)), "mode I, in which no value is white"),
    # The two have no pixels in the file at all: any attempt to decode them would be told as damage.
    "bomb.png": (write(png(60_000, 60_000, 8, 2, b"")), "more than 178,956,970 pixels"),
    "long.png": (write(png(70_000, 1, 8, 2, b"")), "70000 x 1 pixels; expected at most 65535 a side"),
    "folder.png": (Path.mkdir, "a folder, not a file"),
    "missing.png": (lambda path: None, "there is no such file"),
    "link.png": (lambda path: path.symlink_to("nowhere.png"), "a link to a file that is not there"),
    "circle.png": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "endless.png": (lambda path: path.symlink_to("/dev/zero"), "a device, pipe or socket, not a file"),
    "pipe.png": (os.mkfifo, "a device, pipe or socket, not a file"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    (root / "val").mkdir()
    for name, (content, _) in GOOD.items():
        (root / "val" / name).write_bytes(content)
    for name, (make, _) in BAD.items():
        make(root / "val" / name)
    # The others have no row. These two would not be found in the folder.
    (root / "val" / "metadata.csv").write_text("file_name\nfolder.png\nmissing.png\n")
    return root


def extraction(root: Path, out: Path, *more: str) -> int:
    return main(["--data", str(root), "--out", str(out), "--device", "cpu", "--layers", "-1", *more])


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    out = tmp_path_factory.mktemp("run") / "run.h5"
    assert extraction(photos, out, "--on-error", "skip") == 0
    with open_run(out) as found:
        yield found


@pytest.mark.parametrize("name", GOOD, ids=printable)
def test_what_can_be_read_is_read_right(run: Run, photos: Path, name: str) -> None:
    at = run.ids().index(printable(name))
    assert run.paths()[at] == f"{photos}/val/{printable(name)}" and run.groups()[at] == printable(name)
    wanted = GOOD[name][1]
    above_below = wanted if isinstance(wanted[0], tuple) else (wanted, wanted)
    for row, colour in zip((30, 66), above_below, strict=True):
        np.testing.assert_allclose(run.thumbnail(at)[row, 48].astype(int), colour, atol=3)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_recorded_with_its_reason(run: Run, photos: Path, name: str) -> None:
    (reason,) = [why for path, why in run.skipped if path == f"{photos}/val/{name}"]
    assert BAD[name][1] in reason and "\n" not in reason


def test_nothing_else_is_in_the_run(run: Run) -> None:
    assert (len(run), len(run.skipped)) == (len(GOOD), len(BAD))


@pytest.mark.parametrize("name", BAD)
def test_or_it_stops_the_command_with_one_line(tmp_path: Path, capsys: Any, name: str) -> None:
    at = tmp_path / "photos" / "val" / name
    at.parent.mkdir(parents=True)
    BAD[name][0](at)
    (at.parent / "metadata.csv").write_text(f"file_name\n{name}\n")
    assert extraction(tmp_path / "photos", tmp_path / "run.h5") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"htc-extract: {at}: ") and BAD[name][1] in said and "--on-error skip" in said
    assert said.count("\n") == 1 and not list(tmp_path.glob("run.*"))


def test_a_large_photograph_is_no_bomb(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns from 89 million pixels on, which a camera of today exceeds."""
    path = tmp_path / "large.png"
    Image.new("1", (12_000, 8_000), 1).save(path)
    image = read_image(str(path))
    assert image.size == (12_000, 8_000) and image.getpixel((6000, 4000)) == (255, 255, 255) and not recwarn.list


@contextmanager
def without_rights() -> Iterator[None]:
    """As somebody whom permissions bind: they do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    closed = tmp_path / "photos" / "val" / "closed"
    closed.mkdir(parents=True)
    (closed / "a.png").write_bytes(plain("PNG"))
    source = ImageFolder(tmp_path / "photos", "val")
    closed.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o777 == 0o700:  # pytest keeps them to itself
            folder.chmod(0o755)
    try:
        with without_rights():
            with pytest.raises(ImageError, match="Permission denied") as error:
                source[0]
            with pytest.raises(UserError, match="closed cannot be read .Permission denied."):
                ImageFolder(tmp_path / "photos", "val")
    finally:
        closed.chmod(0o755)
    assert error.value.path == str(closed / "a.png")
    (tmp_path / "photos").chmod(0)
    try:
        with without_rights(), pytest.raises(UserError, match="photos cannot be read .Permission denied."):
            ImageFolder(tmp_path / "photos", "val")
    finally:
        (tmp_path / "photos").chmod(0o755)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("metadata.jsonl", '{"file_name": ' + "[" * 100_000, "line 1 is no JSON"),
        ("metadata.jsonl", '{"file_name": "a.png", "size": ' + "9" * 5000 + "}", "line 1 is no JSON"),
        ("metadata.jsonl", '{"file_name": "a.png", "size": 1' + "0" * 400 + "}", "no finite number"),
        ("../tasks.toml", "a = " + "[" * 100_000, "tasks.toml cannot be read"),
        ("../tasks.toml", "a = " + "9" * 5000, "tasks.toml cannot be read"),
    ],
)
def test_tables_that_python_s_readers_choke_on(tmp_path: Path, file: str, content: str, words: str) -> None:
    val = tmp_path / "val"
    val.mkdir()
    (val / "a.png").write_bytes(plain("PNG"))
    (tmp_path / "tasks.toml").write_text('[size]\nsuite="detail"\nkind="number"')
    (val / "metadata.csv").write_text("file_name,size\na.png,1\n")
    if file == "metadata.jsonl":
        (val / "metadata.csv").unlink()
    (val / file).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        ImageFolder(tmp_path, "val")
    assert "\n" not in str(error.value)


def test_names_that_hdf5_cannot_hold_are_spelled_out(tmp_path: Path) -> None:
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "photos" / "val" / "a.png").write_bytes(plain("PNG"))
    (tmp_path / "photos" / "val" / "metadata.jsonl").write_text(
        r'{"file_name": "a.png", "id": "x\ud800\u0000", "group": "y\n"}' "\n"
    )
    assert extraction(tmp_path / "photos", tmp_path / "run.h5") == 0
    with open_run(tmp_path / "run.h5") as found:
        assert (found.ids(), found.groups()) == ([r"x\ud800\x00"], ["y"])


@pytest.mark.parametrize("size", [(60, 41), (41, 60), (1, 300), (300, 1), (16, 9), (5, 3)])
@pytest.mark.parametrize("strip", [images.STRIP, 700])
def test_padding_in_strips_gives_the_pixels_of_the_whole_square(
    size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "STRIP", strip)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8))
    square = Image.new("RGB", (max(size),) * 2, MEAN)
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    np.testing.assert_array_equal(thumbnail(image, 16), square.resize((16, 16), Image.Resampling.BICUBIC))


def test_the_longest_line_takes_no_square_of_its_side() -> None:
    """Which would be 13 GB."""
    for fit in get_args(Fit):
        for size in ((65_535, 1), (1, 65_535)):
            assert prepare(Image.new("RGB", size), 16, fit=fit).shape == (3, 16, 16)


# ---- what the model makes of an image

NAN = ("scenes-val-000000", "NaN", "check the checkpoint")


@pytest.mark.parametrize(
    ("weight", "factor", "words"),
    [
        ("language_model.model.norm.weight", 1e7, ["latents/z_voco", "float16", "--store-dtype float32"]),
        ("language_model.model.norm.weight", float("nan"), ["z_voco of image", *NAN]),
        ("patch_projector.2.bias", float("nan"), ["patches of image", *NAN]),
    ],
)
def test_numbers_that_no_run_can_hold_stop_the_command(
    tmp_path: Path, capsys: Any, weight: str, factor: float, words: list[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models.find("htc-tiny"), model)
    weights = load_file(model / "model.safetensors")
    save_file(weights | {weight: weights[weight] * factor}, model / "model.safetensors", {"format": "pt"})
    assert extraction(Path("scenes"), tmp_path / "run.h5", "--limit", "2", "--model", str(model)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not list(tmp_path.glob("run.*"))
