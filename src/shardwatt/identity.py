"""What the inputs of a study's cells are now: what their records are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.checkpoints import ModelError
from shardwatt.datasets import load_catalogue
from shardwatt.models import find_checkpoint, fingerprint
from shardwatt.site import Site


@dataclass(frozen=True, slots=True)
class Identities:
    """Inputs as they are now; one that is not here any more is left out.

    Attributes:
        model_fingerprints: of each (model, shards).
        dataset_hashes: SHA-256 of each data set.
    """

    model_fingerprints: dict[tuple[str, int], str]
    dataset_hashes: dict[str, str]


def identities(root: Path, site: Site, cells: Iterable[Cell]) -> Identities:
    """Look at the models and data sets that cells read.

    Raises:
        CatalogueError: config/datasets.yaml has a mistake.
    """
    cells = list(cells)
    models = {}
    for model, shards in sorted({(cell.model, cell.shards) for cell in cells}):
        try:
            checkpoint = find_checkpoint(root, site.models, model, shards)
            models[model, shards] = fingerprint(root, checkpoint, model)
        except ModelError:
            # Results outlive their models; then the records alone are compared with each other.
            continue
    catalogue = load_catalogue(root)
    datasets = {}
    for name in sorted({cell.dataset for cell in cells}):
        dataset = catalogue.dataset(name)
        path = dataset.path(root, site.data)
        if dataset.sha256 is not None:
            datasets[name] = dataset.sha256
        elif path.is_file():
            datasets[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return Identities(models, datasets)
