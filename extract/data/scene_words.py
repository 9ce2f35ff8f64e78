"""Scenes in tokens: the word-level tokenizer and the encoded questions, answers and captions. Knows words; no model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from htc_probe.extract.data.scenes import QUESTIONS, Scene, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_ANSWER = 5  # words: as many categories as there can be objects
_PAD, _BOS, _EOS, _UNKNOWN, _VOCO = "<pad>", "<s>", "</s>", "<unk>", "<voco>"


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with one token per word of `scenes.vocabulary()`; `save_pretrained` writes the usual files."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # </s> must not be token 2: transformers' CLIP takes an end token of 2 for a sign of old checkpoints and then
    # reads the sentence at its highest token id instead of at its end.
    specials = [_PAD, _UNKNOWN, _BOS, _EOS, _VOCO]
    words = {word: i for i, word in enumerate([*specials, *vocabulary()])}
    core = Tokenizer(models.WordLevel(words, unk_token=_UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, words[_BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_UNKNOWN,
        extra_special_tokens=[_VOCO],
        model_max_length=64,
    )


def speaks(vocabulary: int) -> bool:
    """Whether a vocabulary of this size is the scenes' own: only a model that has it was taught the questions."""
    return vocabulary == len(build_tokenizer())


def encode_sentences(tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask, both (sentences, T) int64: `<s> words </s>`, padded right."""
    rows = [[*tokenizer(s).input_ids, tokenizer.eos_token_id] for s in sentences]
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, (ids != tokenizer.pad_token_id).astype(np.int64)


def encode_answers(tokenizer: "PreTrainedTokenizerFast", scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """All question-answer pairs of one scene: ids (Q, T) int64 and labels (Q, T), in the order of QUESTIONS.

    A row is `<s> question answer </s>`, padded right. Labels are -100 but on the answer and its end. A question
    without an answer in this scene has no label at all. T is the longest that any scene can need, so that scenes
    stack into one array.
    """
    width = 1 + max(len(q.split()) for q in QUESTIONS.values()) + MAX_ANSWER + 1
    ids = np.full((len(QUESTIONS), width), tokenizer.pad_token_id, np.int64)
    labels = np.full_like(ids, -100)
    answers = scene.answers
    for row, label, (name, question) in zip(ids, labels, QUESTIONS.items(), strict=True):
        question_ids = tokenizer(question).input_ids
        row[: len(question_ids)] = question_ids
        if name in answers:
            answer = [*tokenizer(answers[name], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            span = slice(len(question_ids), len(question_ids) + len(answer))
            row[span] = label[span] = answer
    return ids, labels
