"""MGVQ against the reference's golden vectors, and the laws of the group quantizer and its training terms."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from htc_probe.extract.errors import UserError
from htc_probe.extract.vlm.mgvq import MGVQ, MGVQ_F16C32_G8, PRESETS, MGVQConfig, group_quantize

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "mgvq_tiny.pt"
TINY = MGVQConfig(widths=(32, 32, 64, 64, 128), depths=(0, 1, 1, 1, 1), groups=8, codebook_size=512)
# Two stages of one block or none: enough for the laws of training.
SMALL = MGVQConfig(widths=(8, 32), depths=(0, 1), groups=8, codebook_size=64, attention_stages=1)


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "mgvq_tiny.io.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return tensors | {"arch": json.loads(file.metadata()["arch"])}


@pytest.fixture(scope="module")
def tiny(golden):
    """Built from the architecture that the golden file itself declares, with the official weights."""
    arch = golden["arch"]
    config = MGVQConfig(
        widths=tuple(int(w) for w in arch["width_list"].split(",")),
        depths=tuple(int(d) for d in arch["depth_list"].split(",")),
        groups=arch["groups"],
        codebook_size=arch["codebook_size"],
        latent_channels=arch["latent_channels"],
        head_dim=arch["head_dim"],
    )
    assert config == TINY
    return MGVQ(config).load_official(CHECKPOINT).eval().requires_grad_(False)


def random_latent(seed=0, shape=(2, 32, 3, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_codebook(seed=1, codes=8 * 16, dim=4):
    return torch.randn(codes, dim, generator=torch.Generator().manual_seed(seed))


def small_model(seed=0):
    torch.manual_seed(seed)
    return MGVQ(SMALL)


# The reference


def test_encode_reproduces_the_reference(tiny, golden):
    encoding = tiny.encode(golden["in.pixels"])
    torch.testing.assert_close(encoding.latent, golden["out.latent"], atol=1e-4, rtol=0)
    assert encoding.codes.dtype == torch.int64
    assert torch.equal(encoding.codes, golden["out.codes"])
    torch.testing.assert_close(encoding.quant, golden["out.quant"], atol=1e-4, rtol=0)


def test_decode_reproduces_the_reference(tiny, golden):
    pixels = tiny.decode(golden["out.quant"])
    torch.testing.assert_close(pixels, golden["out.reconstruction"], atol=1e-4, rtol=0)


def test_official_config_has_the_official_size():
    with torch.device("meta"):
        model = MGVQ(MGVQ_F16C32_G8)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    # 87.07 M is the encoder alone; quant_conv would add 160.
    assert count["encoder"] == 87_069_984
    assert count["quant_conv"] == count["post_quant_conv"] == 8 * 4 * 4 + 32
    assert model.codebook.shape == (16_384, 4)
    assert sum(p.numel() for p in model.parameters()) == sum(count.values()) + 16_384 * 4 == 215_824_236


def test_official_latent_at_336_pixels_is_the_q_of_the_paper(tiny):
    assert (MGVQ_F16C32_G8.downsampling, MGVQ_F16C32_G8.latent_size(336)) == (16, 21)
    assert MGVQ_F16C32_G8.codes_per_group == 2048
    encoding = tiny.encode(torch.zeros(1, 3, 336, 336))
    assert encoding.quant[0].numel() == 14_112
    assert encoding.codes.shape == (1, 21, 21, 8)


# Wrong files


def save(path, state):
    torch.save({"model": state}, path)
    return path


def official_state():
    return torch.load(CHECKPOINT, weights_only=True)["model"]


def refusal(path, config=TINY):
    """The message with which a model refuses the file; its weights must be what they were."""
    model = MGVQ(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        model.load_official(path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value)


def test_a_wrong_checkpoint_is_refused_by_name_and_changes_nothing(tmp_path):
    state = official_state()
    del state["quant_conv.bias"]
    state["loss.discriminator.weight"] = torch.zeros(1)
    state["quantize.embedding.weight"] = torch.zeros(1024, 4)
    message = refusal(save(tmp_path / "wrong.pt", state))
    assert "1 missing: quant_conv.bias" in message
    assert "1 unexpected: loss.discriminator.weight" in message
    assert "1 mis-shaped: quantize.embedding.weight (1024, 4) instead of (512, 4)" in message


def test_many_wrong_keys_are_counted_and_the_first_few_named():
    bigger = MGVQConfig(widths=TINY.widths, depths=(0, 2, 2, 2, 2), groups=8, codebook_size=512)
    message = refusal(CHECKPOINT, bigger)
    # The second block of each stage takes the place of the resampling, which moves on by one.
    assert "missing: encoder.stages.1.op_list.1.main.conv1.conv.weight, " in message
    assert ", ...;" in message and len(message) < 1000


def test_wrong_qkv_shape_is_given_as_the_file_has_it(tmp_path):
    key = "encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight"
    state = official_state() | {key: torch.zeros(64, 64, 1, 1)}
    message = refusal(save(tmp_path / "qkv.pt", state))
    assert f"{key} (64, 64, 1, 1) instead of (192, 64, 1, 1)" in message


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    assert "cannot read" in refusal(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    assert "no PyTorch file" in refusal(tmp_path / "text.pt")
    (tmp_path / "half.pt").write_bytes(CHECKPOINT.read_bytes()[:100_000])
    assert "no PyTorch file" in refusal(tmp_path / "half.pt")
    torch.save({"model": Path("an arbitrary object")}, tmp_path / "objects.pt")
    assert "no PyTorch file" in refusal(tmp_path / "objects.pt")
    torch.save(official_state(), tmp_path / "bare.pt")
    assert '{"model": state_dict}' in refusal(tmp_path / "bare.pt")


def test_training_statistics_may_be_absent_or_present(tmp_path, golden):
    state = official_state()
    state.pop("quantize.embed_prob")
    model = MGVQ(TINY).load_official(save(tmp_path / "bare.pt", state)).eval()
    state["quantize.codebook_used"] = torch.zeros(8, 64)
    state["quantize.embed_prob"] = torch.zeros(3)
    again = MGVQ(TINY).load_official(save(tmp_path / "full.pt", state)).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


# Configuration and sizes


def test_config_survives_json_and_fills_in_the_decoder():
    assert MGVQConfig(**json.loads(json.dumps(MGVQ_F16C32_G8.to_dict()))) == MGVQ_F16C32_G8
    assert TINY.decoder_depths == TINY.depths
    assert MGVQ_F16C32_G8.decoder_depths == (0, 5, 10, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 500}, "codebook_size is 500: expected a positive multiple of 8"),
        ({"groups": 5}, "latent_channels is 32: expected a positive multiple of 5"),
        ({"groups": 0}, "latent_channels is 32: expected a positive multiple of 0"),
        ({"widths": (32, 32, 64, 80, 160)}, r"stage 3 is 80 wide.*256"),
        ({"widths": (32, 48, 64, 96, 128)}, r"stage 3 is 96 wide.*for example 64 or 128"),
        ({"widths": (32, 40, 40, 40, 160)}, r"widths\[3\] is 40: expected a positive multiple of 32"),
        ({"widths": (32, 30, 60, 64, 128)}, "4 x 60"),
        ({"widths": (32, 32, 64, 64, 128), "latent_channels": 48}, r"widths\[-1\] is 128"),
        ({"depths": (0, 1, 1, 1)}, r"depths=\(0, 1, 1, 1\): expected 5"),
        ({"depths": (0, 1, 0, 1, 1)}, "the others must be at least 1"),
        ({"decoder_depths": (0, 1, 1, 1, 0)}, "decoder_depths="),
        ({"attention_stages": 6}, "attention_stages=6: expected 0 to 5"),
        ({"widths": (32,), "depths": (1,)}, "at least two stages"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MGVQConfig(**(TINY.to_dict() | change))


@pytest.mark.parametrize(
    "config",
    [
        MGVQConfig(widths=(32, 48, 96, 96, 128), depths=(0, 1, 1, 1, 1), groups=8, codebook_size=1024),
        MGVQConfig(widths=(16, 32, 64), depths=(1, 1, 1), groups=4, codebook_size=64, decoder_depths=(2, 1, 2)),
        MGVQConfig(widths=(16, 32), depths=(0, 2), groups=1, codebook_size=8, attention_stages=0),
        SMALL,
    ],
)
def test_configs_that_can_be_built_encode_and_decode(config):
    model = MGVQ(config).eval()
    pixels = torch.zeros(1, 3, 32, 64)
    encoding = model.encode(pixels)
    size = (config.latent_size(32), config.latent_size(64))
    assert encoding.quant.shape == encoding.latent.shape == (1, config.latent_channels, *size)
    assert encoding.codes.shape == (1, *size, config.groups)
    assert model.decode(encoding.quant).shape == pixels.shape
    assert config.downsampling == 32 // config.latent_size(32)


def test_image_sides_that_do_not_divide_are_refused(tiny):
    with pytest.raises(ValueError, match="340 pixels: expected a multiple of 16"):
        tiny.encode(torch.zeros(1, 3, 336, 340))
    with pytest.raises(ValueError, match="0 pixels"):
        tiny.config.latent_size(0)
    with pytest.raises(ValueError, match=r"\(3, 64, 64\): expected \(images, 3, height, width\)"):
        tiny.encode(torch.zeros(3, 64, 64))


# The quantizer


def test_slices_become_the_nearest_unit_code_of_their_own_group():
    latent, codebook = random_latent(), random_codebook()
    quantized = group_quantize(latent, codebook, groups=8)
    for b, y, x, g in torch.cartesian_prod(*(torch.arange(n) for n in quantized.codes.shape)).tolist():
        slice_c = latent[b, 4 * g : 4 * g + 4, y, x].double()
        codes_Kc = codebook[16 * g : 16 * g + 16].double()
        codes_Kc = codes_Kc / codes_Kc.norm(dim=1, keepdim=True)
        distances = (codes_Kc - slice_c / slice_c.norm()).norm(dim=1)
        k = int(distances.argmin())
        assert quantized.codes[b, y, x, g] == k
        quant_c = quantized.quant[b, 4 * g : 4 * g + 4, y, x].double()
        torch.testing.assert_close(quant_c, codes_Kc[k], atol=1e-6, rtol=0)
    norms = quantized.quant.unflatten(1, (8, 4)).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_searching_in_parts_changes_nothing(monkeypatch):
    latent, codebook = random_latent(), random_codebook()
    whole = group_quantize(latent, codebook, groups=8)
    monkeypatch.setattr("htc_probe.extract.vlm.mgvq.SEARCH_ENTRIES", 7 * len(codebook))
    parts = group_quantize(latent, codebook, groups=8)
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.quant, parts.quant)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_search_is_in_float32_for_a_half_precision_model(dtype):
    latent = random_latent(shape=(4, 32, 16, 16)).to(dtype)
    codebook = random_codebook(codes=8 * 512).to(dtype)
    expected = group_quantize(latent.float(), codebook.float(), groups=8)
    quantized = group_quantize(latent, codebook, groups=8)
    assert torch.equal(quantized.codes, expected.codes)
    assert quantized.quant.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(group_quantize(latent, codebook, groups=8).codes, expected.codes)


def test_a_half_precision_model_runs_end_to_end(tiny, golden):
    half = MGVQ(TINY).load_official(CHECKPOINT).eval().to(torch.bfloat16)
    with torch.no_grad():
        encoding = half.encode(golden["in.pixels"].bfloat16())
        pixels = half.decode(encoding.quant)
    assert (encoding.codes == golden["out.codes"]).float().mean() > 0.8  # rounding moves some over a border
    assert pixels.dtype == torch.bfloat16


# Training


def test_straight_through_gradient_reaches_the_encoder_as_if_nothing_was_quantized():
    latent, codebook = random_latent().requires_grad_(), random_codebook().requires_grad_()
    weight = random_latent(seed=2)
    (group_quantize(latent, codebook, groups=8).quant * weight).sum().backward()
    assert codebook.grad is None  # the codes learn from the codebook loss alone
    plain = latent.detach().clone().requires_grad_()
    (F.normalize(plain.unflatten(1, (8, 4)), dim=2).flatten(1, 2) * weight).sum().backward()
    torch.testing.assert_close(latent.grad, plain.grad)
    assert latent.grad.abs().max() > 0


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_each_loss_moves_its_own_part():
    model = small_model()
    losses = model.losses(random_latent(shape=(4, 3, 8, 8)).clamp(-1, 1))
    everything = {name for name, _ in model.named_parameters()}
    encoder = {name for name in everything if name.startswith(("encoder.", "quant_conv."))}
    assert gradients(model, losses.codebook) == {"codebook"}
    assert gradients(model, losses.commitment) == encoder
    # Softmax-free attention may rest where ReLU closes; the edges of the network must all be reached.
    reached = gradients(model, losses.reconstruction)
    assert {"encoder.conv_in.conv.weight", "quant_conv.weight", "decoder.conv_out.conv.weight"} <= reached
    assert "codebook" not in reached


def test_losses_are_what_they_say():
    model = small_model()
    pixels = random_latent(shape=(4, 3, 8, 8)).clamp(-1, 1)
    losses = model.losses(pixels)
    encoding = model.encode(pixels)
    assert torch.equal(losses.codes, encoding.codes)
    torch.testing.assert_close(losses.reconstruction, (model.decode(encoding.quant) - pixels).abs().mean())
    # Between unit vectors |a - b|^2 = 2 - 2ab; 4 numbers a slice.
    slices = F.normalize(encoding.latent.unflatten(1, (8, 4)), dim=2)
    cosine = (slices * encoding.quant.unflatten(1, (8, 4))).sum(2)
    torch.testing.assert_close(losses.codebook, (2 - 2 * cosine).mean() / 4)
    torch.testing.assert_close(losses.commitment, losses.codebook)


def test_a_few_adam_steps_lower_the_reconstruction_loss():
    model = small_model()
    pixels = F.interpolate(random_latent(shape=(8, 3, 2, 2)), scale_factor=4).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        losses = model.losses(pixels)
        optimizer.zero_grad()
        (losses.reconstruction + losses.codebook + 0.25 * losses.commitment).backward()
        optimizer.step()
        history.append(losses.reconstruction.item())
    assert sum(history[-5:]) / 5 < 0.5 * history[0]


def test_reseeding_replaces_the_dead_codes_by_slices_of_the_latent():
    model = small_model()
    latent = random_latent(shape=(2, 32, 4, 4))
    used = torch.ones(8, 8, dtype=torch.bool)
    used[2, [1, 5]] = False
    used[7, 0] = False
    before = model.codebook.detach().clone().view(8, 8, 4)
    assert model.reseed_dead_codes(latent, used, torch.Generator().manual_seed(0)) == 3
    after = model.codebook.detach().view(8, 8, 4)
    assert torch.equal(after[used], before[used])
    for g, k in [(2, 1), (2, 5), (7, 0)]:
        slices = F.normalize(latent[:, 4 * g : 4 * g + 4].movedim(1, -1).reshape(-1, 4), dim=1)
        assert (slices == after[g, k]).all(1).any()
    assert not torch.equal(after[2, 1], after[2, 5])
    # A reseeded code is the nearest of at least the slice it came from, so it is used from now on.
    codes = group_quantize(latent, model.codebook, groups=8).codes
    assert {1, 5} <= set(codes[..., 2].flatten().tolist()) and 0 in codes[..., 7]


def test_reseeding_is_seeded_and_copes_with_few_positions():
    latent, none_used = random_latent(shape=(1, 32, 1, 3)), torch.zeros(8, 8, dtype=torch.bool)
    one, two = small_model(), small_model(seed=1)
    for model in (one, two):
        assert model.reseed_dead_codes(latent, none_used, torch.Generator().manual_seed(4)) == 64
    assert torch.equal(one.codebook, two.codebook)
    assert len(one.codebook.detach().view(8, 8, 4)[0].unique(dim=0)) == 3
    with pytest.raises(ValueError, match=r"\(8, 7\): expected .* \(8, 8\)"):
        one.reseed_dead_codes(latent, none_used[:, :7], torch.Generator())


@pytest.mark.parametrize(
    ("name", "pixels_a_code", "groups", "codes_a_group", "attention_stages"),
    [
        ("mgvq-f8c32-g4", 8, 4, 8192, 1),
        ("mgvq-f8c32-g8", 8, 8, 2048, 1),
        ("mgvq-f16c32-g4", 16, 4, 8192, 2),
        ("mgvq-f16c32-g8", 16, 8, 2048, 2),
        ("mgvq-f16c32-g4-mix", 16, 4, 8192, 2),
        ("mgvq-f32c32-g8-mix", 32, 8, 2048, 3),
    ],
)
def test_the_six_official_configurations(
    name: str, pixels_a_code: int, groups: int, codes_a_group: int, attention_stages: int
) -> None:
    config = PRESETS[name]
    assert (config.downsampling, config.groups, config.codes_per_group) == (pixels_a_code, groups, codes_a_group)
    with torch.device("meta"):
        model = MGVQ(config)
    assert model.codebook.shape == (groups * codes_a_group, 32 // groups)
    stages = [next(iter(stage)) for stage in list(model.encoder.down_blocks) if len(stage)]
    kinds = [type(block).__name__ for block in stages]
    assert kinds[-attention_stages:] == ["EfficientViTBlock"] * attention_stages
    assert kinds.count("EfficientViTBlock") == attention_stages
    width = config.widths[-1]
    assert model.encoder.conv_out.weight.shape == (32, width, 3, 3) and width == (512 if pixels_a_code == 8 else 1024)
