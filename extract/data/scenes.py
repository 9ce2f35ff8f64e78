"""The built-in data set: rendered scenes with exact labels. Knows pictures and words; not models, tensors or files.

A scene is a background with one to five objects. The largest is *the main object*; its factors (category, texture,
orientation, shade, size, position) are drawn independently and uniformly, so no factor predicts another. The
second largest stands in one of eight compass directions from it. Clutter, pixel noise and overlap make the
pictures less than trivial.

Everything follows from (split, index): the same scene at any resolution, on any machine, offline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from htc_probe.extract.data.source import Item
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Task

SPLITS = {"train": 200_000, "val": 2_000, "test": 2_000}
_SEED = 0x5CE7E5

CATEGORIES = ("boat", "car", "cup", "fish", "house", "rocket", "tree", "umbrella")
SCENES = ("city", "desert", "forest", "room", "sea", "snow")
TEXTURES = ("checkered", "dotted", "gradient", "plain", "ringed", "striped")
COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
SHADES = ("dark blue", "dark green", "dark red", "light blue", "light green", "light red")
SIZES = ("tiny", "small", "medium", "large", "huge")
COUNTS = ("one", "two", "three", "four", "five")
ROWS, COLS = ("upper", "middle", "lower"), ("left", "center", "right")

_SHADE_RGB = {
    "dark red": (150, 20, 30),
    "light red": (245, 130, 135),
    "dark green": (15, 95, 35),
    "light green": (130, 220, 125),
    "dark blue": (25, 40, 140),
    "light blue": (125, 175, 250),
}
# Five sizes with gaps between them: the main object's extent as a share of the image's width.
_SIZE_STEP, _SIZE_FIRST, _SIZE_JITTER = 0.07, 0.32, 0.0175
_MAIN_RANGE = (0.32, 0.68)  # of the main object's centre, so that a neighbour fits in every direction

TASKS = (
    Task("category", "semantic", "classes", CATEGORIES),
    Task("scene", "semantic", "classes", SCENES),
    Task("count", "semantic", "classes", COUNTS),
    Task("present", "semantic", "multilabel", CATEGORIES),
    Task("relation", "semantic", "classes", COMPASS),
    Task("texture", "detail", "classes", TEXTURES),
    Task("orientation", "detail", "classes", COMPASS),
    Task("shade", "detail", "classes", SHADES),
    Task("size", "detail", "number", unit="image widths"),
    Task("position_x", "detail", "number", unit="image widths from the left"),
    Task("position_y", "detail", "number", unit="image heights from the top"),
)


class Thing(NamedTuple):
    """One object: indices into CATEGORIES, TEXTURES, COMPASS, SHADES; extent and centre in image widths."""

    category: int
    texture: int
    orientation: int
    shade: int
    size: float
    x: float
    y: float
    phase: float  # of the texture, radians


@dataclass(frozen=True)
class Scene:
    """What is in one picture, before any pixel. `things[0]` is the main object, `things[1]` the second largest."""

    split: str
    index: int
    scene: int
    things: tuple[Thing, ...]
    size_bin: int
    relation: int  # index into COMPASS, -1 with a lone object

    @property
    def labels(self) -> dict[str, int | float | np.ndarray]:
        """Label values by task name, in the run file's conventions (-1: unknown class)."""
        main = self.things[0]
        present = np.zeros(len(CATEGORIES), np.uint8)
        present[[t.category for t in self.things]] = 1
        return {
            "category": main.category,
            "scene": self.scene,
            "count": len(self.things) - 1,
            "present": present,
            "relation": self.relation,
            "texture": main.texture,
            "orientation": main.orientation,
            "shade": main.shade,
            "size": main.size,
            "position_x": main.x,
            "position_y": main.y,
        }

    @property
    def answers(self) -> dict[str, str]:
        """The answer in words to every question of `QUESTIONS` that this scene has an answer to."""
        main = self.things[0]
        present = sorted({CATEGORIES[t.category] for t in self.things})
        words = {
            "category": CATEGORIES[main.category],
            "scene": SCENES[self.scene],
            "count": COUNTS[len(self.things) - 1],
            "present": " ".join(present),
            "texture": TEXTURES[main.texture],
            "orientation": COMPASS[main.orientation],
            "shade": SHADES[main.shade],
            "size": SIZES[self.size_bin],
            "position": f"{ROWS[_third(main.y)]} {COLS[_third(main.x)]}",
        }
        if self.relation >= 0:
            words["relation"] = COMPASS[self.relation]
        return words

    @property
    def region_captions(self) -> tuple[tuple[str, ...], ...]:
        """Short true sentences about the background, then about each thing; together they mention every factor."""
        told = {question: STATEMENTS[question].format(answer) for question, answer in self.answers.items()}
        regions = [[told["scene"], told["count"]]]
        regions += [[STATEMENTS["present"].format(CATEGORIES[thing.category])] for thing in self.things]
        regions[1] += [told[q] for q in ("category", "texture", "orientation", "shade", "size", "position")]
        if self.relation >= 0:
            regions[2].append(told["relation"])
        return tuple(tuple(sentences) for sentences in regions)

    @property
    def captions(self) -> tuple[str, ...]:
        """All sentences of `region_captions`, each once."""
        return tuple(dict.fromkeys(s for sentences in self.region_captions for s in sentences))


_POSITIONS = tuple(f"{row} {col}" for row in ROWS for col in COLS)
# By question: how it is asked, what states its answer, and the answers that there are (of `present`, each in a list).
_ASKED = {
    "category": ("what is the main object ?", "the main object is a {}", CATEGORIES),
    "scene": ("where is this ?", "this is a {}", SCENES),
    "count": ("how many objects are there ?", "there are {} objects", COUNTS),
    "present": ("which objects are there ?", "there is a {}", CATEGORIES),
    "relation": ("where is the second object ?", "the second object is {}", COMPASS),
    "texture": ("what is its texture ?", "its texture is {}", TEXTURES),
    "orientation": ("which way does it point ?", "it does point {}", COMPASS),
    "shade": ("what is its shade ?", "its shade is {}", SHADES),
    "size": ("how big is it ?", "it is {}", SIZES),
    "position": ("which part is it in ?", "it is in the {} part", _POSITIONS),
}
QUESTIONS = {name: question for name, (question, _, _) in _ASKED.items()}
STATEMENTS = {name: statement for name, (_, statement, _) in _ASKED.items()}
ANSWERS = {name: answers for name, (_, _, answers) in _ASKED.items()}


def vocabulary() -> list[str]:
    """Every word that questions, answers and captions use, sorted."""
    answers = [answer for answers in ANSWERS.values() for answer in answers]
    texts = [*QUESTIONS.values(), *(statement.replace("{}", "") for statement in STATEMENTS.values()), *answers]
    return sorted({word for text in texts for word in text.split()})


def chance(scenes: Sequence[Scene]) -> dict[str, float]:
    """By question, the share of `scenes` that the single most frequent answer would get right."""
    shares = {}
    for question in QUESTIONS:
        answers = [s.answers[question] for s in scenes if question in s.answers]
        shares[question] = max(answers.count(a) for a in set(answers)) / len(answers) if answers else float("nan")
    return shares


def scene(split: str, index: int) -> Scene:
    """The scene number `index` of `split`: the same on every call and every machine."""
    rng = _generator(split, index, stream=0)
    size_bin = int(rng.integers(len(SIZES)))
    size = _SIZE_FIRST + _SIZE_STEP * size_bin + rng.uniform(-_SIZE_JITTER, _SIZE_JITTER)
    main = _thing(rng, size, *rng.uniform(*_MAIN_RANGE, 2))
    things, relation = [main], -1
    count = 1 + int(rng.integers(len(COUNTS)))
    if count > 1:
        relation = int(rng.integers(len(COMPASS)))
        angle = np.deg2rad(45 * relation + rng.uniform(-12, 12))
        away = 0.43 * main.size + 0.12
        x, y = np.clip([main.x + away * np.sin(angle), main.y - away * np.cos(angle)], 0.1, 0.9)
        things.append(_thing(rng, rng.uniform(0.21, 0.22), x, y))
    while len(things) < count:
        things.append(_thing(rng, rng.uniform(0.16, 0.17), *_free_spot(rng, things)))
    return Scene(split, index, int(rng.integers(len(SCENES))), tuple(things), size_bin, relation)


def render(scene: Scene, size: int) -> Image.Image:
    """Draw a scene as a (size, size) RGB image. Noise is per pixel, all else is independent of `size`."""
    rng = _generator(scene.split, scene.index, stream=1)
    scale = 4 if size <= 128 else 2  # supersampling, against jagged edges
    canvas = _background(SCENES[scene.scene], size * scale, rng)
    draw = ImageDraw.Draw(canvas)
    _clutter(draw, size * scale, rng)
    for thing in scene.things:
        _draw_thing(canvas, draw, thing)
    image = canvas.resize((size, size), Image.Resampling.BOX)
    brightness, noise = rng.uniform(-12, 12), rng.uniform(2, 8)
    pixels = np.asarray(image) + brightness + rng.normal(0, noise, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def owners(scene: Scene, grid: int) -> np.ndarray:
    """(grid, grid) int: the thing that most of a cell shows, as an index into `things`, or -1 for the background."""
    fine = 4
    canvas = Image.new("L", (grid * fine, grid * fine))
    draw = ImageDraw.Draw(canvas)
    for number, thing in enumerate(scene.things, 1):
        turn, centre, radius = _pose(thing, canvas.width)
        for polygon in (p for part in _SHAPES[CATEGORIES[thing.category]] for p in part):
            draw.polygon([tuple(p) for p in polygon @ turn * radius + centre], fill=number)
    cells = np.asarray(canvas).reshape(grid, fine, grid, fine).swapaxes(1, 2).reshape(grid, grid, -1)
    return (cells[..., None] == np.arange(len(scene.things) + 1)).sum(2).argmax(-1) - 1


class ScenesSource:
    """The scenes of one split as a data source: items with image, labels and a group of their own.

    `resolution` is the images' side in pixels; at the model's own input size no resampling follows.
    """

    name = "scenes"
    tasks: tuple[Task, ...] = TASKS

    def __init__(self, split: str, *, resolution: int = 64, limit: int | None = None):
        if split not in SPLITS:
            raise UserError(f"the data set 'scenes' has no split {split!r}; it has {', '.join(SPLITS)}")
        self.split, self.resolution = split, resolution
        self._length = SPLITS[split] if limit is None else min(limit, SPLITS[split])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self._length:
            raise IndexError(index)
        picture = scene(self.split, index)
        name = f"scenes-{self.split}-{index:06d}"
        return Item(name, name, name, render(picture, self.resolution), picture.labels)


# ---- sampling


def _generator(split: str, index: int, stream: int) -> np.random.Generator:
    if split not in SPLITS or not 0 <= index < SPLITS[split]:
        raise ValueError(f"no scene {index} in split {split!r}; splits and sizes: {SPLITS}")
    return np.random.default_rng([_SEED, list(SPLITS).index(split), index, stream])


def _thing(rng: np.random.Generator, size: float, x: float, y: float) -> Thing:
    category, texture, orientation, shade = (int(rng.integers(len(c))) for c in (CATEGORIES, TEXTURES, COMPASS, SHADES))
    return Thing(category, texture, orientation, shade, float(size), float(x), float(y), rng.uniform(0, np.pi))


def _free_spot(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[float, float]:
    """A centre that no other object's centre is near; the roomiest of some tries."""
    spots = rng.uniform(0.09, 0.91, (24, 2))
    room = np.min([np.hypot(*(spots - (t.x, t.y)).T) - t.size / 2 for t in things], axis=0)
    x, y = spots[int(np.argmax(room > 0.06)) if (room > 0.06).any() else int(np.argmax(room))]
    return float(x), float(y)


def _third(position: float) -> int:
    low, high = _MAIN_RANGE
    return min(2, int(3 * (position - low) / (high - low)))


# ---- drawing: shapes are polygons in [-1, 1] x [-1, 1], y downward, their top to the north


def _disc(x: float, y: float, r: float, start: float = 0, stop: float = 360, squash: float = 1.0) -> np.ndarray:
    t = np.deg2rad(np.linspace(start, stop, 28))
    return np.stack([x + r * np.cos(t), y + squash * r * np.sin(t)], 1)


def _poly(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom))


_HANDLE = _poly(
    (0.35, -0.5), (0.95, -0.5), (0.95, 0.3), (0.35, 0.3), (0.35, 0.1), (0.75, 0.1), (0.75, -0.3), (0.35, -0.3)
)
_CROOK = _poly((0.07, 0.75), (0.4, 0.75), (0.4, 0.5), (0.52, 0.5), (0.52, 0.9), (0.07, 0.9))
_HULL = _poly((0, -1), (0.35, -0.5), (0.35, 0.6), (-0.35, 0.6), (-0.35, -0.5))
_LEFT_FIN, _RIGHT_FIN = (_poly((side * 0.35, 0.1), (side * 0.85, 0.75), (side * 0.35, 0.6)) for side in (-1, 1))
# By category: polygons drawn in shade and texture, and details, drawn dark. None looks the same after a turn.
_SHAPES: dict[str, tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]] = {
    "boat": (
        (_poly((-1, 0.2), (1, 0.2), (0.6, 0.8), (-0.6, 0.8)), _poly((-0.05, -1), (0.8, 0.05), (-0.05, 0.05))),
        (_box(-0.15, -1, -0.05, 0.2),),
    ),
    "car": (
        (_box(-1, -0.05, 1, 0.5), _poly((-0.75, -0.05), (-0.4, -0.6), (0.3, -0.6), (0.6, -0.05))),
        (_disc(-0.55, 0.5, 0.27), _disc(0.55, 0.5, 0.27)),
    ),
    "cup": (
        (_poly((-0.75, -0.8), (0.45, -0.8), (0.3, 0.8), (-0.6, 0.8)), _HANDLE),
        (_disc(-0.15, -0.8, 0.6, squash=0.22),),
    ),
    "fish": (
        (
            _disc(0.2, 0, 0.8, squash=0.6),
            _poly((-0.4, 0), (-1, -0.5), (-1, 0.5)),
            _poly((-0.1, -0.35), (0.5, -0.35), (0.1, -0.85)),
        ),
        (_disc(0.6, -0.12, 0.13),),
    ),
    "house": (
        (_box(-0.75, -0.1, 0.75, 0.9), _poly((-1, -0.1), (0, -0.95), (1, -0.1))),
        (_box(-0.2, 0.3, 0.25, 0.9), _poly((0.45, -0.95), (0.7, -0.95), (0.7, -0.35), (0.45, -0.55))),
    ),
    "rocket": ((_HULL, _LEFT_FIN, _RIGHT_FIN), (_disc(0, -0.25, 0.17), _poly((-0.2, 0.6), (0.2, 0.6), (0, 1)))),
    "tree": (
        (_poly((0, -1), (0.6, -0.25), (-0.6, -0.25)), _poly((0, -0.6), (0.85, 0.45), (-0.85, 0.45))),
        (_box(-0.17, 0.45, 0.17, 1),),
    ),
    "umbrella": ((_disc(0, 0, 0.95, 180, 360),), (_box(-0.07, -1, 0.07, 0.85), _CROOK)),
}


def _pose(thing: Thing, side: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(rotation, centre, radius) of a thing on a canvas of `side` pixels: `polygon @ rotation * radius + centre`."""
    angle = np.deg2rad(45 * thing.orientation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return turn, np.array([thing.x, thing.y]) * side, thing.size * side / 2


def _draw_thing(canvas: Image.Image, draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    side = canvas.width
    turn, centre, radius = _pose(thing, side)
    body, detail = _SHAPES[CATEGORIES[thing.category]]

    corner = np.floor(centre - 1.5 * radius).astype(int)
    width = int(np.ceil(3 * radius))
    mask = Image.new("L", (width, width))
    mask_draw = ImageDraw.Draw(mask)
    for polygon in body:
        mask_draw.polygon([tuple(p) for p in polygon @ turn * radius + centre - corner], fill=255)
    paint = Image.fromarray(_texture(thing, width, side))
    canvas.paste(paint, tuple(corner), mask)
    for polygon in detail:
        draw.polygon([tuple(p) for p in polygon @ turn * radius + centre], fill=(35, 30, 30))


def _texture(thing: Thing, width: int, side: int) -> np.ndarray:
    """(width, width, 3) u8 in the thing's shade, with a pale second tone laid out by its texture."""
    base = np.array(_SHADE_RGB[SHADES[thing.shade]], float)
    pale = np.array([250, 240, 200], float)
    period = 0.095 * side * (0.6 + thing.size)
    axis = (np.arange(width) - width / 2) * 2 * np.pi / period
    x, y = axis[None, :], axis[:, None]
    u, v = np.cos(thing.phase) * x + np.sin(thing.phase) * y, np.cos(thing.phase) * y - np.sin(thing.phase) * x
    kind = TEXTURES[thing.texture]
    if kind == "plain":
        share = np.zeros((width, width))
    elif kind == "gradient":
        share = np.clip(0.45 + u * period / (2 * np.pi) / (thing.size * side) * 1.1, 0, 0.9)
    elif kind == "striped":
        share = np.cos(u) > 0.25
    elif kind == "checkered":
        share = (np.cos(0.75 * u) > 0) ^ (np.cos(0.75 * v) > 0)
    elif kind == "dotted":
        share = np.cos(0.9 * u) + np.cos(0.9 * v) > 0.8
    else:
        share = np.cos(np.hypot(x, y)) > 0.25
    tone = np.asarray(share, float)[..., None]
    return np.clip(base * (1 - tone) + pale * tone, 0, 255).astype(np.uint8)


def _background(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    def colour(*rgb: int) -> tuple[int, int, int]:
        r, g, b = np.clip(np.array(rgb) + rng.integers(-18, 19, 3), 0, 255)
        return int(r), int(g), int(b)

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        draw.rectangle([x0 * side, y0 * side, x1 * side, y1 * side], fill=fill)

    def hill(height: float, rise: float, fill: tuple[int, int, int]) -> None:
        x = np.linspace(0, 1, 24)
        y = height + rise * np.sin(2 * np.pi * (x * rng.uniform(0.6, 1.6) + rng.uniform()))
        draw.polygon([(0, side), *zip(x * side, y * side, strict=True), (side, side)], fill=fill)

    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(0.3, 0.6)
    if name == "city":
        box(0, 0, 1, 1, colour(170, 175, 190))
        for left in np.arange(-0.05, 1, 0.2):
            top = rng.uniform(0.08, 0.5)
            box(left, top, left + rng.uniform(0.13, 0.19), 0.85, colour(105, 105, 115))
            for y in np.arange(top + 0.04, 0.8, 0.09):
                box(left + 0.03, y, left + 0.06, y + 0.03, (225, 215, 140))
        box(0, 0.85, 1, 1, colour(70, 70, 75))
    elif name == "desert":
        box(0, 0, 1, 1, colour(240, 205, 150))
        hill(horizon, 0.05, colour(220, 175, 105))
        hill(horizon + 0.25, 0.07, colour(200, 150, 80))
    elif name == "forest":
        box(0, 0, 1, 1, colour(95, 125, 85))
        for x in rng.uniform(0, 1, 9):
            box(x, 0, x + rng.uniform(0.02, 0.05), 0.8, colour(85, 65, 45))
        hill(0.8, 0.02, colour(70, 90, 50))
    elif name == "room":
        box(0, 0, 1, 1, colour(215, 190, 185))
        left = rng.uniform(0.05, 0.6)
        box(left, 0.08, left + 0.3, 0.42, (250, 250, 250))
        box(left + 0.02, 0.1, left + 0.28, 0.4, colour(185, 215, 235))
        box(0, 0.72, 1, 0.75, (245, 240, 235))
        box(0, 0.75, 1, 1, colour(145, 100, 70))
    elif name == "sea":
        box(0, 0, 1, 1, colour(175, 210, 235))
        box(0, horizon, 1, 1, colour(40, 105, 145))
        for y in rng.uniform(horizon, 1, 9):
            x = rng.uniform(-0.1, 0.9)
            box(x, y, x + rng.uniform(0.1, 0.3), y + 0.01, colour(120, 175, 205))
    else:
        box(0, 0, 1, 1, colour(165, 175, 190))
        hill(horizon, 0.06, colour(235, 238, 242))
        for x, y in rng.uniform(0, 1, (40, 2)):
            box(x, y, x + 0.012, y + 0.012, (255, 255, 255))
    return image


def _clutter(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(0, 7))):
        x, y, dx, dy = rng.uniform(0, 1, 4) * side
        tone = tuple(int(c) for c in rng.integers(40, 220, 3))
        draw.line([x, y, x + (dx - side / 2) * 0.4, y + (dy - side / 2) * 0.4], fill=tone, width=max(1, side // 90))
