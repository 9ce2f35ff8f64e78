"""Conversations as ids and labels: what is taught, what is cut, and which rows are refused."""

import json
import re

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from htc_probe.extract.data import scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.training.conversations import SYSTEM, Encoder, read_conversations, scene_conversations
from made.instructions import row

# ---- what is taught


@pytest.mark.parametrize("known", [True, False])
def test_labels_are_the_answers_and_their_ends(tokenizer, known):
    """In the usual template, or, where its words are unknown, in one without any."""
    turns = (("where is this ?", "desert"), ("which objects are there ?", "boat car"))
    before, after = ("USER: ", " ASSISTANT:") if known else ("", "")
    if known:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        words = set(re.findall(r"\w+|[^\w\s]+", f"{SYSTEM} USER: ASSISTANT:".lower())) - set(core["model"]["vocab"])
        core["model"]["vocab"] |= {word: len(tokenizer) + i for i, word in enumerate(sorted(words))}
        specials = {name: getattr(tokenizer, name) for name in ("unk_token", "bos_token", "eos_token")}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)), **specials)
    tokens = Encoder(tokenizer, 1000)(turns)
    assert tokenizer.unk_token_id not in tokens.ids
    assert tokenizer.decode(tokens.ids[tokens.labels != -100]) == "desert </s> boat car </s>"
    first = tokenizer(f"{SYSTEM + ' ' if known else ''}{before}where is this ?{after}").input_ids  # <s> is in front
    second = tokenizer(f"{before}which objects are there ?{after}", add_special_tokens=False).input_ids
    word = tokenizer.convert_tokens_to_ids
    end = word("</s>")
    assert tokens.ids.tolist() == [*first, word("desert"), end, *second, word("boat"), word("car"), end]
    hidden = [-100] * len(first), [-100] * len(second)
    assert tokens.labels.tolist() == [*hidden[0], word("desert"), end, *hidden[1], word("boat"), word("car"), end]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_the_pieces_are_the_tokens_of_the_whole_text(kind):
    """A LLaMA-like tokenizer puts a blank in front of each text; a byte-level one, like LLaMA-3's, does not."""
    from tokenizers import decoders, normalizers, pre_tokenizers, trainers
    from tokenizers import models as kinds

    text = [SYSTEM + " USER: ASSISTANT:", *scenes.QUESTIONS.values(), *scenes.vocabulary()] * 3
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "sentencepiece":
        core = Tokenizer(kinds.BPE(unk_token="<unk>", byte_fallback=True))
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        core = Tokenizer(kinds.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(text, trainers.BpeTrainer(vocab_size=900, special_tokens=specials))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

    turns = (("where is\nthis ?", "desert. A boat"), ("<b>how</b>  many ?", "two, three"), ("is it ?", "no"))
    tokens = Encoder(tokenizer, 1000)(turns)
    spoken = [f"USER: {question} ASSISTANT: {answer}</s>" for question, answer in turns]
    whole = tokenizer(f"<s>{SYSTEM} " + "".join(spoken), add_special_tokens=False).input_ids
    assert tokens.ids.tolist() == whole
    taught = "".join(tokenizer.convert_ids_to_tokens(tokens.ids[tokens.labels != -100]))
    assert taught.replace("▁", " ").replace("Ġ", " ") == " desert. A boat</s> two, three</s> no</s>"


def test_control_tokens_written_in_a_text_are_text(tokenizer):
    tokens = Encoder(tokenizer, 1000)((("where </s> is this ?", "<s> desert"),))
    assert (tokens.ids == tokenizer.eos_token_id).sum() == (tokens.ids == tokenizer.bos_token_id).sum() == 1


def test_what_does_not_fit_is_cut_and_a_row_without_labels_is_seen(tokenizer):
    turns = (("where is this ?", "desert"), ("how big is it ?", "tiny"))
    whole = Encoder(tokenizer, 1000)(turns)
    first_label = int((whole.labels != -100).argmax())
    for length in (first_label, first_label + 1, first_label + 2, 1000):
        encode = Encoder(tokenizer, length)
        assert encode(turns).ids.tolist() == whole.ids[:length].tolist()
        assert encode.keeps(turns) == (encode(turns).labels != -100).any() == (length > first_label)


def test_rows_are_read_as_llava_reads_them(photos):
    rows = read_conversations(photos / "mix.json")
    assert rows[0].image == "coco/0.jpg" and rows[0].turns == (("where is this ?", "desert"),)  # no <image>
    assert rows[6].image is None and rows[6].turns == (("how big is it ?", "tiny"), ("where is this ?", "sea"))
    assert "mix.json row 6 (id 7)" in rows[6].name
    loose = [row(("gpt", "Hello."), ("human", "a <image> tag ?"), ("gpt", " yes\n"), ("human", "and ?"))]
    (photos / "loose.json").write_text(json.dumps(loose))
    assert read_conversations(photos / "loose.json")[0].turns == (("a <image> tag ?", "yes"),)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"id": "9"}, "no list `conversations`"),
        ({"id": "9", "conversations": []}, "no list `conversations`"),
        (row(("human", "a"), ("robot", "b")) | {"id": "9"}, "'robot'; expected human or gpt"),
        (row(("human", "a"), ("human", "b"), ("gpt", "c")) | {"id": "9"}, "human, human, gpt; expected human and gpt"),
        (row(("human", "a"), ("gpt", "b"), ("gpt", "c")) | {"id": "9"}, "human, gpt, gpt; expected"),
        (row(("human", "a")) | {"id": "9"}, "expected human and gpt by turns"),
        (row(("human", 3), ("gpt", "b")) | {"id": "9"}, "both text"),
        (row(("human", "a"), ("gpt", "b")) | {"id": "9", "image": ["x", "y"]}, "expected a file name"),
        ("text", "no object"),
    ],
)
def test_a_malformed_row_is_refused_by_its_place(tmp_path, bad, said):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([row(("human", "a"), ("gpt", "b")), bad]))
    with pytest.raises(UserError, match="mix.json row 1") as error:
        read_conversations(path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert isinstance(bad, str) or "(id 9)" in str(error.value)


def test_rows_may_share_the_id_of_their_image_but_a_field_is_given_once(tmp_path):
    path = tmp_path / "mix.json"
    rows = [row(("human", word), ("gpt", "b")) | {"id": "7", "image": "7.jpg"} for word in "ac"]
    path.write_text(json.dumps(rows))  # as in llava_v1_5_mix665k.json
    assert [one.turns for one in read_conversations(path)] == [(("a", "b"),), (("c", "b"),)]
    path.write_text(json.dumps(rows).replace('"image"', '"image": "8.jpg", "image"', 1))
    with pytest.raises(UserError, match="mix.json: 'image' stands twice"):
        read_conversations(path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"a": ', "\xff"])
def test_a_file_of_no_rows_is_refused(tmp_path, content):
    path = tmp_path / "mix.json"
    path.write_text(content, encoding="latin1")
    with pytest.raises(UserError, match="mix.json"):
        read_conversations(path)


def test_scenes_are_conversations_with_their_answers():
    rows = scene_conversations(count=200)
    for i, conversation in enumerate(rows):
        (asked,) = conversation.turns
        answers = scenes.scene("train", i).answers
        assert asked in {(scenes.QUESTIONS[name], answer) for name, answer in answers.items()}
        assert conversation.image == f"train/{i}"
    assert {conversation.turns[0][0] for conversation in rows} == set(scenes.QUESTIONS.values())
