"""What a row's random numbers are keyed by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def row_keys(seed: int, prompt_ids: Sequence[str], device: torch.device | str) -> Tensor:
    """The key of each row: the first 64 bits of SHA-256("seed/prompt id"), signed; [R], int64.

    Neighbouring seeds and prompts share nothing, and a prompt has the same key in every batch.
    """
    digests = [hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest() for prompt_id in prompt_ids]
    keys = [int.from_bytes(digest[:8], "big", signed=True) for digest in digests]
    return torch.tensor(keys, dtype=torch.int64, device=device)
