"""Pictures from the codes of a run: those that the model itself would give, and how near they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from htc_probe.analysis.contents import reconstruction
from htc_probe.extract import again, models
from htc_probe.extract.cli import main
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run, open_run
from htc_probe.extract.vlm.model import HTCVLM
from made.pages import write_run


@pytest.fixture(scope="module")
def model() -> HTCVLM:
    return models.load(models.find("htc-tiny"), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("run") / "run.h5"
    assert main(["--limit", "20", "--out", str(out), "--device", "cpu"]) == 0
    with open_run(out) as opened:
        yield opened


def test_stored_codes_give_the_pictures_of_the_images_themselves(run: Run, model: HTCVLM) -> None:
    told: list[int] = []
    found = reconstruction.analyse(model, run, limit=18, seed=0, on_images=told.append)
    rows = again.sample(run, 18, 0)
    assert found.images == [run.ids()[row] for row in rows] and told == [16, 18]
    assert found.pictures.shape == (18, 96, 96, 3) and found.pictures.dtype == np.uint8
    with torch.inference_mode():
        for picture, image in zip(found.pictures, again.images(run, model, rows), strict=True):
            pixels = torch.from_numpy(image.pixels).permute(2, 0, 1)[None].float() / 255
            assert model.mgvq is not None
            decoded = model.mgvq.decode(model.mgvq.encode(2 * pixels - 1).quant)[0].clamp(-1, 1)
            large = ((decoded + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            wanted = np.array(Image.fromarray(large).resize((96, 96), Image.Resampling.BICUBIC))
            assert np.abs(picture.astype(int) - wanted).max() <= 2  # a rounding, passed on by the filter


def test_nearness_is_beside_its_floor_with_intervals(run: Run, model: HTCVLM) -> None:
    found = reconstruction.analyse(model, run, limit=20, seed=0)
    errors = [((found.pictures[at].astype(float) - run.thumbnail(at)) ** 2).mean() for at in range(20)]
    np.testing.assert_allclose(found.psnr_of, 10 * np.log10(255**2 / np.array(errors)), rtol=1e-5)
    psnr, flat, gain = (ends.only for ends in (found.psnr, found.psnr_flat, found.psnr_gain))
    assert psnr.estimate == pytest.approx(found.psnr_of.mean(), rel=1e-5)
    assert psnr.lower < psnr.estimate < psnr.upper
    assert gain.estimate == pytest.approx(psnr.estimate - flat.estimate, abs=1e-4)
    assert gain.lower > 3, "the codes hold more than one colour"


def test_psnr_of_known_errors() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert reconstruction.peak_signal_to_noise(black + np.uint8(255), black) == 0
    assert reconstruction.peak_signal_to_noise(black + np.uint8(51), black) == pytest.approx(20 * np.log10(5))
    assert reconstruction.peak_signal_to_noise(black, black) == pytest.approx(55.91, abs=0.01)


def test_codes_of_another_model_are_refused(tmp_path: Path, model: HTCVLM) -> None:
    with open_run(write_run(tmp_path / "run.h5")) as other, pytest.raises(UserError, match="of another model"):
        reconstruction.analyse(model, other, limit=4, seed=0)
