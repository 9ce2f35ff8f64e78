"""The built-in scenes: same on every call, truthful labels, independent factors, words for all of it."""

from dataclasses import replace

import numpy as np
import pytest

from htc_probe.extract.data import scene_words, scenes
from htc_probe.extract.data.scenes import scene
from htc_probe.extract.errors import UserError
from htc_probe.extract.training.tiny import sentence_bank, truths_of

MANY = [scene("train", i) for i in range(3000)]


def test_a_scene_is_the_same_on_every_call_and_no_other():
    assert scene("val", 7) == scene("val", 7)
    assert np.array_equal(*(np.asarray(scenes.render(scene("val", 7), 64)) for _ in range(2)))
    pictures = {scenes.render(scene(split, i), 32).tobytes() for split in scenes.SPLITS for i in range(40)}
    assert len(pictures) == 3 * 40


def test_the_resolution_changes_nothing_but_detail():
    what = scene("val", 3)
    large = scenes.render(what, 256).resize((64, 64))
    difference = np.abs(np.asarray(large, float) - np.asarray(scenes.render(what, 64), float))
    assert difference.mean() < 12 < np.abs(np.asarray(large, float) - scenes.render(scene("val", 4), 64)).mean()


@pytest.mark.parametrize("index", [i for i in range(120) if scene("val", i).relation < 0])
def test_position_and_size_are_where_the_pixels_are(index):
    """The main object is all that a picture loses without it: its box has the labelled centre and extent."""
    what, side = scene("val", index), 256
    without = np.asarray(scenes.render(replace(what, things=()), side), float)
    changed = np.abs(np.asarray(scenes.render(what, side), float) - without).sum(-1) > 30
    rows, cols = np.nonzero(changed)
    labels = what.labels
    centre = np.array([cols.min() + cols.max() + 1, rows.min() + rows.max() + 1]) / 2 / side
    assert np.abs(centre - [labels["position_x"], labels["position_y"]]).max() < 0.3 * labels["size"]
    extent = max(np.ptp(rows), np.ptp(cols)) / side
    assert 0.7 * labels["size"] < extent < 1.45 * labels["size"]


def test_the_main_object_is_the_largest_and_the_second_stands_where_the_relation_says():
    for what in MANY:
        sizes = [thing.size for thing in what.things]
        assert sizes == sorted(sizes, reverse=True) or max(sizes[2:], default=0) < min(sizes[:2])
        assert (what.relation < 0) == (len(what.things) == 1)
        if what.relation >= 0:
            main, second = what.things[:2]
            angle = np.degrees(np.arctan2(second.x - main.x, main.y - second.y))
            assert abs((angle - 45 * what.relation + 180) % 360 - 180) < 22.5


def test_classes_are_balanced_and_factors_independent():
    labels = {task.name: np.array([s.labels[task.name] for s in MANY]) for task in scenes.TASKS}
    single = [t for t in scenes.TASKS if t.kind == "classes"]
    for task in single:
        known = labels[task.name][labels[task.name] >= 0]
        share = np.bincount(known, minlength=len(task.classes)) / len(known)
        expected = 1 / len(task.classes)
        assert np.abs(share - expected).max() < 4 * np.sqrt(expected / len(known)), task.name
    for a in single:
        for b in single:
            if a.name < b.name:
                both = (labels[a.name] >= 0) & (labels[b.name] >= 0)
                table = np.zeros((len(a.classes), len(b.classes)))
                np.add.at(table, (labels[a.name][both], labels[b.name][both]), 1)
                expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
                degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
                if {a.name, b.name} == {"count", "relation"}:
                    degrees -= len(b.classes) - 1  # a lone object has no relation: a row of zeros
                    table, expected = table[1:], expected[1:]
                chi2 = ((table - expected) ** 2 / expected).sum()
                assert chi2 < degrees + 5 * np.sqrt(2 * degrees), (a.name, b.name)


def test_every_task_has_a_question_and_every_suite_five_tasks():
    for suite in ("semantic", "detail"):
        assert sum(task.suite == suite for task in scenes.TASKS) >= 5
    asked = {name.split("_")[0] for name in (task.name for task in scenes.TASKS)}
    assert asked == set(scenes.QUESTIONS) == set(scenes.STATEMENTS)
    for what in MANY[:200]:
        assert set(scenes.QUESTIONS) - set(what.answers) == (set() if what.relation >= 0 else {"relation"})


def test_chance_is_the_share_of_the_commonest_answer():
    shares = scenes.chance(MANY)
    assert all(0.01 < share < 0.25 for share in shares.values())
    assert scenes.chance([MANY[0], MANY[0]])["category"] == 1


def test_captions_mention_every_factor_and_only_what_is_true():
    bank = sentence_bank()
    assert len(bank) == len(set(bank))
    for i, row in enumerate(truths_of("train", 50, bank).images.numpy()):
        told = [bank[j] for j in np.nonzero(row)[0]]
        assert sorted(told) == sorted(MANY[i].captions)
        for question, answer in MANY[i].answers.items():
            assert all(any(word in s.split() for s in told) for word in answer.split()), question


def test_tokenizer_knows_every_word_and_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = scene_words.build_tokenizer()
    assert tokenizer.eos_token_id != 2  # see build_tokenizer
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for what in MANY[:50]:
        for text in [*what.answers.values(), *what.captions, *scenes.QUESTIONS.values()]:
            ids = again(text).input_ids
            assert ids == tokenizer(text).input_ids and tokenizer.unk_token_id not in ids
            assert again.decode(ids, skip_special_tokens=True) == text
    assert again("What  is this?").input_ids == tokenizer("what is this ?").input_ids


def test_encoded_answers_are_the_answers():
    tokenizer = scene_words.build_tokenizer()
    for what in MANY[:100]:
        ids, labels = scene_words.encode_answers(tokenizer, what)
        for row, label, (name, question) in zip(ids, labels, scenes.QUESTIONS.items(), strict=True):
            told = label[label != -100]
            assert np.array_equal(row[label != -100], told)
            if name in what.answers:
                assert tokenizer.decode(told) == f"{what.answers[name]} </s>"
                assert tokenizer.decode(row[: (label != -100).argmax()]) == f"<s> {question}"
            else:
                assert told.size == 0


def test_the_source_gives_items_and_refuses_unknown_splits():
    source = scenes.ScenesSource("val", limit=3)
    items = [source[i] for i in range(len(source))]
    assert len(items) == 3 and len({item.group for item in items}) == 3
    assert items[1].image.size == (64, 64) and items[1].labels["scene"] == scene("val", 1).scene
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        scenes.ScenesSource("dev")
    with pytest.raises(IndexError):
        source[3]
