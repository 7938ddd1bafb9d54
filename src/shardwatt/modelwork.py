"""The work of a model: what responses need of it, and what that takes in operations and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shardwatt.architectures import Architecture
from shardwatt.plan.memory import BYTES

PhaseName = Literal["prefill", "walk", "decode"]


@dataclass(frozen=True, slots=True)
class Work:
    """What went through a model.

    Attributes:
        tokens: positions that were fed.
        logits: positions of which logits were made.
        attended: sum over the fed positions of those that hold something for them, themselves included: of a
            prompt the causal half, also where an engine computes the other half, or padding, and masks it.
        finished: positions that went on behind the last layer's attention, through the rest of that layer; at
            most `tokens`.
    """

    tokens: int = 0
    logits: int = 0
    attended: int = 0
    finished: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.logits + other.logits,
            self.attended + other.attended,
            self.finished + other.finished,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """How long a prompt and its response are.

    Attributes:
        prompt_tokens: of the prompt, begin of sequence included.
        output_tokens: of the response, before the end of sequence.
        ended: whether it ended by an end of sequence.
    """

    prompt_tokens: int
    output_tokens: int
    ended: bool

    @property
    def needed(self) -> int:
        """Positions that have to be fed: an end of sequence is drawn after the last output token, and the
        token that fills the length is drawn and not fed."""
        return self.prompt_tokens + (self.output_tokens if self.ended else max(0, self.output_tokens - 1))

    def between(self, first: int, stop: int) -> Work:
        """What it needs of the positions from `first` to before `stop`; logits, and what is behind the last
        layer's attention, from the prompt's last token on."""
        stop = max(first, min(stop, self.needed))
        drawing = max(0, stop - max(first, self.prompt_tokens - 1))
        return Work(stop - first, drawing, (stop * (stop + 1) - first * (first + 1)) // 2, drawing)


def useful_work(answers: Sequence[Answer], *, walked: bool) -> dict[PhaseName, Work]:
    """What the responses of a batch need of each of its phases.

    Args:
        answers: of all its prompts; at least one.
        walked: whether the prefill ended with the shortest prompt and single steps went on to the end of the
            longest; otherwise every prompt is prefilled whole.
    """
    sizes = [answer.prompt_tokens for answer in answers]
    work: dict[PhaseName, Work] = {"prefill": Work(), "walk": Work(), "decode": Work()}
    for answer in answers:
        begun, walk_end = (min(sizes), max(sizes)) if walked else (answer.prompt_tokens,) * 2
        work["prefill"] += answer.between(0, begun)
        work["walk"] += answer.between(begun, walk_end)
        work["decode"] += answer.between(walk_end, answer.needed)
    return work


def flop(architecture: Architecture, work: Work, shards: int = 1) -> int:
    """Operations of some work: 2 for each token and weight of a matrix product that it goes through, and for
    each position that is attended to 4 x layers x width of all query heads (the scores, and the sum of the
    values).

    Norms, rotation, softmax and sampling are left out. The output layer counts where logits are made, what
    follows the last layer's attention where a position goes on. Attention is the causal half by convention,
    for every engine alike: that some compute scores which they mask is a lower utilisation, not more work.

    Args:
        architecture: the model's shape.
        work: what went through it.
        shards: ranks; key and value heads that several of them hold are calculated by each.
    """
    rest = _behind_attention(architecture)
    per_token = 2 * (architecture.n_layers * _matrices_of_a_layer(architecture, shards) - rest)
    per_logits = 2 * architecture.vocab_size * architecture.dim
    per_attended = 4 * architecture.n_layers * architecture.q_dim
    through = per_token * work.tokens + 2 * rest * work.finished
    return through + per_logits * work.logits + per_attended * work.attended


def moved_bytes(architecture: Architecture, work: Work, *, steps: int, precision: str, shards: int) -> int:
    """The least that steps of single tokens have to read, in bytes, on all ranks together.

    Every weight of every rank once a step, but of the embedding the rows of the tokens that are fed; keys and
    values of every position that a row attends to. What is written, activations and copies are left out.

    Args:
        architecture: the model's shape.
        work: what went through it.
        steps: forward passes.
        precision: of weights and cache.
        shards: ranks; norms, and key and value heads above their number, are read by several of them.
    """
    norms = shards * (2 * architecture.n_layers + 1) * architecture.dim
    weights = architecture.n_layers * _matrices_of_a_layer(architecture, shards) + norms
    weights += architecture.vocab_size * architecture.dim
    kv_width = shards * architecture.kv_heads_per_shard(shards) * architecture.head_dim
    cache = 2 * architecture.n_layers * kv_width * work.attended
    return BYTES[precision] * (steps * weights + work.tokens * architecture.dim + cache)


def _matrices_of_a_layer(architecture: Architecture, shards: int) -> int:
    """Weights of a layer's matrix products, on all ranks together."""
    kv_width = shards * architecture.kv_heads_per_shard(shards) * architecture.head_dim
    return architecture.dim * (architecture.q_dim + 2 * kv_width) + _behind_attention(architecture)


def _behind_attention(architecture: Architecture) -> int:
    """Weights of a layer behind its attention: the output projection and the feed-forward layer."""
    return architecture.dim * (architecture.q_dim + 3 * architecture.hidden_dim)
