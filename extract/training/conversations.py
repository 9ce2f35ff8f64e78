"""Conversations: LLaVA instruction rows in, token ids and labels out. Knows words and tokenizers; no image, no model.

The text after <voco> is the vicuna-v1 template with VoCo-LLaMA's system prompt (its `voco_conv_vicuna_v1`):

    <s>SYSTEM USER: question ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>

A tokenizer that knows the template's words as <unk> alone, such as htc-tiny's, gets a template of its own vocabulary,
the one that htc-tiny was trained with: <s>question answer</s>question answer</s>.

Newlines within a turn stay, as in LLaVA; VoCo-LLaMA's training takes them out of rows with an image. Blanks around an
answer go: its first token is then the one that follows ASSISTANT: in a prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from htc_probe.extract.data import scenes
from htc_probe.extract.data.tables import once
from htc_probe.extract.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant of the image. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IGNORED_LABEL = -100
_IMAGE = "<image>"
_SCENES = 10_000  # rows of `scene_conversations`


class Conversation(NamedTuple):
    """One row of the training data."""

    name: str
    """Where it comes from, for messages."""
    image: str | None
    """The image's name within its folder; None for text alone."""
    turns: tuple[tuple[str, str], ...]
    """Questions with their answers, at least one."""


class Tokens(NamedTuple):
    """One text."""

    ids: np.ndarray
    """(T,) int64."""
    labels: np.ndarray
    """(T,) int64: the same where the model is taught (answers and their </s>), else -100."""


def read_conversations(path: Path) -> list[Conversation]:
    """The rows of a JSON in the LLaVA instruction format, such as llava_v1_5_mix665k.json.

    A list of objects with `conversations`, turns `from` human and gpt by turns, and, for some, an `image`. As in LLaVA
    a gpt turn before the first question is left out, and so is a question without an answer at the end. An `id` is only
    a name for messages: in the official file it is the image's, which several rows are about. Raises UserError that
    names the row, and for a field that stands twice in one.
    """
    try:
        with path.open("rb") as file:
            rows = json.load(file, object_pairs_hook=lambda pairs: once(pairs, str(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; expected a LLaVA instruction file") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} holds no list of rows; expected a LLaVA instruction file")
    return [_conversation(row, _name(path, i, row)) for i, row in enumerate(rows)]


def scene_conversations(split: str = "train", count: int = _SCENES) -> list[Conversation]:
    """The built-in scenes as conversations: of each scene one of the questions that it answers."""
    rows = []
    for i in range(count):
        answers = scenes.scene(split, i).answers
        question = str(np.random.default_rng(i).choice(sorted(answers)))
        turn = (scenes.QUESTIONS[question], answers[question])
        rows.append(Conversation(f"scenes {split} {i}", f"{split}/{i}", (turn,)))
    return rows


class Encoder:
    """Conversations as tokens of one tokenizer, cut to `max_length`.

    Every piece of a text is tokenised for itself, so that a label belongs to an answer by construction. The result is
    that of the whole text, `</s>` split off, wherever no token reaches across a blank: a piece after a blank gets it as
    SentencePiece tokenizers (LLaMA's) put one before every text of their own; for others it is written.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.plain = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in self._ids(_asked("", first=True))
        """Whether the tokenizer does not know the template, and questions and answers stand alone."""
        self._blank = "" if self._ids("x x") == 2 * self._ids("x") else " "

    def __call__(self, turns: Sequence[tuple[str, str]]) -> Tokens:
        """The text of a conversation and what is taught of it."""
        pieces = [([self.tokenizer.bos_token_id], False)]
        for i, (question, answer) in enumerate(turns):
            prompt = question if self.plain else _asked(question, first=i == 0)
            pieces += [(self._ids(prompt), False), (self._ids(self._blank + answer), True)]
            pieces += [([self.tokenizer.eos_token_id], True)]
        ids = np.array([token for piece, _ in pieces for token in piece], np.int64)
        taught = np.array([is_taught for piece, is_taught in pieces for _ in piece])
        labels = np.where(taught, ids, IGNORED_LABEL)
        return Tokens(ids[: self.max_length], labels[: self.max_length])

    def keeps(self, turns: Sequence[tuple[str, str]]) -> bool:
        """Whether a label is left after cutting."""
        # No token is shorter than a byte, so that a short question (nearly all are) need not be tokenised.
        if len(_asked(turns[0][0], first=True).encode()) + 2 < self.max_length:
            return True
        return bool((self(turns[:1]).labels != IGNORED_LABEL).any())

    def _ids(self, text: str) -> list[int]:
        # Control tokens written in a text (<s> is HTML too) are text.
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids


def _asked(question: str, *, first: bool) -> str:
    """A turn of the template up to the blank before its answer."""
    return f"{SYSTEM + ' ' if first else ''}USER: {question} ASSISTANT:"


def _conversation(row: Any, name: str) -> Conversation:
    if not isinstance(row, dict):
        raise UserError(f"{name} is no object but {str(row)[:60]!r}; expected `conversations` and perhaps an `image`")
    dialogue, image = row.get("conversations"), row.get("image")
    if not isinstance(dialogue, list) or not dialogue:
        raise UserError(f"{name} has no list `conversations` with turns in it")
    if image is not None and not isinstance(image, str):
        raise UserError(f"{name} has the image {str(image)[:60]!r}; expected a file name, or no `image` for text alone")
    turns = []
    for turn in dialogue:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise UserError(f"{name} has the turn {str(turn)[:60]!r}; expected `from` and `value`, both text")
        if turn.get("from") not in ("human", "gpt"):
            raise UserError(f"{name} has a turn from {turn.get('from')!r}; expected human or gpt")
        turns.append((turn["from"], turn["value"]))
    if turns[0][0] == "gpt":
        turns = turns[1:]
    speakers = [speaker for speaker, _ in turns]
    if len(turns) < 2 or speakers != (["human", "gpt"] * len(turns))[: len(turns)]:
        raise UserError(f"{name} has turns from {', '.join(speakers) or 'gpt'}; expected human and gpt by turns")
    questions = [value.replace(_IMAGE, "").strip() if image else value for _, value in turns[::2]]
    answers = [value.strip() for _, value in turns[1::2]]
    return Conversation(name, image, tuple(zip(questions, answers, strict=False)))


def _name(path: Path, index: int, row: Any) -> str:
    known = f" (id {row['id']})" if isinstance(row, dict) and "id" in row else ""
    return f"{path.name} row {index}{known}"
