"""HTC-VLM: an image becomes anchors and patches, these become <voco>, and text reads <voco> alone.

Knows tensors and how the parts fit together. Does not know image files, tokenizers, runs or training loops.
The arithmetic up to <voco> is in `star`; text runs through the stock transformers LLaMA.

pixel_values are (B, 3, R, R) in [0, 1] everywhere; each tower's normalisation is applied in here.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, CLIPVisionModel, DynamicCache, LlamaForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from htc_probe.extract.vlm import star
from htc_probe.extract.vlm.config import HTCConfig
from htc_probe.extract.vlm.mgvq import MGVQ, MGVQEncoding
from htc_probe.extract.vlm.picks import pick_anchors

_IGNORED_LABEL = -100
_GREEDY = {"do_sample": False, "max_new_tokens": 64}


class Hybrid(NamedTuple):
    """The hybrid sequence V_hy, in its two channels."""

    anchors: Tensor
    """(B, A, d), v_d: the semantic channel. A is 0 where the model has none."""
    patches: Tensor
    """(B, P, d), V: the detail channel."""


@dataclass
class HTCOutput(ModelOutput):
    """What `HTCVLM.forward` returns."""

    loss: Tensor | None = None
    """L_HTC in nats a token, where labels were given."""
    logits: Tensor | None = None
    """(B, T, vocabulary) or (B, pairs, T, vocabulary), like `input_ids`."""


class HTCVLM(PreTrainedModel):
    """Hybrid Token Compression VLM (arXiv 2512.08240, section 3).

    CLIP and MGVQ are frozen: without gradients and in eval mode, whatever `train()` says. Trained are P_v,
    P_d, <voco> and the language model.
    """

    config_class = HTCConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = True  # transformers' Trainer then gives num_items_in_batch
    _no_split_modules = ["CLIPEncoderLayer", "LlamaDecoderLayer"]
    _keep_in_fp32_modules_strict = {"mgvq"}  # the codes must not depend on the language model's precision

    config: HTCConfig

    def __init__(self, config: HTCConfig) -> None:
        super().__init__(config)
        d, d_clip = config.text.hidden_size, config.vision.hidden_size
        self.vision_tower = CLIPVisionModel(config.vision)
        self.mgvq = None if config.mgvq_config is None else MGVQ(config.mgvq_config)
        second = [nn.GELU(), nn.Linear(d, d)] if config.projector == "mlp2x_gelu" else []
        self.patch_projector = nn.Sequential(nn.Linear(d_clip, d), *second)
        self.anchor_projector: nn.Sequential | None = None
        if self.mgvq is not None:
            from_q, to_anchors = nn.Linear(config.q_size, d), nn.Linear(d, config.num_anchors * d)
            each = nn.Unflatten(-1, (config.num_anchors, d))
            self.anchor_projector = nn.Sequential(from_q, nn.GELU(), to_anchors, nn.GELU(), each)
        self.voco = nn.Parameter(torch.empty(d))
        self.language_model = LlamaForCausalLM(config.text)
        self.gradient_checkpointing = False
        self.train()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.normal_(self.voco, std=self.config.text.initializer_range)
        elif isinstance(module, MGVQ):
            init.normal_(module.codebook)  # only its direction is used
        elif hasattr(module, "reset_parameters"):
            cast(Any, module).reset_parameters()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable | None = None, every_n_layers: int = 1
    ) -> None:
        # In `compress` and `read`. The layers' own checkpointing takes their cache away, and the text would
        # train without <voco>, with no more than a line in the log.
        self.gradient_checkpointing = enable

    def train(self, mode: bool = True) -> "HTCVLM":
        super().train(mode)
        # Also after from_pretrained, which makes every parameter trainable and then calls eval().
        for frozen in filter(None, (self.vision_tower, self.mgvq)):
            frozen.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """CLIP's patches (B, P, d_clip) at `config.vision_layer`, without CLS; deeper layers do not run.

        Where the anchors are `attended` patches, a last column holds CLS's attention to each patch in the layer
        before, averaged over heads: (B, P, d_clip + 1).
        """
        self._check_pixels(pixel_values)
        mean = pixel_values.new_tensor(self.config.image_mean)[:, None, None]
        std = pixel_values.new_tensor(self.config.image_std)[:, None, None]
        tower = self.vision_tower
        x = tower.pre_layrnorm(tower.embeddings((pixel_values - mean) / std))
        before = x
        for layer in tower.encoder.layers[: self.config.vision_depth]:
            before, x = x, layer(x, None)
        if not self._attended:
            return x[:, 1:]
        last = tower.encoder.layers[max(0, self.config.vision_depth - 1)]
        return torch.cat([x[:, 1:], _cls_attention(last, before).to(x.dtype)[..., None]], -1)

    @torch.no_grad()
    def quantize(self, pixel_values: Tensor) -> MGVQEncoding | None:
        """MGVQ's latent, codes and quantized latent of the same image; None where the model has no MGVQ."""
        self._check_pixels(pixel_values)
        if self.mgvq is None:
            return None
        with torch.autocast(pixel_values.device.type, enabled=False):  # the nearest code must not hang on it
            return self.mgvq.encode((2 * pixel_values - 1).to(self.mgvq.codebook.dtype))

    def hybrid(self, vision_features: Tensor, q: Tensor | None = None) -> Hybrid:
        """Anchors and patches from `vision_features` (B, P, d_clip) and, where MGVQ makes the anchors, `q` (B, nq)."""
        dtype = self.voco.dtype
        attended = vision_features[..., -1].float() if self._attended else None
        patches = self.patch_projector(vision_features[..., : self.config.vision.hidden_size].to(dtype))
        if self.config.num_anchors == 0:
            return Hybrid(patches[:, :0], patches)
        if self.anchor_projector is None:
            return Hybrid(pick_anchors(patches, self.config.num_anchors, self.config.anchors, attended), patches)
        if q is None:
            raise ValueError("the anchors of this model come from MGVQ: give q, `quantize(pixels).quant.flatten(1)`")
        return Hybrid(self.anchor_projector(q.to(dtype)), patches)

    def encode(self, pixel_values: Tensor) -> tuple[Hybrid, MGVQEncoding | None]:
        """The hybrid tokens of images (B, 3, R, R), and MGVQ's encoding where the model has one."""
        encoding = self.quantize(pixel_values)
        q = None if encoding is None else encoding.quant.flatten(1)
        return self.hybrid(self.vision_features(pixel_values), q), encoding

    def before_voco(self, anchors: Tensor, patches: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings of the prefix (B, P, d), P 0 without one, and of the rest before <voco> (B, N, d), in order.

        `prefix` replaces that of the configuration.
        """
        hybrid = [anchors, patches] if self.config.anchor_place == "before" else [patches, anchors]
        if prefix is None:
            prefix = self._embedded(self.config.prefix_ids, len(patches))
        return prefix, torch.cat([*hybrid, self._embedded(self.config.infix_ids, len(patches))], 1)

    def compress(
        self,
        anchors: Tensor,
        patches: Tensor,
        prefix: Tensor | None = None,
        *,
        direct: Sequence[star.Direct] | None = None,
    ) -> star.Compressed:
        """<voco> over prefix, anchors, patches, each (B, *, d): its hidden states, attention and cache.

        The prefix is that of the configuration unless one is given. `direct`: of `direct_products`.
        """
        prefix, hybrid = self.before_voco(anchors, patches, prefix)
        return star.compress(
            self.language_model.model,
            hybrid,
            self.voco,
            topology=self.config.topology,
            prefix=prefix if prefix.shape[1] else None,
            gradient_checkpointing=self.gradient_checkpointing and self.training,
            direct=direct,
        )

    def direct_products(self) -> list[star.Direct] | None:
        """For `compress`, made once for many images; None where its topology or prefix has no use for them.

        Which products are used must follow from the model alone, for however few images, or last bits would change.
        """
        if self.config.topology != "star" or self.config.prefix_ids:
            return None
        return star.direct_products(self.language_model.model)

    def read(
        self,
        compressed: star.Compressed,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> Tensor:
        """Logits of texts (B, T), or several an image (B, pairs, T), each of which reads <voco> alone.

        `attention_mask` is 0 at padding, on either side; without it, padding on the right changes nothing
        before it. `has_image` (B,) is false where a text does not read <voco> either.
        """
        if self.training and any(layer.gradient_checkpointing for layer in self.language_model.model.layers):
            raise ValueError(
                "the language model's own gradient checkpointing drops the cache that holds <voco>; "
                "enable it on the HTCVLM instead"
            )
        ids = input_ids.flatten(0, -2)
        mask = None if attention_mask is None else attention_mask.flatten(0, -2)
        if has_image is not None:
            mask = torch.ones_like(ids) if mask is None else mask
            has_image = has_image.repeat_interleave(len(ids) // len(input_ids), 0)
        position_ids, mask = _after_voco(compressed, ids, mask, has_image)
        cache = _repeat(compressed.cache, len(ids) // len(input_ids))
        if self.gradient_checkpointing and self.training:
            logits = self._read_checkpointed(ids, cache, position_ids, mask)
        else:
            logits = self.language_model(
                input_ids=ids, past_key_values=cache, position_ids=position_ids, attention_mask=mask
            ).logits
        return logits.unflatten(0, input_ids.shape[:-1])

    def _read_checkpointed(self, ids: Tensor, cache: DynamicCache, position_ids: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of texts `ids` (n, T) behind `cache`, each layer computed again in the backward pass.

        transformers' own checkpointing of a layer takes its cache away, and with it <voco>.
        """
        llama = self.language_model.model
        x = llama.embed_tokens(ids)
        text = ids.shape[1]
        behind = cache.get_seq_length()
        sees = torch.ones(text, behind + text, dtype=torch.bool, device=ids.device).tril(behind)[None]
        if mask is not None:
            sees = sees & mask.bool()[:, None]
        bias = torch.zeros(sees.shape, dtype=x.dtype, device=x.device).masked_fill(~sees, torch.finfo(x.dtype).min)
        rotations = llama.rotary_emb(x, position_ids)
        for layer, (key, value, _) in zip(llama.layers, cache, strict=True):
            given: dict[str, Any] = {"attention_mask": bias[:, None], "past_key_values": _Behind(key, value)}
            x = checkpoint(layer, x, **given, position_embeddings=rotations, use_reentrant=False)
        return self.language_model.lm_head(llama.norm(x))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        input_ids: Tensor,
        vision_features: Tensor | None = None,
        q: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        has_image: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> HTCOutput:
        """L_HTC: the mean next-token loss over `labels` other than -100 (section 3).

        `input_ids`, `attention_mask` and `labels` are (B, T), or (B, pairs, T): each pair reads its image's
        <voco> and itself. Labels stand at their own token and are predicted from the tokens before it.
        Where `vision_features` or `q` are given, the frozen tower that computes them does not run; with
        both, no pixels are needed. `has_image` (B,) is false for texts without an image, whose pixels are not
        looked at. `num_items_in_batch`: divide by this many labels instead of by those that are here, so that the
        losses of the parts of a batch (devices, accumulated steps) add up to the whole batch's. Raises ValueError
        where there is no label to divide by.
        """
        compressed = self.compress(*self._hybrid_of(pixel_values, vision_features, q))
        logits = self.read(compressed, input_ids, attention_mask, has_image)
        loss = None
        if labels is not None:
            predicted, wanted = logits[..., :-1, :].flatten(0, -2).float(), labels[..., 1:].flatten()
            how = "mean" if num_items_in_batch is None else "sum"
            count = (wanted != _IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
            if count == 0:
                raise ValueError(
                    f"all labels are {_IGNORED_LABEL} (ignored), or have no token before them, so there is no loss; "
                    "label at least one answer token, or give no labels"
                )
            loss = F.cross_entropy(predicted, wanted, ignore_index=_IGNORED_LABEL, reduction=how)
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return HTCOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        *,
        vision_features: Tensor | None = None,
        q: Tensor | None = None,
        compressed: star.Compressed | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """New token ids (B, at most max_new_tokens) after the prompts `input_ids` (B, T), padded on the left.

        The image comes as pixels, as features and q, or already `compressed`. `kwargs` go to transformers'
        `generate`: greedy and 64 tokens by default, and always with a cache, which is where <voco> is. Raises
        ValueError for beams, several answers an image, and other searches than greedy and sampling.
        """
        if input_ids is None or input_ids.shape[-1] == 0:
            raise ValueError("generate needs input_ids, a prompt of at least one token an image")
        kwargs = kwargs if "generation_config" in kwargs else _GREEDY | kwargs
        self._check_search(kwargs)
        if compressed is None:
            compressed = self.compress(*self._hybrid_of(pixel_values, vision_features, q))
        if len(input_ids) != len(compressed.hidden):
            raise ValueError(f"{len(input_ids)} prompts for {len(compressed.hidden)} images; expected one an image")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        position_ids, mask = _after_voco(compressed, input_ids, attention_mask)
        output = cast(Any, self.language_model).generate(
            input_ids,
            past_key_values=_repeat(compressed.cache, 1),
            position_ids=position_ids,
            attention_mask=mask,
            **kwargs | {"use_cache": True},
        )
        return output[:, input_ids.shape[1] :]

    def _check_search(self, kwargs: dict[str, Any]) -> None:
        """Raises ValueError unless these arguments of transformers' `generate` make one answer an image."""
        own: Any = self.language_model.generation_config
        settings = copy.deepcopy(kwargs.get("generation_config", own))
        settings.update(**kwargs)
        mode = settings.get_generation_mode(kwargs.get("assistant_model")).value
        if mode not in ("greedy_search", "sample") or (settings.num_return_sequences or 1) > 1:
            raise ValueError(
                f"generate was asked for {mode.replace('_', ' ')} with {settings.num_return_sequences or 1} answers an "
                "image; it can do greedy search and sampling with one: leave out num_beams, num_return_sequences and "
                "the like, and call it again for more answers"
            )
        if settings.return_dict_in_generate:
            raise ValueError("generate gives token ids alone; leave out return_dict_in_generate")

    def _hybrid_of(self, pixel_values: Tensor | None, vision_features: Tensor | None, q: Tensor | None) -> Hybrid:
        if pixel_values is None and (vision_features is None or (q is None and self.mgvq is not None)):
            raise ValueError("an image is needed: give pixel_values, or both vision_features and q")
        if vision_features is None:
            vision_features = self.vision_features(cast(Tensor, pixel_values))
        if q is None and self.mgvq is not None:
            q = cast(MGVQEncoding, self.quantize(cast(Tensor, pixel_values))).quant.flatten(1)
        return self.hybrid(vision_features, q)

    @property
    def _attended(self) -> bool:
        return self.config.num_anchors > 0 and self.config.anchors == "attended"

    def _embedded(self, ids: Sequence[int], images: int) -> Tensor:
        """The same tokens `ids` for each of the images, (B, len(ids), d)."""
        embed = self.language_model.model.embed_tokens
        tokens = torch.tensor(ids, dtype=torch.long, device=self.voco.device)
        return embed(tokens)[None].expand(images, -1, -1)

    def _check_pixels(self, pixel_values: Tensor) -> None:
        size = self.config.image_size
        if pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; this model takes "
                f"(images, 3, {size}, {size}) in [0, 1], see extract.images.prepare"
            )


class _Behind:
    """One layer's keys and values before the text, as transformers' attention asks a cache for them."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)


def _repeat(cache: DynamicCache, times: int) -> DynamicCache:
    """A copy with every image's entry `times` in a row; running text through a cache would add to it."""
    return DynamicCache([(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v, _ in cache])


def _after_voco(
    compressed: star.Compressed, ids: Tensor, mask: Tensor | None, has_image: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Positions of texts `ids` (n, T) that continue after <voco>, and their `mask` with what they read in front."""
    first = compressed.attention.shape[-1]
    if mask is None:
        return torch.arange(first, first + ids.shape[1], device=ids.device)[None], None
    positions = first + (mask.long().cumsum(-1) - 1).clamp(min=0)
    read = mask.new_ones(len(mask), compressed.cache.get_seq_length())
    if has_image is not None:
        read = read * has_image.to(mask.dtype)[:, None]
    return positions, torch.cat([read, mask], 1)


def _cls_attention(layer: nn.Module, x: Tensor) -> Tensor:
    """CLS's attention to the patches (B, P) in a CLIP layer with input `x` (B, 1 + P, d), averaged over heads."""
    attn, xn = cast(Any, layer).self_attn, cast(Any, layer).layer_norm1(x)
    q, k = star.heads(attn.q_proj(xn[:, :1]), attn.head_dim), star.heads(attn.k_proj(xn), attn.head_dim)
    return (q @ k.transpose(2, 3) * attn.scale).softmax(-1, dtype=torch.float32)[:, :, 0, 1:].mean(1)


AutoModel.register(HTCConfig, HTCVLM)
