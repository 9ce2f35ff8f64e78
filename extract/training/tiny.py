"""The recipe of the shipped model, stage by stage. Knows scenes and the order of training; not the command line.

The paper's order: a CLIP from captions, an MGVQ from reconstruction, both then frozen; last P_v, P_d, `<voco>` and
the LLaMA from questions and answers, on cached features.
"""

import contextlib
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, LlamaConfig
from transformers.trainer_utils import EvalPrediction

from htc_probe.extract import command
from htc_probe.extract.data import scene_words, scenes
from htc_probe.extract.files import replaced
from htc_probe.extract.training.card import write_card, write_curves
from htc_probe.extract.training.config import Schedule, TinyConfig, plain
from htc_probe.extract.training.contrastive import CaptionCLIP
from htc_probe.extract.training.reconstruction import Reconstruction
from htc_probe.extract.training.stage import Batches, claim, train_stage
from htc_probe.extract.vlm.config import CLIP_MEAN, CLIP_STD, HTCConfig
from htc_probe.extract.vlm.mgvq import MGVQConfig
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.words import counted

RESOLUTION, _PATCH, WIDTH, _HEADS = 64, 8, 128, 4
_VISION_LAYER = -1
Log = list[dict[str, Any]]
_MGVQ_SMALL = MGVQConfig(
    widths=(16, 32, 64, 64, 128), depths=(0, 1, 1, 1, 1), groups=8, codebook_size=2048, latent_channels=32
)


def train_tiny(config: TinyConfig) -> Path:
    """Run every stage that is not finished in `config.work`; returns the folder of the finished model.

    Raises UserError when the work folder belongs to other settings.
    """
    settings = {name: value for name, value in plain(config).items() if name not in ("out", "work")}
    claim(config.work / "config.json", settings, "--work")
    print("model  a small HTC-VLM, from nothing: CLIP, then MGVQ, then answers")
    print(f"data   scenes: {counted(config.images, 'image')} of train, {config.val_images:,} of val")
    print(f"file   {config.out}; what leads to it is kept in {config.work}", flush=True)
    pictures = config.work / "pictures"
    train = _rendered("train", config.images, pictures)
    val = _rendered("val", config.val_images, pictures)
    clip, clip_log = _train_clip(train, val, config.clip, config.work / "clip", seed=config.seed)
    mgvq, mgvq_log = _train_mgvq(train, val, config.mgvq, config.work / "mgvq", seed=config.seed)

    torch.manual_seed(config.seed)
    model = _with_towers(empty_model(), clip, mgvq)
    features = config.work / "features"
    train_features = cached_features(model, train, features, "train")
    val_features = cached_features(model, val, features, "val")
    stage = config.work / "answers"
    answers_log = train_bottleneck(model, train_features, val_features, config.answers, stage, seed=config.seed)

    logs = {"clip": clip_log, "mgvq": mgvq_log, "answers": answers_log}
    accuracy = answer_accuracy(model, "val", val_features)
    chance = scenes.chance([scenes.scene("val", i) for i in range(config.val_images)])
    model.save_pretrained(config.out)
    scene_words.build_tokenizer().save_pretrained(config.out)
    write_card(config.out, config, accuracy, chance, logs)
    write_curves(config.work / "curves.html", logs)
    return config.out


# ---- pictures


def _rendered(split: str, count: int, folder: Path) -> np.ndarray:
    """(count, R, R, 3) u8, the first `count` scenes of a split; drawn once and memory-mapped from then on."""
    path = folder / f"{split}-{count}-{RESOLUTION}.npy"
    if not path.exists():
        # Ctrl-C reaches all processes; this one answers it. What was not begun is then called off.
        deaf: dict[str, Any] = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
        with replaced(path) as unfinished, ProcessPoolExecutor(**deaf) as pool:
            out = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, RESOLUTION, RESOLUTION, 3))
            images = cast(Generator, pool.map(partial(_pixels, split), range(count), chunksize=64))
            with contextlib.closing(images), command.progress("drawing", "scenes", total=count) as bar:
                for i, image in enumerate(images):
                    out[i] = image
                    bar.advance()
            out.flush()
    return np.load(path, mmap_mode="r")


def _pixels(split: str, index: int) -> np.ndarray:
    return np.asarray(scenes.render(scenes.scene(split, index), RESOLUTION))


def as_pixel_values(images: np.ndarray) -> Tensor:
    """(B, R, R, 3) u8 to (B, 3, R, R) float32 in [0, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


# ---- stage 1: CLIP

_CLIP_SIDES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_attention_heads": _HEADS,
    "hidden_act": "gelu",
}


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(image_size=RESOLUTION, patch_size=_PATCH, num_hidden_layers=4, **_CLIP_SIDES)


def sentence_bank() -> list[str]:
    """Every sentence a caption can hold, sorted."""
    words = [(statement, word) for name, statement in scenes.STATEMENTS.items() for word in scenes.ANSWERS[name]]
    return sorted(statement.format(word) for statement, word in words)


class Truths(NamedTuple):
    """Which of the M sentences of a bank are true of n scenes, as wholes and by region."""

    images: Tensor
    """(n, M) bool."""
    regions: Tensor
    """(n, 1 + most things, M) bool: of the background, then of each thing."""
    owners: Tensor
    """(n, P) u8: the region that each patch shows most of."""


def truths_of(split: str, count: int, bank: list[str]) -> Truths:
    """The truths of the first `count` scenes of a split."""
    column = {sentence: i for i, sentence in enumerate(bank)}
    grid = RESOLUTION // _PATCH
    regions = torch.zeros(count, 1 + len(scenes.COUNTS), len(bank), dtype=torch.bool)
    owners = torch.zeros(count, grid**2, dtype=torch.uint8)
    with command.progress("captions", "scenes", total=count) as bar:
        for i in range(count):
            scene = scenes.scene(split, i)
            for region, sentences in zip(regions[i], scene.region_captions, strict=False):
                region[[column[s] for s in sentences]] = True
            owners[i] = torch.from_numpy(scenes.owners(scene, grid).ravel() + 1)
            bar.advance()
    return Truths(regions.any(1), regions, owners)


def _train_clip(
    train: np.ndarray, val: np.ndarray, schedule: Schedule, folder: Path, *, seed: int
) -> tuple[CaptionCLIP, Log]:
    """Stage 1. `train` and `val` are rendered scenes (n, R, R, 3)."""
    torch.manual_seed(seed)
    tokenizer, bank = scene_words.build_tokenizer(), sentence_bank()
    ids, mask = scene_words.encode_sentences(tokenizer, bank)
    words: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(max_position_embeddings=ids.shape[1], num_hidden_layers=1, **words, **_CLIP_SIDES)
    config = CLIPConfig(vision_config=_vision_config().to_dict(), text_config=text.to_dict(), projection_dim=WIDTH)
    pixels: dict[str, Any] = {"mean": CLIP_MEAN, "deviation": CLIP_STD}
    module = CaptionCLIP(config, torch.from_numpy(ids), torch.from_numpy(mask), layer=_VISION_LAYER, **pixels)

    def batches(split: str, images: np.ndarray) -> Batches:
        truths = truths_of(split, len(images), bank)

        def fetch(rows: np.ndarray) -> dict[str, Tensor]:
            known = {"truths": truths.images[rows], "regions": truths.regions[rows], "owners": truths.owners[rows]}
            return {"pixel_values": as_pixel_values(images[rows]), **known}

        return Batches(len(images), fetch)

    settings: dict[str, Any] = {"seed": seed, "labels": "truths", "metrics": partial(zero_shot, bank=bank)}
    training, validation = batches("train", train), batches("val", val)
    return module, train_stage(module, training, schedule, folder, validation=validation, **settings)


def zero_shot(prediction: EvalPrediction, bank: list[str]) -> dict[str, float]:
    """By question, how often CLIP ranks the true sentence first among that question's sentences."""
    logits, truths = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    accuracy = {}
    for question, statement in scenes.STATEMENTS.items():
        columns = [i for i, s in enumerate(bank) if s.startswith(statement.split("{}")[0]) and _fits(s, question)]
        is_asked = truths[:, columns].sum(1) == 1
        if question != "present" and is_asked.any():
            right = logits[is_asked][:, columns].argmax(1) == truths[is_asked][:, columns].argmax(1)
            accuracy[question] = float(right.mean())
    return accuracy


def _fits(sentence: str, question: str) -> bool:
    """Whether the sentence is an instance of that question's statement ("it is {}" also begins "it is in the ...")."""
    start, end = scenes.STATEMENTS[question].split("{}")
    middle = sentence[len(start) : len(sentence) - len(end)]
    return sentence.endswith(end) and (question != "size" or middle in scenes.SIZES)


# ---- stage 2: MGVQ


def _train_mgvq(
    train: np.ndarray, val: np.ndarray, schedule: Schedule, folder: Path, *, seed: int
) -> tuple[Reconstruction, Log]:
    """Stage 2. `train` and `val` are rendered scenes (n, R, R, 3)."""
    torch.manual_seed(seed)
    module = Reconstruction(_MGVQ_SMALL, seed=seed)

    def batches(images: np.ndarray) -> Batches:
        return Batches(len(images), lambda rows: {"pixel_values": as_pixel_values(images[rows])})

    settings: dict[str, Any] = {"seed": seed, "labels": "pixel_values"}
    return module, train_stage(module, batches(train), schedule, folder, validation=batches(val), **settings)


# ---- stage 3: questions and answers through the one token


class Features(NamedTuple):
    """What the frozen towers say of n images; 16-bit, since that is enough to train on."""

    patches: np.ndarray
    """(n, P, d_clip) f2, CLIP's patches at _VISION_LAYER."""
    q: np.ndarray
    """(n, nq) f2, the flattened quantized latent."""


def empty_model() -> HTCVLM:
    """An HTC-VLM of the shipped size, with random weights."""
    words = scene_words.build_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 4}
    heads: dict[str, Any] = {"num_attention_heads": _HEADS, "num_key_value_heads": _HEADS}
    tokens: dict[str, Any] = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    texts: dict[str, Any] = {"vocab_size": len(words), "max_position_embeddings": 256, "tie_word_embeddings": True}
    parts: dict[str, Any] = {"vision_config": _vision_config(), "mgvq": _MGVQ_SMALL.to_dict()}
    text = LlamaConfig(**sizes, **heads, **tokens, **texts)
    return HTCVLM(HTCConfig(text_config=text, vision_layer=_VISION_LAYER, **parts))


def _with_towers(model: HTCVLM, clip: CaptionCLIP, mgvq: Reconstruction) -> HTCVLM:
    """Put the trained, from now on frozen, towers into the model."""
    model.vision_tower.load_state_dict(clip.clip.vision_model.state_dict())
    assert model.mgvq is not None
    model.mgvq.load_state_dict(mgvq.mgvq.state_dict())
    return model.train()


def cached_features(model: HTCVLM, images: np.ndarray, folder: Path, name: str) -> Features:
    """The frozen towers' features of `images` (n, R, R, 3), computed once and memory-mapped from then on."""
    shapes = {"patches": (len(images), model.config.num_patches, WIDTH), "q": (len(images), model.config.q_size)}
    paths = {key: folder / f"{name}-{key}.npy" for key in shapes}
    if not all(path.exists() for path in paths.values()):
        with contextlib.ExitStack() as stack:
            out = {
                key: np.lib.format.open_memmap(stack.enter_context(replaced(paths[key])), "w+", np.float16, shape)
                for key, shape in shapes.items()
            }
            bar = stack.enter_context(command.progress("features", "scenes", total=len(images)))
            for start in range(0, len(images), 256):
                pixels = as_pixel_values(images[start : start + 256])
                out["patches"][start : start + 256] = model.vision_features(pixels).numpy()
                encoding = model.quantize(pixels)
                assert encoding is not None
                out["q"][start : start + 256] = encoding.quant.flatten(1).numpy()
                bar.advance(len(pixels))
            for array in out.values():
                array.flush()
    return Features(*(np.load(paths[key], mmap_mode="r") for key in Features._fields))


def _tensors(features: Features, rows: np.ndarray | slice) -> Iterator[Tensor]:
    """Patches and q of these rows, in float32."""
    return (torch.from_numpy(part[rows].astype(np.float32)) for part in features)


def _question_batches(split: str, features: Features) -> Batches:
    """Features with all question-answer pairs of their scenes; scene i of the split is row i."""
    tokenizer = scene_words.build_tokenizer()
    pairs = [scene_words.encode_answers(tokenizer, scenes.scene(split, i)) for i in range(len(features.q))]
    ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        patches, q = _tensors(features, rows)
        return {"vision_features": patches, "q": q, "input_ids": ids[rows], "labels": labels[rows]}

    return Batches(len(ids), fetch)


def train_bottleneck(
    model: HTCVLM, train: Features, val: Features, schedule: Schedule, folder: Path, *, seed: int
) -> Log:
    """Stage 3, in place: P_v, P_d, <voco> and the LLaMA; the towers stay as they are."""
    # For texts of a dozen tokens SDPA's backward on a CPU takes as long as all the rest together.
    model.language_model.set_attn_implementation("eager")
    training, validation = _question_batches("train", train), _question_batches("val", val)
    log = train_stage(model, training, schedule, folder, seed=seed, validation=validation, labels="labels")
    model.language_model.set_attn_implementation("sdpa")
    return log


# ---- what came of it


def answer_accuracy(model: HTCVLM, split: str, features: Features) -> dict[str, float]:
    """By question, the share of scenes whose generated answer equals the true one, word for word."""
    tokenizer = scene_words.build_tokenizer()
    truth = [scenes.scene(split, i).answers for i in range(len(features.q))]
    right: dict[str, list[bool]] = {question: [] for question in scenes.QUESTIONS}
    model.eval()
    longest = scene_words.MAX_ANSWER + 1
    with command.progress("asking", "scenes", total=len(truth)) as bar:
        for start in range(0, len(truth), 250):
            rows = slice(start, start + 250)
            with torch.no_grad():
                compressed = model.compress(*model.hybrid(*_tensors(features, rows)))
            for question, words in scenes.QUESTIONS.items():
                prompt = tokenizer(words, return_tensors="pt").input_ids.expand(len(compressed.hidden), -1)
                answers = model.generate(compressed=compressed, input_ids=prompt, max_new_tokens=longest)
                texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
                right[question] += [
                    answer.strip() == true[question]
                    for answer, true in zip(texts, truth[rows], strict=True)
                    if question in true
                ]
            bar.advance(len(truth[rows]))
    return {question: float(np.mean(hits)) for question, hits in right.items()}
