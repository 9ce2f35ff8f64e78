"""From a LLaVA checkpoint to a trained HTC-VLM: build, train, save. Knows the order of things and what is trained.

The recipe is VoCo-LLaMA's. transformers' Trainer runs it, on one device or, under torchrun or accelerate, on many.
"""

import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from htc_probe.extract import models
from htc_probe.extract.errors import UserError
from htc_probe.extract.files import replaced
from htc_probe.extract.training import instruction
from htc_probe.extract.training.config import FinetuneConfig, plain
from htc_probe.extract.training.conversations import Conversation, Encoder, read_conversations, scene_conversations
from htc_probe.extract.training.stage import EVERY_RUN, claim, last_checkpoint, learn
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.mgvq import MGVQ, PRESETS
from htc_probe.extract.vlm.model import HTCVLM
from htc_probe.extract.words import counted

_ANCHORS = 4
_RECORD = "training.json"
# Settings of a LLaVA that the model built from it keeps, beside its parts.
_KEPT = ("vision_layer", "projector", "image_mean", "image_std", "image_fit", "image_resize", "image_resample")
_LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Settings that change where or how fast a run goes, not what it computes. Which rows are left out is another matter:
# their number is kept, and an image that turns out damaged late must not cost the run.
_FREE = {"out", "images", "device_batch", "gradient_checkpointing", "save_steps", "workers", "on_error"}


def finetune(config: FinetuneConfig) -> Path:
    """Train as `config` says, from its last checkpoint if there is one; returns the folder of the finished model.

    The folder is an HTC-VLM (LoRA merged) with its tokenizer and training.json, the settings and losses. A run that is
    finished there is not repeated. Raises UserError for settings that do not fit, also those the folder was begun with.
    """
    _check(config)
    first = int(os.environ.get("RANK", "0")) == 0  # of all processes; the one that writes and talks
    rows = _rows(config, report=config.out / instruction.MISSING if first else None)
    if first:
        settings = {name: value for name, value in plain(config).items() if name not in _FREE}
        claim(config.out / "settings.json", settings | {"rows": len(rows)}, "--out")
    if is_finished(config):
        return config.out
    model, tokenizer = build(config)
    data = _instructions(config, rows, model.config, tokenizer, talk=first)
    trainer = _trainer(config, model, data)
    if first:
        _announce(config, trainer)
    try:
        learn(trainer, "fine-tuning", shown=first)
    except UserError as error:  # that of a process that reads images comes with its traceback in the message
        last = str(error).strip().splitlines()[-1]
        raise UserError(last.removeprefix("htc_probe.extract.errors.UserError: ")) from error
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if first:
        with torch.device("meta"):
            empty = HTCVLM(model.config)
        empty.save_pretrained(config.out, state_dict=merged(state, config.lora_alpha / config.lora_rank))
        tokenizer.save_pretrained(config.out)
        with replaced(config.out / _RECORD) as unfinished:  # last: its presence says that the run is finished
            record = {"config": plain(config), "log": trainer.state.log_history}
            unfinished.write_text(json.dumps(record, indent=1))
        shutil.rmtree(config.out / "checkpoints")
    trainer.accelerator.wait_for_everyone()
    return config.out


def is_finished(config: FinetuneConfig) -> bool:
    """Whether the model is there."""
    return (config.out / _RECORD).exists()


def build(config: FinetuneConfig) -> tuple[HTCVLM, PreTrainedTokenizerBase]:
    """The model to train, with what is frozen and what is not, and the tokenizer of `init_from`.

    A LLaVA gives the language model, P_v and CLIP; P_d is random, <voco> the mean of the word embeddings (an embedding
    like any other, in the middle of them). A model that has a <voco> already stays as it is. Raises UserError.
    """
    folder = models.find(config.init_from)
    own = models.read_config(folder)
    tokenizer = models.read_tokenizer(folder)
    wanted = _architecture(config, own)
    torch.manual_seed(config.seed)
    mgvq = None
    if wanted is not None and wanted.mgvq_config is not None:
        mgvq = MGVQ(wanted.mgvq_config).load_official(cast(Path, config.mgvq))
    # FSDP shards tensors of one type together.
    narrow = config.train == "lora" and torch.cuda.is_available() and _bfloat16(config) and not _fsdp()
    model = models.load(folder, dtype=torch.bfloat16 if narrow else torch.float32, device="cpu")
    if wanted is not None:
        model = _with_voco(model, wanted, mgvq)
    for part in filter(None, (model.patch_projector, model.anchor_projector)):
        part.float()
    model.voco.data = model.voco.data.float()
    if config.train == "lora":
        add_lora(model, config.lora_rank, config.lora_alpha)
    model.gradient_checkpointing = config.gradient_checkpointing
    # What FSDP shards as one. transformers adds names of CLIP's text tower, and accelerate looks for every one.
    model._no_split_modules = HTCVLM._no_split_modules
    return model.train(), tokenizer


def add_lora(model: HTCVLM, rank: int, alpha: int) -> None:
    """Freeze the language model and put trained float32 updates of `rank` beside its linear layers."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_LORA_LAYERS)
    inject_adapter_in_model(settings, cast(nn.Module, model.language_model))
    for name, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights with LoRA's updates, times `scale`, added; the same weights where there are none."""
    whole = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{stem}.lora_{side}.default.weight"].float() for side in "AB")
            weight = (weight.float() + scale * up @ down).to(weight.dtype)
        whole[name.replace(".base_layer.", ".")] = weight
    return whole


def _architecture(config: FinetuneConfig, own: HTCConfig) -> HTCConfig | None:
    """That of the model to build from a LLaVA whose configuration is `own`; None where `own` stays."""
    wanted = {"topology": config.topology, "anchors": config.anchors, "anchor-place": config.anchor_place}
    if own.topology != "uncompressed":
        has = {"topology": own.topology, "anchors": own.anchors if own.num_anchors else "none"}
        if own.num_anchors:
            has["anchor-place"] = own.anchor_place
        refused = [f"--{name} {value}" for name, value in has.items() if wanted[name] != value]
        if refused:
            words = " ".join(refused)
            raise UserError(f"{config.init_from} has a <voco> of another architecture, which stays: {words}")
        if config.mgvq is not None and own.mgvq is not None:
            raise UserError(f"{config.init_from} has an MGVQ of its own; leave out mgvq {config.mgvq}")
        return None
    if config.anchors == "mgvq" and config.mgvq is None:
        raise UserError(f"{config.init_from} has no MGVQ for the anchors; give an official file with --mgvq")
    try:
        return HTCConfig(
            vision_config=own.vision.to_dict(),
            text_config=own.text.to_dict(),
            **{name: getattr(own, name) for name in _KEPT},
            mgvq=PRESETS[config.mgvq_preset].to_dict(),
            num_anchors=0 if config.anchors == "none" else _ANCHORS,
            anchors="mgvq" if config.anchors == "none" else config.anchors,
            anchor_place=config.anchor_place,
            topology=config.topology,
        )
    except ValueError as error:
        raise UserError(f"{config.init_from} does not go with the settings: {error}") from error


def _with_voco(llava: HTCVLM, wanted: HTCConfig, mgvq: MGVQ | None) -> HTCVLM:
    """The parts of a LLaVA in a model of the `wanted` architecture; what is new is random but for <voco>."""
    wanted.text.tie_word_embeddings = llava.config.text.tie_word_embeddings  # which its files decide
    with torch.device("meta"):
        model = HTCVLM(wanted)
    for name in ("vision_tower", "patch_projector", "language_model"):
        setattr(model, name, getattr(llava, name))
    model.voco = nn.Parameter(llava.language_model.model.embed_tokens.weight.detach().float().mean(0))
    model.mgvq = mgvq
    if model.anchor_projector is not None:
        model.anchor_projector.to_empty(device="cpu")
        for layer in model.anchor_projector:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return model


def _check(config: FinetuneConfig) -> None:
    least = {"epochs": 1, "batch": 1, "device_batch": 1, "lora_rank": 1, "save_steps": 1, "max_length": 2, "workers": 0}
    for name, value in least.items():
        if getattr(config, name) < value:
            raise UserError(f"{name} is {getattr(config, name)}; expected at least {value}")
    if config.max_steps is not None and config.max_steps < 1:
        raise UserError(f"max_steps is {config.max_steps}; expected at least 1, or none for whole epochs")
    if config.learning_rate <= 0 or not 0 <= config.warmup < 1:
        raise UserError(
            f"learning_rate is {config.learning_rate} and warmup {config.warmup}; expected above 0, and 0 to below 1"
        )
    if config.mgvq_preset not in PRESETS:
        raise UserError(f"mgvq_preset is {config.mgvq_preset!r}; expected one of {', '.join(PRESETS)}")
    devices = _devices()
    if config.batch % devices or config.batch // devices % _at_once(config):
        raise UserError(
            f"batch {config.batch} is not a multiple of device_batch {config.device_batch} x {devices} devices; "
            f"change either"
        )
    if devices == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are here: start it with torchrun --nproc_per_node "
            f"{torch.cuda.device_count()} -m htc_probe.extract.training.cli, or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    if _fsdp() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP version 1 cannot run the star; give accelerate launch --fsdp_version 2")


def _devices() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _at_once(config: FinetuneConfig) -> int:
    """Images a device takes at once."""
    return max(1, min(config.device_batch, config.batch // _devices()))


def _fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _bfloat16(config: FinetuneConfig) -> bool:
    if config.dtype != "auto":
        return config.dtype == "bfloat16"
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()


def _rows(config: FinetuneConfig, report: Path | None) -> list[Conversation]:
    if config.data == "scenes":
        return scene_conversations()
    rows = read_conversations(Path(config.data))
    repeats = len(rows) - len({(row.image, row.turns) for row in rows})
    if repeats and report is not None:
        print(f"{repeats} of {len(rows)} rows have the image and the turns of another; all of them are used")
    return instruction.with_images(rows, _images(config), skip=config.on_error == "skip", report=report)


def _images(config: FinetuneConfig) -> Path:
    return Path(config.data).parent if config.images is None else config.images


def _instructions(
    config: FinetuneConfig,
    rows: list[Conversation],
    model: HTCConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    talk: bool,
) -> instruction.Instructions:
    room = model.text.max_position_embeddings - model.sequence
    encode = Encoder(tokenizer, min(config.max_length, room))
    kept = [row for row in rows if encode.keeps(row.turns)]
    if talk and room < config.max_length:
        print(f"texts are cut to {room} tokens, the model's last position, instead of {config.max_length}")
    if talk and encode.plain:
        print("the tokenizer does not know the words of the usual template, so questions stand without it")
    if talk and len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} rows are left out, cut before their first answer")
    if len(kept) < config.batch:
        raise UserError(f"{config.data} has {len(kept)} rows, less than one batch of {config.batch}; lower --batch")
    if config.data == "scenes":
        open_image = partial(instruction.open_scene, model.image_size)
    else:
        open_image = partial(instruction.open_file, _images(config))
    return instruction.Instructions(kept, encode, open_image, model, skip=config.on_error == "skip")


def _trainer(config: FinetuneConfig, model: HTCVLM, data: instruction.Instructions) -> Trainer:
    an_epoch = len(data) // config.batch
    steps = config.epochs * an_epoch if config.max_steps is None else config.max_steps
    arguments = TrainingArguments(
        output_dir=str(config.out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=_at_once(config),
        gradient_accumulation_steps=config.batch // (_at_once(config) * _devices()),
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        warmup_steps=config.warmup,
        bf16=_bfloat16(config),
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=max(1, min(10, steps // 100)),
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        dataloader_num_workers=config.workers,
        ddp_find_unused_parameters=False,
        **EVERY_RUN,
    )
    order = instruction.WholeBatches(len(data), config.batch, steps, config.seed)
    given: dict[str, Any] = {"train_dataset": data, "data_collator": instruction.collate}
    trainer = _Trainer(model=model, args=arguments, callbacks=[_Epochs(an_epoch)], order=order, **given)
    if _fsdp():
        plugin = trainer.accelerator.state.fsdp_plugin
        # Autocast does the rounding, as without FSDP. The policy that accelerate sets in its place would also round
        # the loss, and MGVQ, whose codes change.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        # Every process has the weights. accelerate's way of sending them around knows no buffers, and MGVQ has some.
        plugin.cpu_ram_efficient_loading = False
    return trainer


def _announce(config: FinetuneConfig, trainer: Trainer) -> None:
    args, begun = trainer.args, last_checkpoint(config.out / "checkpoints")
    precision = "bfloat16" if args.bf16 else "float32"
    devices = "" if _devices() == 1 else f"{_devices()} x "
    print(f"model  {config.init_from}, {config.train}, {precision} on {devices}{args.device}")
    rows = counted(len(cast(instruction.Instructions, trainer.train_dataset)), "row")
    print(f"data   {config.data}: {rows}, {counted(args.max_steps, 'step')} of {config.batch}")
    print(f"file   {config.out}" + ("" if begun is None else f"; goes on from {begun}"), flush=True)


class _Trainer(Trainer):
    """The Trainer, with an order of the rows that is the same on any number of devices."""

    def __init__(self, *, order: instruction.WholeBatches, **kwargs: Any) -> None:
        self.order = order
        super().__init__(**kwargs)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        # A cache of rounded weights would keep those that FSDP gives back.
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16, cache_enabled=not _fsdp())

    def _get_train_sampler(self, train_dataset: Any = None) -> instruction.WholeBatches:
        return self.order


class _Epochs(TrainerCallback):
    """Logs count passes over the rows; `WholeBatches` makes them all one pass for the Trainer."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.epoch = state.global_step / self.steps
