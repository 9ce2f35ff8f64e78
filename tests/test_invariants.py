"""Each invariant holds on an honest model and is broken here on purpose."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from htc_probe.extract.vlm import invariants, star
from htc_probe.extract.vlm.invariants import InvariantError, check_invariants
from htc_probe.extract.vlm.model import HTCVLM, Hybrid
from made.models import SIZE, small_model

PIXELS = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
honest_compress = star.compress


def parts(model: HTCVLM) -> tuple[Tensor, Tensor]:
    q = model.quantize(PIXELS).quant.flatten(1)
    anchors, patches = model.hybrid(model.vision_features(PIXELS), q)
    return anchors, patches


@pytest.mark.parametrize("topology", star.TOPOLOGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_honest_capture_passes(dtype: torch.dtype, topology: str) -> None:
    model = small_model(topology=topology)
    torch.nn.Module.to(model, dtype)
    measured = check_invariants(model, PIXELS, text_ids=torch.tensor([3, 1, 2]))
    assert measured.text_to_hybrid == measured.logit_change == 0
    assert measured.row_sum_error < 1e-6
    assert measured.path_difference < (1e-5 if dtype == torch.float32 else 5e-2)


def test_a_capture_with_a_prefix_passes() -> None:
    model = small_model()
    prefix = model.language_model.model.embed_tokens(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    compressed = model.compress(*parts(model), prefix)
    assert check_invariants(model, PIXELS, compressed, prefix=prefix).logit_change == 0


def test_rows_that_do_not_sum_to_one_are_found() -> None:
    model = small_model()
    compressed = model.compress(*parts(model))
    rows = compressed.attention.clone()
    rows[1, 2, 3] *= 1.01
    with pytest.raises(InvariantError, match=r"\(a\) .* off by up to 0.01"):
        check_invariants(model, PIXELS, compressed._replace(attention=rows))
    rows[1, 2, 3] = torch.nan
    with pytest.raises(InvariantError, match=r"\(a\)"):
        check_invariants(model, PIXELS, compressed._replace(attention=rows))


def test_hybrid_tokens_that_see_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(*args: Any, **kwargs: Any) -> star.Compressed:
        return honest_compress(*args, **(kwargs | {"topology": "causal"}))

    monkeypatch.setattr(star, "compress", leaky)
    with pytest.raises(InvariantError, match=r"\(b\) the hidden states of <voco> must equal the masked model's"):
        check_invariants(small_model(), PIXELS)


def test_rows_of_another_layer_are_found() -> None:
    model = small_model()
    compressed = model.compress(*parts(model))
    with pytest.raises(InvariantError, match=r"\(b\) the attention rows"):
        check_invariants(model, PIXELS, compressed._replace(attention=compressed.attention.roll(1, 1)))


def test_a_capture_of_another_image_is_found() -> None:
    model = small_model()
    compressed = model.compress(*parts(model))
    with pytest.raises(InvariantError, match=r"\(b\)"):
        check_invariants(model, PIXELS.flip(0), compressed)


def with_one_patch(compressed: star.Compressed, patches: Tensor) -> star.Compressed:
    """A cache in which the text finds something of the patches besides <voco>."""
    cached = []
    for keys, values, _ in compressed.cache:
        leak = patches[:, :1].reshape(len(keys), 1, -1, keys.shape[-1])[:, :, : keys.shape[1]].transpose(1, 2)
        cached.append((torch.cat([leak, keys], 2), torch.cat([leak, values], 2)))
    return compressed._replace(cache=DynamicCache(cached))


def test_a_cache_that_also_holds_patches_is_found() -> None:
    class Leaky(HTCVLM):
        def compress(self, anchors: Tensor, patches: Tensor, prefix: Tensor | None = None) -> star.Compressed:
            return with_one_patch(super().compress(anchors, patches, prefix), patches)

    model = small_model(Leaky)
    with pytest.raises(InvariantError, match=r"\(b\) text must read one position a layer.*holds \[2\]"):
        check_invariants(model, PIXELS)
    anchors, patches = (part[:1] for part in parts(model))
    compressed = model.compress(anchors, patches)
    with pytest.raises(InvariantError, match=r"\(c\) other patches .* they change by up to \d"):
        invariants.patches_act_through_voco(model, Hybrid(anchors, patches), compressed, torch.tensor([[1, 2]]))


def test_text_that_reads_more_than_keys_and_values_is_found() -> None:
    class Leaky(HTCVLM):
        def read(self, compressed: star.Compressed, *args: Any) -> Tensor:
            return super().read(compressed, *args) + 1e-6 * compressed.hidden.sum()

    with pytest.raises(InvariantError, match=r"\(c\)"):  # too little for (b) to see
        check_invariants(small_model(Leaky), PIXELS)


def test_a_mask_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest_mask = star.star_mask
    monkeypatch.setattr(star, "star_mask", lambda *args, **kwargs: honest_mask(*args, **kwargs) == 0)
    with pytest.raises(InvariantError, match=r"\(b\) text must not attend to hybrid tokens: .* weight of up to 0"):
        check_invariants(small_model(), PIXELS)


def test_text_at_the_wrong_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Misplaced(HTCVLM):
        def read(self, compressed: star.Compressed, *args: Any) -> Tensor:
            return super().read(compressed._replace(attention=compressed.attention[..., 2:]), *args)

    with pytest.raises(InvariantError, match=r"\(b\) the logits of the text"):
        check_invariants(small_model(Misplaced), PIXELS)
