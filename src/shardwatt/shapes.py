"""Shapes of models that users add to the catalogue, so that cells of them can be planned and rehearsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from shardwatt.architectures import MOST_HEADS, MOST_LAYERS, Architecture, ArchitectureError
from shardwatt.study import ModelName
from shardwatt.yamlfile import StrictModel, parse_model, read_mapping

_Size = Annotated[int, Field(ge=1, strict=True)]
_Heads = Annotated[int, Field(ge=1, le=MOST_HEADS, strict=True)]


class Shape(StrictModel):
    """The shape of a decoder of the LLaMA family, as far as a plan needs it."""

    dim: _Size
    """Width of the residual stream (`hidden_size` of a config.json)."""
    n_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS, strict=True)]
    """Transformer blocks (`num_hidden_layers`)."""
    n_heads: _Heads
    """Query heads (`num_attention_heads`)."""
    n_kv_heads: _Heads | None = None
    """Key and value heads (`num_key_value_heads`); None: as many as query heads."""
    hidden_dim: _Size
    """Width of the feed-forward layer (`intermediate_size`)."""
    vocab_size: _Size
    """Rows of the embedding."""
    context: _Size = 2048
    """Positions that prompt and response may take together (`max_position_embeddings`)."""
    head_size: _Size | None = None
    """Width of a head (`head_dim`); None: `dim` / `n_heads`."""
    tied_embeddings: Annotated[bool, Field(strict=True)] = False
    """Whether the output layer is the embedding (`tie_word_embeddings`)."""
    source: str | None = None
    """Where the figures come from: a note to whoever reads the file."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        kv_heads = self.n_kv_heads or self.n_heads
        if (self.head_size is None and self.dim % self.n_heads) or self.n_heads % kv_heads:
            raise ValueError(
                f"dim {self.dim}, n_heads {self.n_heads}, n_kv_heads {kv_heads}: expected heads that divide "
                "dim, unless head_size says how wide they are, and KV heads that divide heads"
            )
        return self

    @property
    def architecture(self) -> Architecture:
        """The same in the words of the catalogue."""
        return Architecture(
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            hidden_dim=self.hidden_dim,
            vocab_size=self.vocab_size,
            context=self.context,
            head_size=self.head_size,
            tied_embeddings=self.tied_embeddings,
        )


class Shapes(StrictModel):
    """Shapes of models whose files are not here yet, under the names that studies use."""

    architectures: dict[ModelName, Shape]
    """A shape by the name of its model; it goes before the catalogue's, and behind a model's own files."""


def shapes_file(root: Path) -> Path:
    """Path of the users' shapes below the project's root."""
    return root / "config" / "architectures.yaml"


def own_shapes(root: Path) -> dict[str, Architecture]:
    """The users' shapes by name; empty where there is no such file.

    Raises:
        ArchitectureError: the file has a mistake.
    """
    path = shapes_file(root)
    if not path.is_file():
        return {}
    content = read_mapping(path, ArchitectureError)
    shapes = parse_model(Shapes, content, path, ArchitectureError)
    return {name: shape.architecture for name, shape in shapes.architectures.items()}
