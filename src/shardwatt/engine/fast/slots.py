"""The rows of a batch on the device: the token that each takes in next, where it goes, and the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardwatt.engine.fast.model import FastModel
from shardwatt.engine.fast.packing import packed, sent
from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling import next_tokens


class Slots:
    """Places for rows; all that a step reads and writes stays where it is, as CUDA graphs want it.

    Args:
        model: allocated for these rows and positions.
        rows: R, places.
        positions: T of the cache.
        device: the model's.
    """

    def __init__(self, model: FastModel, rows: int, positions: int, device: torch.device) -> None:
        self.model = model
        self.rows, self.last = rows, positions - 1
        self.device = device
        #: The token that each row takes in next, and where it goes; [R].
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self._keys = torch.zeros(rows, dtype=torch.long, device=device)

    def fill(
        self, places: Sequence[int], prompts: Sequence[list[int]], keys: Tensor, sampling: Sampling
    ) -> Tensor:
        """Take in prompts, draw each one's first new token, and give them their places; [prompts].

        Args:
            places: one for each prompt.
            prompts: token ids of each.
            keys: of their random numbers, on the host, [prompts].
            sampling: how the tokens are drawn.
        """
        together = packed(prompts, places, self.device)
        keys = sent(keys, self.device)
        logits = self.model.prefill(together)  # [prompts, vocabulary]
        following = together.positions[together.ends] + 1  # [prompts]
        drawn = next_tokens(logits, sampling, keys, following)
        where = sent(torch.tensor(places), self.device)
        self.tokens[where], self.positions[where], self._keys[where] = drawn, following, keys
        return drawn

    def advance(self, rows: int, most: int, sampling: Sampling) -> None:
        """Take in the first rows' tokens and draw the next ones in their places.

        No row sees more than so many positions.
        """
        tokens, positions = self.tokens[:rows], self.positions[:rows]
        logits = self.model.step(tokens, positions, most)  # [R, vocabulary]
        positions += 1
        tokens.copy_(next_tokens(logits, sampling, self._keys[:rows], positions))
        # A row that has ended goes on in its last position while the others need more.
        positions.clamp_(max=self.last)

    def move(self, source: int, target: int, positions: int) -> None:
        """Put a row that has so many positions in another place, which has room for them."""
        for part in (self.tokens, self.positions, self._keys):
            part[target] = part[source]
        self.model.cache.move(source, target, positions)
