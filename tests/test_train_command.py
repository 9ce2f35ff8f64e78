"""htc-train reads its settings: a TOML file, flags over it, the recipe under it."""

from pathlib import Path

import pytest

from htc_probe.extract.errors import UserError
from htc_probe.extract.training import cli
from htc_probe.extract.training.config import FinetuneConfig


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bach = 3", "unknown key 'bach'; known: init_from, mgvq,"),
        ('batch = "3"', "batch is '3'; expected a whole number"),
        ("batch = true", "batch is True; expected a whole number"),
        ("batch = 3.0", "batch is 3.0; expected a whole number"),
        ("max-steps = 3.5", "max-steps is 3.5; expected a whole number"),
        ("mgvq = 3", "mgvq is 3; expected a path"),
        ('gradient_checkpointing = "no"', "expected true or false"),
        ('topology = "ring"', "topology is 'ring'; expected one of star, causal, full"),
        ("lora-rank = 3\nlora_rank = 4", "'lora_rank' twice"),
        ("[batch]\nsize = 3", "expected a whole number"),
        ("batch =", "cannot be read as TOML"),
    ],
)
def test_a_wrong_toml_file_is_refused_in_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    assert cli.main([str(path)]) == 2
    told = capsys.readouterr().err
    assert said in told and str(path) in told and told.count("\n") == 1


def test_flags_win_over_the_file_and_the_defaults_are_the_paper_s_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('init-from = "llava"\ndata = "mix.json"\nimages = "photos"\nlearning_rate = 1\nmax_steps = 9\n')
    config = cli._parse([str(path), "--max-steps", "4", "--data", "scenes"])
    assert config == FinetuneConfig("llava", data="scenes", images=Path("photos"), learning_rate=1.0, max_steps=4)
    paper = FinetuneConfig("llava")
    assert (paper.epochs, paper.learning_rate, paper.warmup, paper.batch) == (2, 2e-5, 0.03, 128)
    with pytest.raises(UserError, match="--init-from NAME|FOLDER is needed"):
        cli._parse([])


def test_help_teaches_both_commands(capsys):
    for args in (["--help"], ["tiny", "--help"]):
        assert cli.main(args) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("--init-from", "htc-train tiny --help", "CONFIG.toml", "--clip.steps"))
