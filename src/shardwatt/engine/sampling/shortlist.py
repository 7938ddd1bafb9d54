"""The nucleus from a short list of the likeliest tokens, and from all tokens only where it is wider."""

from __future__ import annotations

import torch
from torch import Tensor

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling.noise import finish, streams
from shardwatt.engine.sampling.published import in_nucleus

#: Tokens of the short list.
LISTED = 64
#: Tokens among which only the likeliest is looked at first.
GROUP = 16
#: Vocabulary from which groups pay.
_MANY = 4 * LISTED * GROUP
#: Numbers that are worked on at a time: what a core's cache holds of them in a few buffers.
_AT_A_TIME = 2**17


def shortlist_next_tokens(logits: Tensor, sampling: Sampling, keys: Tensor, positions: Tensor) -> Tensor:
    """Draw a token for each row; arguments and tokens as of `next_tokens`. On CUDA the host would wait.

    A nucleus of fewer than `LISTED` tokens is found exactly as by the full sort. For a wider one all tokens
    race at once, and the first is asked whether it is in the nucleus: only its likelier ones need be summed
    for that. If it is not, neither is any less likely token, and the rest race on. Of the full sort's time
    the first takes about a thirtieth, the second about a tenth, for 64 rows.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    starts = streams(keys, positions)
    rows, vocab_size = logits.shape
    probabilities = torch.empty_like(logits)
    step = _rows_at_a_time(vocab_size)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        torch.softmax(logits[part] / sampling.temperature, dim=-1, out=probabilities[part])
    falling, ids = _likeliest(probabilities, min(LISTED, vocab_size))
    kept = in_nucleus(falling, sampling.top_p)  # [R, K]
    first = finish(falling * kept, starts, ids).argmax(dim=-1, keepdim=True)  # [R, 1]
    tokens = ids.gather(-1, first).squeeze(-1)
    if ids.shape[1] < vocab_size:
        # Where the list's last token stays, others may that are not on the list.
        for some in torch.split(kept[:, -1].nonzero().squeeze(-1), step):
            tokens[some] = _race(probabilities[some], sampling.top_p, starts[some])
    return tokens


def _rows_at_a_time(vocab_size: int) -> int:
    return max(1, _AT_A_TIME // vocab_size)


def _likeliest(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in falling order and their ids, both [R, count].

    In a large vocabulary they are looked for in the groups whose likeliest tokens are the likeliest: `count`
    groups hold them all.
    """
    rows, vocab_size = probabilities.shape
    if vocab_size < _MANY:
        return probabilities.topk(count, dim=-1)
    groups = vocab_size // GROUP
    # Token t is in group t % groups, but for the last few tokens, which all are candidates.
    grouped = torch.unflatten(probabilities[:, : groups * GROUP], 1, (GROUP, groups))
    best = grouped.amax(dim=1).topk(count, dim=-1, sorted=False).indices  # [R, count]
    members = torch.arange(0, groups * GROUP, groups)[:, None] + best[:, None, :]  # [R, GROUP, count]
    rest = torch.arange(groups * GROUP, vocab_size).expand(rows, -1)
    ids = torch.cat([members.flatten(1), rest], dim=1)
    falling, places = probabilities.gather(1, ids).topk(count, dim=-1)
    return falling, ids.gather(1, places)


def _race(probabilities: Tensor, top_p: float, starts: Tensor) -> Tensor:
    """The first of each row's nucleus, [R], in a race of all tokens; probabilities: [R, V]."""
    scores = finish(probabilities, starts, torch.arange(probabilities.shape[1]))  # [R, V]
    tokens = scores.argmax(dim=-1)
    running = torch.arange(len(tokens))
    while True:
        chance = probabilities.gather(1, tokens[running, None])  # [r, 1]
        likelier = torch.gt(probabilities, chance, out=torch.empty_like(probabilities))
        out = (likelier.mul_(probabilities).sum(dim=-1) > top_p).nonzero().squeeze(-1)
        if not len(out):
            return tokens
        running, probabilities, chance = running[out], probabilities[out], chance[out]
        scores = scores[out].masked_fill_(probabilities <= chance, -torch.inf)
        tokens[running] = scores.argmax(dim=-1)
