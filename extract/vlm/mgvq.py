"""MGVQ: the image tokenizer behind the semantic channel (MGVQ-f16c32, a group-quantised DC-AE).

Knows pixels, latents, codes and the key names of the official `.pt` checkpoints. Knows nothing about
CLIP, language models, image files or runs. Encoder and decoder are diffusers' DC-AE modules; here are the
renaming of keys, the grouped 1x1 convolutions, the group quantizer and its losses.

Shape suffixes: B images, h w latent rows and columns, G groups, K codes a group, c numbers a code,
N = B*h*w positions.
"""

import pickle
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_dc import Decoder, Encoder
from torch import Tensor, nn

from htc_probe.extract.errors import UserError

# The search for the nearest codes holds at most this many similarities at once (4 bytes each: 64 MiB).
SEARCH_ENTRIES = 2**24


@dataclass(frozen=True)
class MGVQConfig:
    """The architecture of an MGVQ; JSON-able with `to_dict()` and back with `MGVQConfig(**d)`.

    Stage i works at 1/2**i of the image's resolution. The last `attention_stages` stages are EfficientViT-GLU
    blocks, those before are ResBlocks. Raises ValueError where the numbers do not fit each other.
    """

    widths: tuple[int, ...]
    """Channels per stage, for encoder and decoder."""
    depths: tuple[int, ...]
    """Blocks per encoder stage; 0 in the first merges it into the input convolution, the others need 1."""
    groups: int
    """Slices the latent channels are cut into; each has its own codebook."""
    codebook_size: int
    """Codes of all groups together."""
    latent_channels: int = 32
    decoder_depths: tuple[int, ...] = ()
    """Blocks per decoder stage; left empty, the same as `depths`, which then stands here."""
    attention_stages: int = 2
    head_dim: int = 32
    """Channels per attention head of the EfficientViT blocks."""

    def __post_init__(self) -> None:
        # Lists come from JSON; tuples keep the config hashable and equal to the one that was saved.
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "decoder_depths", tuple(self.decoder_depths) or self.depths)
        widths, stages = self.widths, len(self.widths)
        if stages < 2 or min(widths) < 1:
            raise ValueError(f"widths={widths}: expected at least two stages of positive width")
        for name, depths in (("depths", self.depths), ("decoder_depths", self.decoder_depths)):
            if len(depths) != stages or depths[0] < 0 or min(depths[1:], default=0) < 1:
                raise ValueError(
                    f"{name}={depths}: expected {stages} numbers, one per width; the first may be 0, "
                    "the others must be at least 1"
                )
        if not 0 <= self.attention_stages <= stages:
            raise ValueError(f"attention_stages={self.attention_stages}: expected 0 to {stages}, all of the stages")
        first = 0 if self.depths[0] or self.decoder_depths[0] else 1
        for i in range(first, stages - 1):
            if 4 * widths[i] % widths[i + 1]:
                raise ValueError(
                    f"widths={widths}: stage {i + 1} is {widths[i + 1]} wide, but the shortcut from stage "
                    f"{i} averages 4 x {widths[i]} = {4 * widths[i]} channels into it, which must divide "
                    f"evenly; for example {widths[i]} or {2 * widths[i]}"
                )
        for i in range(1, stages):
            _require_multiple(f"widths[{i}]", widths[i], 4, "pixel unshuffling makes 4 channels of one")
        for i in range(stages - self.attention_stages, stages):
            _require_multiple(f"widths[{i}]", widths[i], self.head_dim, "head_dim of its attention blocks")
        _require_multiple("widths[-1]", widths[-1], self.latent_channels, "latent_channels")
        _require_multiple("latent_channels", self.latent_channels, self.groups, "groups")
        _require_multiple("codebook_size", self.codebook_size, self.groups, "groups; all share the total")

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return 2 ** (len(self.widths) - 1)

    @property
    def code_dim(self) -> int:
        """Numbers in one code."""
        return self.latent_channels // self.groups

    @property
    def codes_per_group(self) -> int:
        return self.codebook_size // self.groups

    def latent_size(self, image_size: int) -> int:
        """Latent positions along a side of `image_size` pixels (336 -> 21); ValueError if not whole."""
        if image_size < 1 or image_size % self.downsampling:
            raise ValueError(
                f"an image side of {image_size} pixels: expected a multiple of {self.downsampling}; "
                "pad or resize the image"
            )
        return image_size // self.downsampling

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _require_multiple(name: str, value: int, unit: int, reason: str) -> None:
    if unit < 1 or value < 1 or value % unit:
        raise ValueError(f"{name} is {value}: expected a positive multiple of {unit} ({reason})")


def _official(stages: int, groups: int, codebook_size: int) -> MGVQConfig:
    return MGVQConfig(
        widths=(128, 256, 512, 512, 1024, 1024)[:stages],
        depths=(0, 4, 8, 2, 2, 2)[:stages],
        decoder_depths=(0, 5, 10, 2, 2, 2)[:stages],
        groups=groups,
        codebook_size=codebook_size,
        latent_channels=32,
        attention_stages=stages - 3,
    )


MGVQ_F16C32_G8 = _official(5, 8, 16384)
"""The official `mgvq-f16c32-g8`, the tokenizer of HTC-VLM."""

PRESETS = {
    "mgvq-f8c32-g4": _official(4, 4, 32768),
    "mgvq-f8c32-g8": _official(4, 8, 16384),
    "mgvq-f16c32-g4": _official(5, 4, 32768),
    "mgvq-f16c32-g8": MGVQ_F16C32_G8,
    "mgvq-f16c32-g4-mix": _official(5, 4, 32768),
    "mgvq-f32c32-g8-mix": _official(6, 8, 16384),
}
"""The six checkpoints of the official model zoo by name (`mgvq_f8c32_g4.pt`, ...): f is the downsampling, c the latent
channels, g the groups; `mix` differs in its training data alone."""


class MGVQEncoding(NamedTuple):
    """What `MGVQ.encode` knows about a batch of images."""

    latent: Tensor
    """(B, C, h, w), after `quant_conv`, before quantization."""
    codes: Tensor
    """(B, h, w, G) int64, each 0 to K-1: an index into its own group's codebook."""
    quant: Tensor
    """(B, C, h, w), the L2-normalised codes; every slice of C/G channels has norm 1."""


class MGVQLosses(NamedTuple):
    """The training terms of `MGVQ.losses`, each a scalar, and what they were computed from."""

    reconstruction: Tensor
    """Mean absolute error of the pixels, in the units of [-1, 1]."""
    codebook: Tensor
    """Mean squared difference that moves the codes to the encoder's (detached) output."""
    commitment: Tensor
    """The same number, moving the encoder to the (detached) codes."""
    codes: Tensor
    """(B, h, w, G) int64."""


class GroupQuantized(NamedTuple):
    """A quantized latent; `slices` and `nearest` are in float32."""

    quant: Tensor
    """(B, C, h, w) in the latent's dtype: the value of `nearest`, the gradient of `slices`."""
    codes: Tensor
    """(B, h, w, G) int64."""
    slices: Tensor
    """(B, h, w, G, c), the L2-normalised slices of the latent."""
    nearest: Tensor
    """(B, h, w, G, c), the L2-normalised code of each slice; its gradient reaches the codebook."""


def group_quantize(latent: Tensor, codebook: Tensor, groups: int) -> GroupQuantized:
    """Replace each group's slice of the latent by the nearest code of that group, both L2-normalised.

    `latent` (B, C, h, w); `codebook` (G*K, C/G), the groups one after the other. The search runs in float32
    whatever the dtypes or an enclosing autocast, a few positions at a time, so that its memory is bounded.
    The gradient is the straight-through one of van den Oord et al. 2017 (arXiv 1711.00937), section 3.2,
    taken at the normalised slice.
    """
    B, C, h, w = latent.shape
    group_G = torch.arange(groups, device=latent.device)
    with torch.autocast(latent.device.type, enabled=False):
        slices_BhwGc = F.normalize(latent.float().movedim(1, -1).unflatten(-1, (groups, -1)), dim=-1)
        codebook_GKc = F.normalize(codebook.float(), dim=-1).unflatten(0, (groups, -1))
        codes_NG = _nearest_codes(slices_BhwGc.detach().flatten(0, 2), codebook_GKc.detach())
        nearest_BhwGc = codebook_GKc[group_G, codes_NG].view_as(slices_BhwGc)
        # x - x.detach() is exactly zero: the value stays the code's, to the last bit.
        quant_BhwGc = nearest_BhwGc.detach() + (slices_BhwGc - slices_BhwGc.detach())
        quant = quant_BhwGc.reshape(B, h, w, C).movedim(-1, 1).to(latent.dtype)
    return GroupQuantized(quant, codes_NG.view(B, h, w, groups), slices_BhwGc, nearest_BhwGc)


def _nearest_codes(slices_NGc: Tensor, codebook_GKc: Tensor) -> Tensor:
    """(N, G) int64. Between unit vectors the nearest is the one of largest inner product."""
    positions = max(1, SEARCH_ENTRIES // (codebook_GKc.shape[0] * codebook_GKc.shape[1]))
    parts = slices_NGc.split(positions)
    return torch.cat([torch.einsum("ngc,gkc->ngk", part, codebook_GKc).argmax(-1) for part in parts])


class MGVQ(nn.Module):
    """Image autoencoder with a group-quantised latent. Starts with random weights; see `load_official`."""

    def __init__(self, config: MGVQConfig) -> None:
        super().__init__()
        self.config = config
        resblocks = len(config.widths) - config.attention_stages
        shared: dict[str, Any] = {
            "in_channels": 3,
            "latent_channels": config.latent_channels,
            "attention_head_dim": config.head_dim,
            "block_type": ("ResBlock",) * resblocks + ("EfficientViTBlock",) * config.attention_stages,
            "block_out_channels": config.widths,
            "qkv_multiscales": ((),) * len(config.widths),
        }
        self.encoder = Encoder(layers_per_block=config.depths, **shared)
        in_decoder: dict[str, Any] = {
            "norm_type": ("batch_norm",) * resblocks + ("rms_norm",) * config.attention_stages,
            "act_fn": ("relu",) * resblocks + ("silu",) * config.attention_stages,
        }
        self.decoder = Decoder(layers_per_block=config.decoder_depths, **in_decoder, **shared)
        channels = config.latent_channels
        self.quant_conv = nn.Conv2d(channels, channels, 1, groups=config.groups)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1, groups=config.groups)
        self.codebook = nn.Parameter(F.normalize(torch.randn(config.codebook_size, config.code_dim), dim=-1))

    def encode(self, pixels: Tensor) -> MGVQEncoding:
        """Codes of `pixels` (B, 3, H, W) in [-1, 1]; ValueError if a side is no multiple of the downsampling.

        Differentiable (straight-through): wrap it in `torch.no_grad()` for inference.
        """
        latent = self._latent(pixels)
        quantized = group_quantize(latent, self.codebook, self.config.groups)
        return MGVQEncoding(latent, quantized.codes, quantized.quant)

    def decode(self, quant: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1] but not clipped, of a quantized latent (B, C, h, w)."""
        return self.decoder(self.post_quant_conv(quant))

    def losses(self, pixels: Tensor) -> MGVQLosses:
        """Terms to train on `pixels` (B, 3, H, W) in [-1, 1]; the caller weighs and adds them.

        L1 reconstruction, and the codebook and commitment losses of van den Oord et al. 2017 (equation 3), on
        L2-normalised slices and codes, averaged over all their numbers.
        """
        quantized = group_quantize(self._latent(pixels), self.codebook, self.config.groups)
        return MGVQLosses(
            reconstruction=F.l1_loss(self.decode(quantized.quant), pixels),
            codebook=F.mse_loss(quantized.nearest, quantized.slices.detach()),
            commitment=F.mse_loss(quantized.slices, quantized.nearest.detach()),
            codes=quantized.codes,
        )

    @torch.no_grad()
    def reseed_dead_codes(self, latent: Tensor, used: Tensor, generator: torch.Generator) -> int:
        """Replace the codes that are not `used` (G, K) bool by random slices of `latent` (B, C, h, w).

        Returns how many. The slices are drawn without repetition while there are enough of them. Collect
        `used` over many batches with `used[torch.arange(G), codes] = True`. An optimizer keeps its old
        moments for the replaced codes.
        """
        groups, K = self.config.groups, self.config.codes_per_group
        if used.shape != (groups, K):
            raise ValueError(f"used has shape {tuple(used.shape)}: expected (groups, codes a group) = {(groups, K)}")
        slices_NGc = group_quantize(latent, self.codebook, groups).slices.flatten(0, 2)
        codebook_GKc = self.codebook.view(groups, K, -1)
        for g in range(groups):
            dead = (~used[g]).nonzero().squeeze(-1).to(latent.device)
            order = torch.randperm(len(slices_NGc), generator=generator, device=generator.device)
            chosen = order[torch.arange(len(dead), device=order.device) % len(order)].to(latent.device)
            codebook_GKc[g, dead] = slices_NGc[chosen, g].to(codebook_GKc.dtype)
        return int((~used).sum())

    def load_official(self, path: str | Path) -> "MGVQ":
        """Load an official `.pt` checkpoint, `{"model": state_dict}`, and return self.

        Every key and shape is checked first: UserError names what does not fit, and the weights stay as
        they were.
        """
        layout = _official_layout(self)
        official = _read_official(Path(path), layout)
        state = {}
        for key, entry in layout.items():
            parts = official[key].chunk(len(entry.names)) if len(entry.names) > 1 else (official[key],)
            for name, part in zip(entry.names, parts, strict=True):
                state[name] = part.squeeze((-2, -1)) if entry.is_matrix else part
        self.load_state_dict(state)
        return self

    def _latent(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}: expected (images, 3, height, width)")
        for side in pixels.shape[2:]:
            self.config.latent_size(side)
        return self.quant_conv(self.encoder(pixels))


# The official checkpoints: names of their tensors, and the check of a file against them.

_IGNORED = {"quantize.codebook_used", "quantize.embed_prob"}  # training statistics

_EDGES = {
    "codebook": "quantize.embedding.weight",
    "encoder.conv_in.": "encoder.project_in.conv.",
    "encoder.conv_out.": "encoder.project_out.main.op_list.0.conv.",
    "decoder.conv_in.": "decoder.project_in.main.conv.",
    "decoder.norm_out.": "decoder.project_out.op_list.0.",
    "decoder.conv_out.": "decoder.project_out.op_list.2.conv.",
}

_IN_STAGE = {
    "conv1.": "main.conv1.conv.",
    "conv2.": "main.conv2.conv.",
    "norm.": "main.conv2.norm.",
    "conv.": "main.conv.conv.",
    "attn.to_q.": "context_module.main.qkv.conv.",
    "attn.to_k.": "context_module.main.qkv.conv.",
    "attn.to_v.": "context_module.main.qkv.conv.",
    "attn.to_out.": "context_module.main.proj.conv.",
    "attn.norm_out.": "context_module.main.proj.norm.",
    "conv_out.conv_inverted.": "local_module.main.inverted_conv.conv.",
    "conv_out.conv_depth.": "local_module.main.depth_conv.conv.",
    "conv_out.conv_point.": "local_module.main.point_conv.conv.",
    "conv_out.norm.": "local_module.main.point_conv.norm.",
}


class _OfficialTensor(NamedTuple):
    """Where one tensor of the file belongs."""

    names: list[str]
    """Our tensors, which are equal chunks of its first axis."""
    shape: tuple[int, ...]
    """Its shape in the file."""
    is_matrix: bool
    """Ours are matrices where the file has 1x1 convolutions."""


def _official_name(name: str) -> str:
    block = re.match(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(\d+)\.", name)
    start, end, renamed = "", name, _EDGES
    if block:
        side, stage, index = block.groups()
        start, end, renamed = f"{side}.stages.{stage}.op_list.{index}.", name[block.end() :], _IN_STAGE
    for ours, theirs in renamed.items():
        if end.startswith(ours):
            return start + theirs + end.removeprefix(ours)
    return name  # quant_conv, post_quant_conv


def _official_layout(model: MGVQ) -> dict[str, _OfficialTensor]:
    """Official name -> the tensors of the model it holds, in the order in which the file has them."""
    layout: dict[str, _OfficialTensor] = {}
    for name, tensor in model.state_dict().items():
        key = _official_name(name)
        names = [*layout[key].names, name] if key in layout else [name]
        is_matrix = ".attn.to_" in name
        shape = (len(names) * tensor.shape[0], tensor.shape[1], 1, 1) if is_matrix else tuple(tensor.shape)
        layout[key] = _OfficialTensor(names, shape, is_matrix)
    return layout


def _read_official(path: Path, layout: dict[str, _OfficialTensor]) -> dict[str, Tensor]:
    """The file's tensors by official name; UserError unless they are exactly those of the layout."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read it ({error.strerror}); give the path of an official MGVQ .pt file"
        ) from None
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: no PyTorch file of plain tensors ({type(error).__name__}); "
            "download the official MGVQ .pt file again"
        ) from error
    official = content.get("model") if isinstance(content, dict) else None
    if not isinstance(official, dict):
        raise UserError(f'{path}: holds no {{"model": state_dict}}; give an official MGVQ .pt file')
    official = {key: value for key, value in official.items() if key not in _IGNORED}

    def shape_of(key: str) -> tuple[int, ...] | str:
        value = official[key]
        return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__

    misshaped = [
        f"{key} {shape_of(key)} instead of {entry.shape}"
        for key, entry in layout.items()
        if key in official and shape_of(key) != entry.shape
    ]
    problems = {
        "missing": [key for key in layout if key not in official],
        "unexpected": [str(key) for key in official if key not in layout],
        "mis-shaped": misshaped,
    }
    if any(problems.values()):
        counts = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in problems.items() if keys)
        raise UserError(
            f"{path}: is not a checkpoint of this MGVQ ({counts}); use the file's own config, or another file"
        )
    return official


def _first(keys: list[str], limit: int = 3) -> str:
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")
