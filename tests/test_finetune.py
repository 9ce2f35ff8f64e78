"""Fine-tuning: what is taught, what is trained, that devices, interruptions and LoRA change nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

from htc_probe.extract import models
from htc_probe.extract.data import scenes
from htc_probe.extract.errors import UserError
from htc_probe.extract.training import cli
from htc_probe.extract.training.config import FinetuneConfig
from htc_probe.extract.training.conversations import Encoder, read_conversations, scene_conversations
from htc_probe.extract.training.finetune import _rows as instruction_rows
from htc_probe.extract.training.finetune import add_lora, build, finetune, merged
from htc_probe.extract.training.instruction import Instructions, WholeBatches, collate, open_file, with_images
from htc_probe.extract.training.stage import last_checkpoint
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.mgvq import PRESETS, MGVQConfig
from htc_probe.extract.vlm.model import HTCVLM

MGVQ_FILE = Path(__file__).parent / "golden" / "mgvq_tiny.pt"
MGVQ_TINY = MGVQConfig(widths=(32, 32, 64, 64, 128), depths=(0, 1, 1, 1, 1), groups=8, codebook_size=512)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    """The golden MGVQ file as one more of the official models."""
    monkeypatch.setitem(PRESETS, "tiny", MGVQ_TINY)


@pytest.fixture(scope="module")
def llava(tmp_path_factory, tokenizer):
    """A folder with a small random LLaVA that reads the scenes' words."""
    folder = tmp_path_factory.mktemp("llava")
    sides = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        **sides,
        pad_token_id=0,
        initializer_range=0.1,  # LoRA leaves the head as it is: its logits must have a size
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = HTCVLM(
        HTCConfig(
            vision_config=CLIPVisionConfig(image_size=64, patch_size=16, **sides),
            text_config=text,
            num_anchors=0,
            topology="uncompressed",
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(llava, tmp_path):
    return FinetuneConfig(
        init_from=str(llava),
        mgvq=MGVQ_FILE,
        mgvq_preset="tiny",
        out=tmp_path / "out",
        batch=4,
        device_batch=4,
        max_steps=2,
        workers=0,
        dtype="float32",
        learning_rate=3e-3,
        max_length=120,
    )


def losses(folder):
    log = json.loads((folder / "training.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_the_shipped_model_is_asked_as_it_was_trained(settings, capsys):
    """The command of the guide begins where the model's own training ended, not above the nats of guessing."""
    settings = replace(settings, init_from="htc-tiny", mgvq=None, batch=16, device_batch=16, max_steps=1)
    finetune(replace(settings, learning_rate=1e-9, max_length=2048))
    assert losses(settings.out)[0] < 0.6  # 6.95 in words that it does not know; guessing among 80 has 4.4
    assert "questions stand without it" in capsys.readouterr().out


# ---- rows as batches


def test_text_without_an_image_has_the_loss_of_the_plain_language_model(settings, photos, tokenizer):
    model, _ = build(settings)
    rows = read_conversations(photos / "mix.json")[5:]
    data = Instructions(rows, Encoder(tokenizer, 100), lambda name: Image.open(photos / name), model.config)
    batch = collate([data[i] for i in range(3)])
    assert batch["has_image"].tolist() == [True, False, False]
    assert batch["pixel_values"][0].any() and not batch["pixel_values"][1:].any()
    texts = {name: batch[name][1:] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        ours = model(**{name: value[1:] for name, value in batch.items()}).loss
        plain = model.language_model(**texts).loss
        with_image = model(**(batch | {"has_image": torch.ones(3, dtype=torch.bool)})).loss
    torch.testing.assert_close(ours, plain)
    assert abs(model(**batch).loss - with_image) > 1e-6


def test_rows_that_stand_twice_are_used_and_counted(settings, photos, tmp_path, capsys):
    path = photos / "mix.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, rows[0], rows[6], rows[0]]))
    found = instruction_rows(replace(settings, data=str(path)), report=tmp_path / "missing.txt")
    assert len(found) == len(rows) + 3
    assert f"3 of {len(rows) + 3} rows have the image and the turns of another" in capsys.readouterr().out


def test_missing_images_stop_or_are_left_out_and_listed(photos, tmp_path):
    rows = read_conversations(photos / "mix.json")
    for name in ("coco/1.jpg", "coco/4.jpg"):
        (photos / name).unlink()
    report = tmp_path / "run" / "missing_images.txt"
    with pytest.raises(UserError, match="2 of 6 images are missing .*coco/1.jpg, coco/4.jpg; .*--on-error skip"):
        with_images(rows, photos, skip=False, report=report)
    kept = with_images(rows, photos, skip=True, report=report)
    assert [r.image for r in kept] == [f"coco/{i}.jpg" for i in (0, 2, 3, 5)] + [None, None]
    assert report.read_text() == "coco/1.jpg\ncoco/4.jpg\n"


def test_a_damaged_image_stops_or_the_next_row_takes_its_place(photos, tokenizer, settings, capsys):
    (photos / "coco/2.jpg").write_bytes(b"\xff\xd8 no image")
    rows = read_conversations(photos / "mix.json")
    config = models.read_config(Path(settings.init_from))
    parts = (rows, Encoder(tokenizer, 100), lambda name: open_file(photos, name), config)
    with pytest.raises(UserError, match=r"row 2 \(id 7\): .*coco/2.jpg"):
        Instructions(*parts)[2]
    assert torch.equal(Instructions(*parts, skip=True)[2]["pixel_values"], Instructions(*parts)[3]["pixel_values"])
    assert "coco/2.jpg" in capsys.readouterr().err


def test_every_epoch_has_whole_batches_of_different_rows():
    order = list(WholeBatches(rows=10, batch=4, steps=5, seed=1))
    assert len(order) == 20
    epochs = [order[:8], order[8:16]]
    assert all(len(set(epoch)) == 8 for epoch in epochs) and epochs[0] != epochs[1]
    assert order == list(WholeBatches(10, 4, 5, 1)) != list(WholeBatches(10, 4, 5, 2))


# ---- what is built


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topology": "causal"},
        {"topology": "full"},
        {"anchor_place": "after"},
        {"anchors": "none"},
        {"anchors": "random"},
        {"anchors": "attended"},
        {"anchors": "kmeans"},
        {"train": "lora"},
        {"gradient_checkpointing": False, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_every_option_builds_and_teaches_what_is_trained(settings, options):
    settings = replace(settings, **options)
    model, tokenizer = build(settings)
    assert model.config.topology == settings.topology
    assert model.config.num_anchors == (0 if settings.anchors == "none" else 4)
    assert (model.mgvq is not None) == (settings.anchors == "mgvq")
    rows = scene_conversations(count=2)
    data = Instructions(
        rows, Encoder(tokenizer, 120), lambda name: scenes.render(scenes.scene("train", 0), 64), model.config
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        loss = model(**collate([data[0], data[1]])).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("vision_tower", "mgvq"))
        frozen |= settings.train == "lora" and name.startswith("language_model") and ".lora_" not in name
        assert parameter.requires_grad != frozen, name
        # Every parameter that is trained takes part: DistributedDataParallel waits for all of them.
        assert (parameter.grad is None) == frozen, name
    taught = {"patch_projector.0.weight": model.patch_projector[0].weight, "voco": model.voco}
    if settings.anchors == "mgvq":
        taught["anchor_projector.0.weight"] = model.anchor_projector[0].weight
    assert all(parameter.grad.abs().max() > 0 for parameter in taught.values()), taught.keys()


def test_a_batch_of_texts_alone_reaches_every_parameter(settings, photos, tokenizer):
    model, _ = build(settings)
    data = Instructions(read_conversations(photos / "mix.json"), Encoder(tokenizer, 100), open, model.config)
    model(**collate([data[6], data[7]])).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    assert model.voco.grad.abs().max() == 0


def test_a_llava_keeps_its_parts_and_gets_the_official_mgvq(settings, llava):
    model, _ = build(settings)
    before = models.load(llava, dtype=torch.float32, device="cpu")
    # accelerate shards by these classes and stops at one that the model has not.
    assert {type(module).__name__ for module in model.modules()} >= set(model._no_split_modules)
    for part in ("language_model", "patch_projector", "vision_tower"):
        ours = getattr(model, part).state_dict()
        assert all(torch.equal(ours[name], weight) for name, weight in getattr(before, part).state_dict().items())
    official = torch.load(MGVQ_FILE, weights_only=True)["model"]
    assert torch.equal(model.mgvq.codebook, official["quantize.embedding.weight"])
    torch.testing.assert_close(model.voco.data, before.language_model.model.embed_tokens.weight.mean(0).data)
    again, _ = build(settings)
    other, _ = build(replace(settings, seed=1))
    assert torch.equal(model.anchor_projector[0].weight, again.anchor_projector[0].weight)
    assert not torch.equal(model.anchor_projector[0].weight, other.anchor_projector[0].weight)


def test_lora_merged_is_the_model_that_was_trained(settings):
    model, tokenizer = build(settings)
    add_lora(model, rank=4, alpha=6)
    assert sum(".lora_A." in name for name, _ in model.named_parameters()) == 2 * 7  # layers, linear maps in each
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3)
    plain, _ = build(settings)
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), "input_ids": torch.randint(5, 60, (2, 9))}
    with torch.no_grad():
        wanted, untrained = model(**inputs).logits, plain(**inputs).logits
        plain.load_state_dict(merged(model.state_dict(), 6 / 4))
        torch.testing.assert_close(plain(**inputs).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - untrained).abs().max() > 0.1


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mgvq": None}, "has no MGVQ for the anchors; give an official file with --mgvq"),
        ({"mgvq_preset": "mgvq-f16c32-g8"}, "is not a checkpoint of this MGVQ"),
        ({"mgvq_preset": "mgvq-f9"}, "mgvq_preset is 'mgvq-f9'; expected one of mgvq-f8c32-g4"),
        ({"batch": 6}, "batch 6 is not a multiple of device_batch 4 x 1 devices"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"data": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"init_from": "nowhere"}, "nowhere"),
        ({"max_length": 3}, "scenes has 0 rows, less than one batch of 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, options, said):
    with pytest.raises(UserError) as error:
        finetune(replace(settings, **options))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_fsdp_1_is_refused(settings, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--fsdp_version 2"):
        finetune(settings)


def test_an_htc_vlm_stays_what_it_is(settings, tmp_path):
    start = tmp_path / "start"
    model, tokenizer = build(replace(settings, topology="full", anchor_place="after"))
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    mine = replace(settings, init_from=str(start), topology="full", anchor_place="after", mgvq=None)
    again, _ = build(mine)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    with pytest.raises(UserError, match="which stays: --topology full --anchor-place after"):
        build(replace(mine, topology="star", anchor_place="before"))
    with pytest.raises(UserError, match="has an MGVQ of its own"):
        build(replace(mine, mgvq=MGVQ_FILE))


# ---- runs


@pytest.mark.parametrize("train", ["full", "lora"])
def test_training_lowers_the_loss_and_leaves_the_towers_alone(settings, train, capsys):
    settings = replace(settings, train=train, max_steps=30, batch=8, device_batch=8)
    before, _ = build(replace(settings, train="full"))
    assert finetune(settings) == settings.out
    curve = losses(settings.out)
    assert np.mean(curve[-5:]) < 0.8 * curve[0]
    assert not (settings.out / "checkpoints").exists()

    after = models.load(settings.out, dtype=torch.float32, device="cpu")
    for name, weight in after.state_dict().items():
        same = torch.equal(weight, before.state_dict()[name])
        if name.startswith(("vision_tower", "mgvq")):
            assert same, name
        elif name.endswith(("q_proj.weight", "down_proj.weight", "voco")) or name.startswith(("patch", "anchor")):
            assert not same, name
    written = (settings.out / "model.safetensors").stat().st_mtime_ns
    finetune(settings)  # finished: nothing to do
    assert (settings.out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="seed 0 instead of 1.*--out"):
        finetune(replace(settings, seed=1))


def test_the_command_s_model_is_one_that_htc_extract_runs(settings, photos, tmp_path, capsys):
    from htc_probe.extract import cli as extract_cli

    (photos / "coco/3.jpg").unlink()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'init_from = "{settings.init_from}"\nmgvq = "{MGVQ_FILE}"\nmgvq_preset = "tiny"\ndata = "{photos}/mix.json"\n'
        f'out = "{settings.out}"\nbatch = 4\ndevice_batch = 2\nworkers = 1\nepochs = 3\ndtype = "float32"\n'
    )
    assert cli.main([str(recipe)]) == 2 and "1 of 6 images are missing" in capsys.readouterr().err
    assert cli.main([str(recipe), "--on-error", "skip"]) == 0
    assert f"Wrote {settings.out}" in capsys.readouterr().out
    assert cli.main([str(recipe), "--on-error", "skip"]) == 0
    told = capsys.readouterr().out
    assert f"{settings.out} is there already" in told and "Wrote" not in told and "htc-extract --model" in told
    assert (settings.out / "missing_images.txt").read_text() == "coco/3.jpg\n"
    record = json.loads((settings.out / "training.json").read_text())
    assert record["config"]["epochs"] == 3 and record["config"]["init_from"] == settings.init_from
    assert [entry["epoch"] for entry in record["log"] if "loss" in entry] == [1.0, 2.0, 3.0]  # 7 rows, one batch each
    run = tmp_path / "run.h5"
    extract = ["--model", str(settings.out), "--data", "scenes", "--split", "val", "--limit", "4", "--out", str(run)]
    assert extract_cli.main(extract) == 0 and run.exists()


def test_a_head_of_its_own_stays_through_training(settings, llava, tmp_path):
    """Also where config.json of what the training begins with says otherwise; the new one is right."""
    folder = tmp_path / "start"
    shutil.copytree(llava, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    head = load_file(folder / "model.safetensors")["language_model.lm_head.weight"]
    finetune(replace(settings, init_from=str(folder), learning_rate=1e-9))
    trained = models.load(settings.out, dtype=torch.float32, device="cpu").language_model
    torch.testing.assert_close(trained.lm_head.weight.data, head, atol=1e-6, rtol=0)
    assert (trained.model.embed_tokens.weight - head).abs().max() > 0.1
    assert not models.read_config(settings.out).text.tie_word_embeddings


def test_a_damaged_image_in_the_middle_of_a_run_can_be_skipped_then(settings, photos):
    (photos / "coco/3.jpg").write_bytes(b"\xff\xd8 no image")
    settings = replace(settings, data=str(photos / "mix.json"), max_steps=16, save_steps=1, workers=1, batch=2)
    with pytest.raises(UserError, match=r"mix.json row 3 \(id 7\): .*3.jpg: .*--on-error skip") as error:
        finetune(settings)
    assert "\n" not in str(error.value)
    assert len(losses(finetune(replace(settings, on_error="skip")))) == 16
    with pytest.raises(UserError, match="rows 8 instead of 7"):
        (photos / "coco/3.jpg").unlink()
        finetune(replace(settings, on_error="skip"))


def test_a_checkpoint_that_was_not_written_to_its_end_is_not_continued_from(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((2, "{}"), (10, "{}"), (12, ""), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_accumulated_passes_are_one_batch(settings, photos):
    settings = replace(settings, data=str(photos / "mix.json"), batch=8, max_steps=4)
    folders = [replace(settings, out=settings.out / str(at_once), device_batch=at_once) for at_once in (8, 2)]
    curves = [losses(finetune(each)) for each in folders]
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], abs=1e-5)


@pytest.fixture
def command(settings, photos, tmp_path):
    """`htc-train` in processes of its own, from an HTC-VLM, three epochs of images and texts; lacks `--out`."""
    start = tmp_path / "start"
    model, tokenizer = build(settings)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    return [
        "-m",
        "htc_probe.extract.training.cli",
        "--init-from",
        str(start),
        "--data",
        str(photos / "mix.json"),
        "--batch",
        "4",
        "--max-steps",
        "6",
        "--save-steps",
        "2",
        "--learning-rate",
        "3e-3",
        "--dtype",
        "float32",
        "--max-length",
        "120",
    ]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_losses(settings, command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main([*command[2:], "--workers", "0", "--out", str(whole)]) == 0
    args = [*command[2:], "--workers", "1", "--out", str(killed)]
    process = subprocess.Popen([sys.executable, *command[:2], *args], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    state = killed / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "training.json").exists()
    state = last_checkpoint(killed / "checkpoints") / "trainer_state.json"
    begun = json.loads(state.read_text())
    begun["log_history"][0]["mark"] = "from the checkpoint"
    state.write_text(json.dumps(begun))
    assert cli.main(args) == 0
    assert json.loads((killed / "training.json").read_text())["log"][0]["mark"] == "from the checkpoint"
    assert len(losses(whole)) == 6 and losses(killed) == pytest.approx(losses(whole), abs=1e-6)
    first, second = (models.load(at, dtype=torch.float32, device="cpu").state_dict() for at in (whole, killed))
    assert all(torch.allclose(weight, second[name], atol=1e-6) for name, weight in first.items())


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(settings, command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    args = [*command[2:], "--workers", "0", "--device-batch", "1"]  # some passes of a process are text alone
    assert cli.main([*args, "--out", str(one)]) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command[:2]]
    done = subprocess.run(
        [sys.executable, *launch, *args, "--out", str(two)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Wrote") == 1
    assert losses(two) == pytest.approx(losses(one), abs=1e-5) and len(losses(one)) == 6


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from htc_probe.extract.models import load
from pathlib import Path

dist.init_process_group("gloo")
rank = dist.get_rank()
for topology in ("star", "full"):
    for checkpointing in (False, True):
        plain = load(Path(sys.argv[1]), dtype=torch.float32, device="cpu").train()
        sharded = load(Path(sys.argv[1]), dtype=torch.float32, device="cpu").train()
        for model in (plain, sharded):
            model.config.topology, model.gradient_checkpointing = topology, checkpointing
        for layer in sharded.language_model.model.layers:
            fully_shard(layer)
        fully_shard(sharded)
        draw = torch.Generator().manual_seed(0)
        pixels, ids = torch.rand(4, 3, 64, 64, generator=draw), torch.randint(5, 60, (4, 7), generator=draw)
        mine = slice(2 * rank, 2 * rank + 2)
        wanted = plain(pixels, input_ids=ids, labels=ids).loss
        wanted.backward()
        loss = sharded(pixels[mine], input_ids=ids[mine], labels=ids[mine]).loss
        loss.backward()
        dist.all_reduce(loss.data, dist.ReduceOp.AVG)
        torch.testing.assert_close(loss, wanted)
        for (name, a), b in zip(plain.named_parameters(), sharded.parameters(), strict=True):
            assert isinstance(b, DTensor), name
            if a.requires_grad:
                torch.testing.assert_close(b.grad.full_tensor(), a.grad, rtol=1e-4, atol=1e-6, msg=name)
print("sharded equals plain", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_weights_sharded_over_two_processes_give_the_same_loss_and_gradients(command, tmp_path):
    """FSDP2 gathers a layer's weights for the star too, though its layers are not called as modules."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), command[3]]
    done = subprocess.run([sys.executable, *launch], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("sharded equals plain") == 2
