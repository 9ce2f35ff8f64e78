"""The questions of the built-in scenes, put to a model through <voco>; and scenes that differ in one factor.

Knows scenes, their words and an HTCVLM. Does not know runs, files or statistics.

Legend: B images, K answers of a question, C categories, V words.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from htc_probe.extract.data import scene_words, scenes
from htc_probe.extract.data.scenes import Scene
from htc_probe.extract.data.source import Item
from htc_probe.extract.store import Suite, Task
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.vlm.star import Compressed

ANSWERS: dict[str, tuple[str, ...]] = {
    "category": scenes.CATEGORIES,
    "scene": scenes.SCENES,
    "count": scenes.COUNTS,
    "relation": scenes.COMPASS,
    "texture": scenes.TEXTURES,
    "orientation": scenes.COMPASS,
    "shade": scenes.SHADES,
    "size": scenes.SIZES,
    "position": tuple(f"{row} {col}" for row in scenes.ROWS for col in scenes.COLS),
}
"""Every answer that a question can have, in the order of its task's classes where it has a task. `present`, whose
answers are lists, is not among them."""

NUMBERS = {"size": "size", "position_x": "position", "position_y": "position"}
"""The question whose answer says something of a task that is a number."""

FACTORS = {question: (question,) for question in ANSWERS} | {"position": ("position", "position_x", "position_y")}
"""What can be changed in a scene while all else stays, and the tasks and questions that it decides."""


def suite_of(question: str) -> Suite:
    suites = {task.name: task.suite for task in scenes.TASKS}
    return suites[next((task for task, asked in NUMBERS.items() if asked == question), question)]


class Sheet:
    """Some of the questions, laid out so that one pass asks them of many images. `sheet(compressed)` reads it."""

    def __init__(self, model: HTCVLM, questions: Sequence[str]) -> None:
        """`questions`: of `scenes.QUESTIONS`."""
        self._model, self._tokenizer = model, scene_words.build_tokenizer()
        self._lists = "present" in questions
        rows: list[list[int]] = []
        self._spans: dict[str, tuple[int, int]] = {}
        row_of, position, token, answer_of = [], [], [], []
        answers = 0
        for name in questions:
            if name == "present":
                continue
            prompt = self._tokenizer(scenes.QUESTIONS[name]).input_ids
            words = [tuple(self._tokenizer(a, add_special_tokens=False).input_ids) for a in ANSWERS[name]]
            # One text for each way in which an answer can begin: it says how likely every next word is.
            begun = sorted({word[:-1] for word in words})
            for number, word in enumerate(words):
                for step, piece in enumerate(word):
                    row_of.append(len(rows) + begun.index(word[:-1]))
                    position.append(len(prompt) - 1 + step)
                    token.append(piece)
                    answer_of.append(answers + number)
            rows += [[*prompt, *word] for word in begun]
            self._spans[name] = (answers, answers + len(words))
            answers += len(words)
        width = max(map(len, rows), default=0)
        padding = cast(int, self._tokenizer.pad_token_id)
        ids = [[*row, *[padding] * (width - len(row))] for row in rows]  # on the right, where nothing reads it
        device = model.device
        self._ids, self._row_of, self._position, self._token, self._answer_of = (
            torch.tensor(values, dtype=torch.long, device=device)
            for values in (ids, row_of, position, token, answer_of)
        )

    def __call__(self, compressed: Compressed) -> dict[str, np.ndarray]:
        """By question, (B, K) float32: the natural logarithm of how likely each of its answers is among them; of
        `present`, (B, C) bool: whether the greedy answer lists the category.
        """
        images = len(compressed.hidden)
        read: dict[str, np.ndarray] = {}
        if self._spans:
            logits_BRTV = self._model.read(compressed, self._ids.expand(images, -1, -1))
            steps_BSV = logits_BRTV[:, self._row_of, self._position].float().log_softmax(-1)
            steps_BS = steps_BSV.gather(-1, self._token.expand(images, -1)[..., None])[..., 0]
            total_BK = steps_BS.new_zeros(images, int(self._answer_of[-1]) + 1).index_add(1, self._answer_of, steps_BS)
            for name, (start, stop) in self._spans.items():
                read[name] = total_BK[:, start:stop].log_softmax(-1).cpu().numpy()
        if self._lists:
            read["present"] = self._listed(compressed, images)
        return read

    def _listed(self, compressed: Compressed, images: int) -> np.ndarray:
        prompt = torch.tensor(self._tokenizer(scenes.QUESTIONS["present"]).input_ids, device=self._model.device)
        answers: Tensor = self._model.generate(
            compressed=compressed, input_ids=prompt.expand(images, -1), max_new_tokens=scene_words.MAX_ANSWER + 1
        )
        said = [set(text.split()) for text in self._tokenizer.batch_decode(answers, skip_special_tokens=True)]
        return np.array([[category in words for category in scenes.CATEGORIES] for words in said])


class Truths(NamedTuple):
    answers: dict[str, np.ndarray]
    """By question, (B,) int: the number of the true answer among ANSWERS, -1 where there is none."""
    labels: dict[str, np.ndarray]
    """By task, as in a run."""


def truths(pictures: Sequence[Scene]) -> Truths:
    told, labels = [scene.answers for scene in pictures], [scene.labels for scene in pictures]
    numbers = {
        name: np.array([answers.index(each[name]) if name in each else -1 for each in told])
        for name, answers in ANSWERS.items()
    }
    return Truths(numbers, {task.name: np.array([each[task.name] for each in labels]) for task in scenes.TASKS})


def as_numbers(log_shares_BK: np.ndarray, values_K: np.ndarray) -> np.ndarray:
    """(B,) the number that answers of these logarithmic shares mean on average, each answer meaning a value."""
    return np.exp(log_shares_BK.astype(np.float64)) @ values_K


def values_of_answers(answer_N: np.ndarray, number_N: np.ndarray, answers: int) -> np.ndarray:
    """(K,) the mean number of the images with each answer; the mean of all where no image has it."""
    values_K = np.full(answers, number_N.mean())
    for answer in np.unique(answer_N[answer_N >= 0]):
        values_K[answer] = number_N[answer_N == answer].mean()
    return values_K


def with_factor(scene: Scene, other: Scene, factor: str) -> Scene | None:
    """`scene` with one factor of `other`, everything else as it is, the background's and the pixels' noise included;
    None where both have the same, or the picture would not show it.

    The second object keeps its direction and distance where the main one moves, so that `relation` stays true. For
    `count` the last objects are left out, down to no fewer than two: then `present` changes too.
    """
    main, given = scene.things[0], other.things[0]
    things = scene.things
    if factor == "scene":
        changed = replace(scene, scene=other.scene)
    elif factor == "count":
        changed = replace(scene, things=things[: len(other.things)] if len(other.things) > 1 else things)
    elif factor == "size":
        changed = replace(scene, things=(main._replace(size=given.size), *things[1:]), size_bin=other.size_bin)
    elif factor == "relation":
        changed = scene if min(scene.relation, other.relation) < 0 else _turned(scene, other.relation)
    elif factor == "position":
        dx, dy = given.x - main.x, given.y - main.y
        moved = tuple(thing._replace(x=thing.x + dx, y=thing.y + dy) for thing in things[:2])
        changed = replace(scene, things=(*moved, *things[2:]))
    else:
        changed = replace(scene, things=(main._replace(**{factor: getattr(given, factor)}), *things[1:]))
    inside = all(0.1 <= at <= 0.9 for thing in changed.things[:2] for at in (thing.x, thing.y))
    return changed if inside and changed.answers.get(factor) != scene.answers.get(factor) else None


def _turned(scene: Scene, relation: int) -> Scene:
    """The second object in another direction, as far away as it was."""
    main, second = scene.things[:2]
    angle = np.deg2rad(45 * (relation - scene.relation))
    dx, dy = second.x - main.x, second.y - main.y
    x = main.x + dx * np.cos(angle) - dy * np.sin(angle)
    y = main.y + dx * np.sin(angle) + dy * np.cos(angle)
    turned = second._replace(x=float(x), y=float(y))
    return replace(scene, things=(main, turned, *scene.things[2:]), relation=relation)


class Drawn:
    """Given scenes as a data source, drawn at `resolution` pixels a side."""

    name = "scenes"
    tasks: tuple[Task, ...] = scenes.TASKS

    def __init__(self, pictures: Sequence[Scene], resolution: int) -> None:
        self.split, self._pictures, self._resolution = "changed", pictures, resolution

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Item:
        scene = self._pictures[index]
        name = f"scenes-{scene.split}-{scene.index:06d}-changed-{index}"
        return Item(name, name, name, scenes.render(scene, self._resolution), scene.labels)
