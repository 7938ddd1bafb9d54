"""Guards what a cell is refused for before a rank starts: a model whose files do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tokenizers_tiny
from shardwatt.errors import CellFailure, Reason
from shardwatt.matrix import expand
from shardwatt.prepare import make_model
from shardwatt.run.job import Job, plan_job
from shardwatt.site import Site
from shardwatt.study import Study
from small_project import make_root, make_site, study_content, write_yaml

ROOT = Path(__file__).parents[2]
RECIPE = {
    "about": "a test",
    "dim": 32,
    "n_layers": 1,
    "n_heads": 2,
    "context": 512,
    "vocab_size": 600,
    "mean_response_tokens": 8,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a small model in its models folder, `mine`, that was made elsewhere."""
    root = make_root(tmp_path_factory.mktemp("project"))
    (root / "config" / "datasets.yaml").unlink()
    for name in ("datasets.yaml", "prompts"):
        (root / "config" / name).symlink_to(ROOT / "config" / name)
    recipe = write_yaml(root / "config" / "models" / "tiny.yaml", RECIPE)
    folder = make_model(root, make_site(root), "tiny", 1)
    shutil.copy(folder.parent / "tokenizer.model", folder)
    folder.rename(root / "models" / "mine")
    recipe.unlink()
    return root


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    """The model's folder, to be changed."""
    return Path(shutil.copytree(made / "models" / "mine", tmp_path / "models" / "mine"))


def planned(made: Path, mine: Path) -> Job:
    block = {"model": "mine", "gpu": "cpu", "shards": 1, "batch": 2, "length": 8, "dataset": "demo-gsm8k"}
    study = Study(**study_content(prompts=4, matrix=[{**block, "precision": "fp32"}]))
    site: Site = make_site(made, models=str(mine.parent))
    (cell,) = expand(made, "test", study, site)
    return plan_job(made, "test", study, site, cell)


def refused(made: Path, mine: Path) -> CellFailure:
    with pytest.raises(CellFailure) as caught:
        planned(made, mine)
    return caught.value


def test_a_model_whose_files_belong_together_is_planned(made: Path, mine: Path) -> None:
    job = planned(made, mine)
    assert job.eos_ids == {2}
    assert job.tokenizer is not None
    assert job.architecture.vocab_size == job.tokenizer.vocab_size == 600


def test_an_end_that_is_never_drawn_is_refused(made: Path, mine: Path) -> None:
    (mine / "generation_config.json").write_text('{"eos_token_id": [2, 600]}')
    failure = refused(made, mine)
    assert failure.reason is Reason.BAD_CHECKPOINT
    assert "generation_config.json: eos_token_id: found 600, and the model's vocabulary has 600 rows" in str(
        failure
    )
    (mine / "generation_config.json").write_text('{"eos_token_id": [2, 599]}')
    assert planned(made, mine).eos_ids == {2, 599}


@pytest.mark.parametrize("says_vocabulary", [True, False])
def test_another_models_tokenizer_is_refused(made: Path, mine: Path, says_vocabulary: bool) -> None:
    """Also where the shape's file leaves the vocabulary open: the embedding says it."""
    if not says_vocabulary:
        params = json.loads((mine / "params.json").read_text())
        (mine / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    assert planned(made, mine).architecture.vocab_size == 600
    (mine / "tokenizer.model").write_bytes(tokenizers_tiny.sentencepiece_model(512))
    failure = refused(made, mine)
    assert failure.reason is Reason.BAD_TOKENIZER
    assert "has 512 pieces, and the model's vocabulary has 600; expected as many" in str(failure)
