"""What drawing the next token takes: `python benchmarks/next_token.py`.

The same random logits go through argmax, a full sort alone, the published sampler (softmax, sort, cumulative
sum, multinomial), and shardwatt's two samplers, in turns, every other round backwards. How far the nucleus
reaches depends on how peaked the logits are; both are shown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from measuring import machine, positive, spread, table
from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling import next_tokens, row_keys, sorted_next_tokens

SAMPLING = Sampling(temperature=0.8, top_p=0.95, seed=1)

#: Standard deviations of the logits: nuclei of a few tokens, some tens, hundreds, and most of the vocabulary.
SPREADS = (8.0, 4.0, 2.5, 0.6)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=positive, default=9, help="times each is run (default: 9)")
    options.add_argument("--threads", type=positive, default=2, help="(default: 2)")
    options.add_argument("--rows", type=positive, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)")
    options.add_argument(
        "--vocabulary", type=positive, nargs="+", default=[32_000, 128_256], help="(default: 32000 128256)"
    )
    options.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    print(f"ms, {given.threads} threads, {given.device}, {given.rounds} rounds; median (least to most).")
    print(machine("torch"), end="\n\n")
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "argmax": lambda logits, keys, positions: logits.argmax(dim=-1),
        "sort": lambda logits, keys, positions: logits.sort(dim=-1, descending=True).indices,
        "published": lambda logits, keys, positions: _published(logits),
        "sorted_next_tokens": lambda *what: sorted_next_tokens(what[0], SAMPLING, *what[1:]),
        "next_tokens": lambda *what: next_tokens(what[0], SAMPLING, *what[1:]),
    }
    rows = []
    for vocabulary in given.vocabulary:
        for count in given.rows:
            for scale in SPREADS:
                logits = torch.randn(count, vocabulary, device=given.device) * scale
                keys = row_keys(1, [str(row) for row in range(count)], given.device)
                positions = torch.full_like(keys, 100)
                widths = _nucleus(logits)
                with torch.inference_mode():
                    times = _times(ways, (logits, keys, positions), given.rounds)
                rows.append(
                    [
                        f"{count} x {vocabulary}",
                        f"{statistics.median(widths):.0f}",
                        *(spread(times[name]) for name in ways),
                    ]
                )
    print(table(["logits", "nucleus", *ways], rows))


def _times(
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    what: tuple[Tensor, Tensor, Tensor],
    rounds: int,
) -> dict[str, list[float]]:
    """Time of each way in each round, in ms, after one round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            begin_s = time.perf_counter()
            ways[name](*what).tolist()
            times[name].append(1e3 * (time.perf_counter() - begin_s))
    return {name: found[1:] for name, found in times.items()}


def _published(logits: Tensor) -> Tensor:
    """As LLaMA's loop draws, for the time alone."""
    falling, ids = torch.softmax(logits / SAMPLING.temperature, dim=-1).sort(dim=-1, descending=True)
    falling[falling.cumsum(dim=-1) - falling > SAMPLING.top_p] = 0.0
    drawn = torch.multinomial(falling / falling.sum(dim=-1, keepdim=True), num_samples=1)
    return ids.gather(-1, drawn)


def _nucleus(logits: Tensor) -> Sequence[int]:
    """Tokens of each row's nucleus."""
    falling = torch.softmax(logits / SAMPLING.temperature, dim=-1).sort(dim=-1, descending=True).values
    widths: list[int] = (falling.cumsum(dim=-1) - falling <= SAMPLING.top_p).sum(dim=-1).tolist()
    return widths


if __name__ == "__main__":
    main()
