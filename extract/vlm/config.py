"""The configuration of an HTC-VLM: CLIP, MGVQ, LLaMA and what joins them.

Knows sizes and how they depend on each other. Does not build or run anything.
"""

import math
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, NamedTuple, get_args

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PretrainedConfig
from transformers.configuration_utils import SubConfigSpec

from htc_probe.extract.images import CLIP_MEAN, Fit, Frame, Resample
from htc_probe.extract.vlm.mgvq import MGVQ_F16C32_G8, MGVQConfig
from htc_probe.extract.vlm.star import TOPOLOGIES, Topology

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Projector = Literal["linear", "mlp2x_gelu"]
Anchors = Literal["mgvq", "random", "attended", "kmeans"]
AnchorPlace = Literal["before", "after"]


class Keys(NamedTuple):
    """What every key of <voco>'s attention is, in the order of an attention row; each of length S."""

    roles: tuple[str, ...]
    """`prefix`, `anchor`, `patch`, `text` (between the image and <voco>) or `voco`."""
    rows: tuple[int, ...]
    """Row of a patch in its grid, from the top; -1 for anything else."""
    cols: tuple[int, ...]
    """Column of a patch, from the left; -1 for anything else."""


class HTCConfig(PretrainedConfig):
    """Configuration of an `HTCVLM`. Without arguments the parts have the defaults of their own libraries.

    Raises ValueError for numbers that do not fit each other.
    """

    model_type = "htc_vlm"
    sub_configs_defaults = {"vision_config": SubConfigSpec(CLIPVisionConfig), "text_config": SubConfigSpec(LlamaConfig)}

    vision_config: dict | CLIPVisionConfig | None = None
    """The frozen CLIP vision tower; its `image_size` (pixels a side) is that of the whole model."""
    text_config: dict | LlamaConfig | None = None
    """The language model; its `hidden_size` is d."""
    mgvq: dict | None = None
    """The fields of an `MGVQConfig`; the official mgvq-f16c32-g8 by default, None where no anchor comes from MGVQ."""
    vision_layer: int = -2
    """Which hidden state of CLIP the patches are, as in Hugging Face: 0 the embedding, -1 the last layer."""
    projector: Projector = "mlp2x_gelu"
    """P_v, from CLIP to the language model: `linear`, or LLaVA-1.5's two layers, `mlp2x_gelu`."""
    num_anchors: int = 4
    """Anchors (v_d) beside the patches; 0 for none."""
    anchors: Anchors = "mgvq"
    """Where they come from: MGVQ's codes, or, continuous, picks among the patches (`extract.vlm.picks`)."""
    anchor_place: AnchorPlace = "before"
    """Whether the anchors stand before or after the patches."""
    topology: Topology = "star"
    """What hybrid tokens see: `star` themselves, `causal` earlier ones (VoCo-LLaMA), `full` each other. In
    `uncompressed` (LLaVA-1.5) the text reads all of them, and <voco> is just the token after the image."""
    prefix_ids: tuple[int, ...] | list[int] = ()
    """Tokens of the text before the image, the same for every image."""
    infix_ids: tuple[int, ...] | list[int] = ()
    """Tokens of the text between the image and <voco> (VoCo-LLaMA has a newline there)."""
    image_mean: tuple[float, ...] | list[float] = CLIP_MEAN
    image_std: tuple[float, ...] | list[float] = CLIP_STD
    """What CLIP's input is normalised with, per channel, of values in [0, 1]."""
    image_fit: Fit = "pad"
    """How an image becomes square: `pad` with the mean colour (LLaVA-1.5's training), `crop` or `stretch`."""
    image_resize: int | None = None
    """Pixels of the resized square, or with `crop` of the shorter side, whose middle is kept; None: `image_size`."""
    image_resample: Resample = "bicubic"
    """The filter of Pillow that resizes it."""

    def __post_init__(self, **kwargs: Any) -> None:
        mgvq: Any = None
        if self.num_anchors and self.anchors == "mgvq":
            mgvq = MGVQ_F16C32_G8 if self.mgvq is None else self.mgvq
            mgvq = _jsonable(asdict(mgvq) if is_dataclass(mgvq) and not isinstance(mgvq, type) else mgvq)
        self.mgvq = mgvq
        self.image_mean, self.image_std = tuple(self.image_mean), tuple(self.image_std)
        self.prefix_ids, self.infix_ids = tuple(self.prefix_ids), tuple(self.infix_ids)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def vision(self) -> CLIPVisionConfig:
        assert isinstance(self.vision_config, CLIPVisionConfig)
        return self.vision_config

    @property
    def text(self) -> LlamaConfig:
        assert isinstance(self.text_config, LlamaConfig)
        return self.text_config

    @property
    def mgvq_config(self) -> MGVQConfig | None:
        """None where no anchor comes from MGVQ."""
        return None if self.mgvq is None else MGVQConfig(**self.mgvq)

    @property
    def image_size(self) -> int:
        """Pixels a side, R."""
        return _side(self.vision.image_size)

    @property
    def frame(self) -> Frame:
        """How an image becomes the input of this model, for `extract.images`."""
        return Frame(self.image_size, self.image_fit, tuple(self.image_mean), self.image_resize, self.image_resample)

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // _side(self.vision.patch_size)

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def code_shape(self) -> tuple[int, int, int] | None:
        """(h, w, groups) of the MGVQ codes; None without MGVQ."""
        if self.mgvq_config is None:
            return None
        side = self.mgvq_config.latent_size(self.image_size)
        return side, side, self.mgvq_config.groups

    @property
    def q_size(self) -> int:
        """Numbers in q, the flattened quantized latent; 0 without MGVQ."""
        if self.mgvq_config is None:
            return 0
        return self.mgvq_config.latent_size(self.image_size) ** 2 * self.mgvq_config.latent_channels

    @property
    def sequence(self) -> int:
        """Keys of <voco>, S: prefix, anchors, patches, infix, <voco>. Text continues at this position."""
        return len(self.prefix_ids) + self.num_anchors + self.num_patches + len(self.infix_ids) + 1

    @property
    def vision_depth(self) -> int:
        """`vision_layer` counted from 0: how many layers of CLIP run."""
        layers = self.vision.num_hidden_layers
        return self.vision_layer if self.vision_layer >= 0 else layers + 1 + self.vision_layer

    def keys_of_voco(self) -> Keys:
        """Role, row and column of every key."""
        cells = [("patch", row, col) for row in range(self.grid) for col in range(self.grid)]
        anchors = [("anchor", -1, -1)] * self.num_anchors
        hybrid = anchors + cells if self.anchor_place == "before" else cells + anchors
        prefix, infix = [("prefix", -1, -1)] * len(self.prefix_ids), [("text", -1, -1)] * len(self.infix_ids)
        roles, rows, cols = zip(*prefix, *hybrid, *infix, ("voco", -1, -1), strict=True)
        return Keys(roles, rows, cols)

    def _check(self) -> None:
        size, patch = self.image_size, _side(self.vision.patch_size)
        if size % patch:
            raise ValueError(f"image_size {size} is not a multiple of CLIP's patch_size {patch}; change either")
        if self.mgvq_config is not None:
            self.mgvq_config.latent_size(size)
        layers = self.vision.num_hidden_layers
        if not 0 <= self.vision_depth <= layers:
            raise ValueError(
                f"vision_layer {self.vision_layer} is not a hidden state of a CLIP of {layers} layers "
                f"(0 to {layers}, or {-layers - 1} to -1 from the end)"
            )
        for name, value, choices in (
            ("projector", self.projector, get_args(Projector)),
            ("topology", self.topology, TOPOLOGIES),
            ("image_fit", self.image_fit, get_args(Fit)),
            ("image_resample", self.image_resample, get_args(Resample)),
            ("anchors", self.anchors, get_args(Anchors)),
            ("anchor_place", self.anchor_place, get_args(AnchorPlace)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; it is one of {', '.join(choices)}")
        if self.image_resize is not None and self.image_resize < size:
            raise ValueError(f"image_resize is {self.image_resize}; it is {size} (image_size) or more, or none")
        most = self.num_patches if self.anchors != "mgvq" else math.inf
        if not 0 <= self.num_anchors <= most:
            raise ValueError(f"num_anchors is {self.num_anchors}; it is 0 to {most} (the paper has 4)")
        if self.infix_ids and self.topology in ("star", "full"):
            raise ValueError(
                f"infix_ids {self.infix_ids} are text that sees what is before it, which {self.topology} has not; use "
                "topology causal or uncompressed"
            )
        for name, ids in (("prefix_ids", self.prefix_ids), ("infix_ids", self.infix_ids)):
            if not all(0 <= token < self.text.vocab_size for token in ids):
                raise ValueError(f"{name} {ids} are not all within the vocabulary of {self.text.vocab_size} tokens")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean {self.image_mean} and image_std {self.image_std} need one value for each of "
                "the 3 channels, std above 0"
            )
        if self.sequence >= self.text.max_position_embeddings:
            raise ValueError(
                f"{self.sequence} image positions leave no room for text in max_position_embeddings "
                f"{self.text.max_position_embeddings} of text_config; raise that or make the image smaller"
            )


def _side(size: Any) -> int:
    """One side of a square given as a number or a pair."""
    sides = {int(size)} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{size} is not a square; images and patches of this model are square")
    return sides.pop()


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    """With lists for tuples, so that a config equals itself after a trip through JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


AutoConfig.register(HTCConfig.model_type, HTCConfig)
