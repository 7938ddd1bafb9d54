"""The plan's models beside what others have measured: predicted, published, deviation, and what drives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from shardwatt.architectures import CATALOGUE
from shardwatt.datasets import TokenLengths, load_catalogue
from shardwatt.plan.positions import is_of_memory, need
from shardwatt.plan.published import A100, BATCHES, USUAL_CAP_W, V100, Published, published
from shardwatt.plan.reckoning import CACHE_TOKENS, CHAT, SITE, TOGETHER, Prediction, Run, predict
from shardwatt.plan.workload import ASSUMED_LENGTHS

#: What a row is for. All were published before the models were written; those that only check chose nothing.
Role = Literal[
    "checks", "chooses T", "chooses T for longer lengths", "chooses the reading", "calibrates", "was weighed"
]

#: Predicts a run; the same one is worked out once.
Reckon = Callable[[Run], Prediction]

#: Ways to read Table III: what a run is taken to be on. The first is the plan's; the others were thought of
#: after a look at the rows for length 256, and the last is calibrated on one row.
TABLE_3_READINGS: dict[str, Callable[[Run, Reckon], Run]] = {
    "25 Gb/s Ethernet between nodes": lambda run, _: run,
    "25 Gb/s Ethernet, and a cap that sees bursts": lambda run, _: replace(run, cap_on="bursts"),
    "NVLink between all four GPUs": lambda run, _: replace(run, gpu=TOGETHER),
    "NVLink between all four GPUs, `power` calibrated on one row": lambda run, reckoned: replace(
        run, gpu=TOGETHER, power=calibrated_power(reckoned)
    ),
}
_PLANS_OWN, _, _, CALIBRATED = TABLE_3_READINGS

#: Between what `power` is looked for, times its assumption, and in how many halvings.
_POWER_RANGE = (0.8, 1.1)
_BISECTIONS = 30

#: Data sets that the paper ran.
PAPER_DATASETS = ("alpaca", "gsm8k")


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One published value beside what the plan predicts.

    Attributes:
        section: the table that it is shown in.
        published: the value and its run.
        predicted: in the same unit.
        role: whether the value checks the models, or something in them was chosen by it.
        bound: most that they may differ by; None where nothing is asked.
        driver: what in the models the predicted value comes from.
        on: what the run was taken to be on, where that is not what the publication says.
        planned: predicted with T as a study without `cache_tokens` has it, longest prompt + length, where
            that is shown beside the value for `CACHE_TOKENS`.
    """

    section: str
    published: Published
    predicted: float
    role: Role
    bound: float | None
    driver: str
    on: str = ""
    planned: float | None = None

    @property
    def is_relative(self) -> bool:
        """Whether deviations are in percent of the published value, not in its own unit."""
        return self.published.quantity in ("power_w", "energy_per_token_j", "throughput_ratio", "step_s")

    @property
    def deviation(self) -> float:
        """Predicted minus published: in points or counts, or relative in %; 0 inside a range."""
        nearest = min(max(self.predicted, self.published.low), self.published.high)
        difference = self.predicted - nearest
        return 100 * difference / nearest if self.is_relative else difference

    @property
    def is_met(self) -> bool | None:
        """Whether the deviation is within the bound; None where there is none."""
        return None if self.bound is None else abs(self.deviation) <= self.bound


def verification(root: Path) -> list[CheckRow]:
    """Every check.

    Args:
        root: the project's root, whose data sets' lengths are used.

    Raises:
        CatalogueError: they cannot be read.
    """
    reckoned = predictor(root)
    return [
        *_table_2(),
        *_table_3(reckoned),
        *_tables_4_and_5(reckoned),
        *_findings(reckoned, lengths_of(root)),
        *_peers(reckoned),
    ]


def predictor(root: Path) -> Reckon:
    """Predicts runs on the paper's data sets and on chat prompts.

    Raises:
        CatalogueError: the lengths of the data sets cannot be read.
    """
    lengths = lengths_of(root)
    return lru_cache(None)(lambda run: predict(run, lengths))


def lengths_of(root: Path) -> dict[str, TokenLengths]:
    """Lengths of the paper's data sets and of chat prompts.

    Raises:
        CatalogueError: the data sets cannot be read.
    """
    catalogue = load_catalogue(root)
    lengths = {name: catalogue.dataset(name).tokens or ASSUMED_LENGTHS for name in PAPER_DATASETS}
    return {**lengths, "chat": CHAT}


def _run(one: Published) -> Run:
    """The paper's run that a value is of."""
    return Run(
        model=one.model,
        gpu=one.gpu,
        shards=one.shards or 1,
        batch=one.batch or 64,
        length=one.length,
        datasets=PAPER_DATASETS if one.dataset == "both" else (one.dataset,),
        cap_w=one.cap_w,
    )


def _table_2() -> Iterator[CheckRow]:
    """Bare minimum hardware and largest batches, at T = 512."""
    for one in published("Table II"):
        memory_gib = SITE.gpus[one.gpu].memory_gib
        if one.quantity == "fewest_gpus":
            batch = one.batch or 64
            counts = CATALOGUE[one.model].allowed_shards()
            fit = (n for n in counts if need(one.model, n, batch, CACHE_TOKENS).total_gib <= memory_gib)
            shards = next(fit, 0)
            predicted = float(shards)
        else:
            shards = one.shards or 1
            fitting = [
                size
                for size in BATCHES
                if need(one.model, shards, size, CACHE_TOKENS).total_gib <= memory_gib
            ]
            batch = max(fitting, default=0)
            predicted = float(batch)
        of = need(one.model, shards, batch, CACHE_TOKENS)
        rest_gib = of.activations_gib + of.workspace_gib
        needs = (
            f"weights {of.weights_gib:.1f}, cache {of.kv_cache_gib:.1f}, rest {rest_gib:.1f}: "
            f"{of.total_gib:.1f} of {memory_gib:g} GiB"
        )
        if one.quantity == "largest_batch" and batch < max(BATCHES):
            more = need(one.model, shards, 2 * batch, CACHE_TOKENS).total_gib
            needs += f"; batch {2 * batch} would take {more:.1f}"
        role: Role = "chooses T" if is_of_memory(one) else "checks"
        yield CheckRow("Table II", one, predicted, role, 0.0 if is_of_memory(one) else None, needs)


def calibrated_power(reckoned: Reckon) -> float:
    """`power`, times its assumption, with which four A100s on NVLink save the energy that Table III says of
    175 W and length 512: what `shardwatt calibrate` does with a cell of one's own.

    Raises:
        ValueError: no factor in the range that is searched does.
    """
    (row,) = (one for one in published("Table III", "energy_change_percent") if _calibrates(one))

    def above(power: float) -> float:
        run = replace(_run(row), gpu=TOGETHER, power=power)
        capped, usual = reckoned(run), reckoned(replace(run, cap_w=USUAL_CAP_W))
        return 100 * (capped.energy_j / usual.energy_j - 1) - row.value

    low, high = _POWER_RANGE
    if above(low) < 0 or above(high) > 0:
        raise ValueError(f"no `power` from {low:g} to {high:g} gives {row.value} % energy at 175 W")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) > 0 else (low, middle)
    return (low + high) / 2


def _calibrates(one: Published) -> bool:
    return (one.quantity, one.cap_w, one.length) == ("energy_change_percent", 175, 512)


def _role_in_table_3(one: Published, on: str) -> Role:
    if on == _PLANS_OWN:
        return "checks"
    if on == CALIBRATED and _calibrates(one):
        return "calibrates"
    return "chooses the reading" if one.length == 256 else "checks"


def _table_3(reckoned: Reckon) -> Iterator[CheckRow]:
    """Power caps, read in four ways: on the cluster that the paper describes, with the plan's own model;
    there, with a limiter that sees bursts; with all four GPUs on NVLink; and so, with `power` calibrated."""
    for on, changes in TABLE_3_READINGS.items():
        for one in published("Table III"):
            if one.quantity == "token_rate_change_percent":
                continue  # the inverse of the time
            run = changes(_run(one), reckoned)
            usual, capped = reckoned(replace(run, cap_w=USUAL_CAP_W)), reckoned(run)
            is_time = one.quantity == "duration_change_percent"
            ratio = capped.duration_s / usual.duration_s if is_time else capped.energy_j / usual.energy_j
            is_cap_hard = one.cap_w == 150
            role = _role_in_table_3(one, on)
            driver = f"{usual.gpu_w:.0f} W a GPU before the cap; clock {usual.clock:.2f} → {capped.clock:.2f}"
            if run.power != 1:
                driver += f"; `power` {run.power:.3f}"
            bound = None if role == "calibrates" else 10.0 if is_cap_hard and not is_time else 5.0
            yield CheckRow("Table III", one, 100 * (ratio - 1), role, bound, driver, on)


def _tables_4_and_5(reckoned: Reckon) -> Iterator[CheckRow]:
    """Shares of time in which memory is busy and kernels run; both are predicted as means.

    That T is 512 at longer lengths too was read off Table IV, among others, so that its rows of memory at
    these lengths check nothing.
    """
    for one in (*published("Table IV"), *published("Table V")):
        found, planned = reckoned(_run(one)), reckoned(replace(_run(one), cache_tokens=None))
        is_memory = one.quantity != "sm_utilisation_percent"
        tells_t = is_memory and one.length >= CACHE_TOKENS
        role: Role = "chooses T for longer lengths" if tells_t else "checks"
        share, planned_share = (of.memory_share if is_memory else of.busy_share for of in (found, planned))
        driver = f"step {1e3 * found.step_s:.0f} ms, collectives {_exchange(found)} of it"
        yield CheckRow("Tables IV and V", one, 100 * share, role, None, driver, planned=100 * planned_share)


def _exchange(found: Prediction) -> str:
    """Share of time that collectives take, and that of their bytes alone: the rest is assumed latency."""
    return f"{found.collective_share:.0%} (transfer alone {found.transfer_share:.0%})"


def _findings(reckoned: Reckon, lengths: Mapping[str, TokenLengths]) -> Iterator[CheckRow]:
    """What the paper says in words, at T = 512 and with T as a plan has it."""
    for one in published("findings"):
        predicted, driver = _found(one, _run(one), reckoned, lengths)
        planned, _ = _found(one, replace(_run(one), cache_tokens=None), reckoned, lengths)
        yield CheckRow("Findings in words", one, predicted, "checks", None, driver, planned=planned)


def _found(
    one: Published, run: Run, reckoned: Reckon, lengths: Mapping[str, TokenLengths]
) -> tuple[float, str]:
    """What is predicted of a finding, and what drives it."""
    if one.quantity == "most_efficient_shards":
        return _most_efficient(run, reckoned, lengths)
    if one.quantity == "throughput_ratio":
        found, other = (
            reckoned(replace(run, gpu=gpu, shards=_fewest(one.model, gpu))) for gpu in (A100, V100)
        )
        return found.tokens_per_s / other.tokens_per_s, (
            f"step {1e3 * found.step_s:.0f} against {1e3 * other.step_s:.0f} ms, collectives "
            f"{_exchange(found)} and {_exchange(other)} of it"
        )
    found = reckoned(run)
    predicted = found.power_w if one.quantity == "power_w" else found.energy_per_token_j
    if one.quantity == "energy_per_token_ratio":
        predicted /= reckoned(replace(run, shards=8)).energy_per_token_j
    return predicted, (
        f"{found.gpu_w:.0f} W a GPU: collectives {_exchange(found)} of the time, memory "
        f"{found.memory_share:.0%}"
    )


def _fewest(model: str, gpu: str) -> int:
    """The shards of Table II."""
    found = [one for one in published("Table II", "fewest_gpus") if (one.model, one.gpu) == (model, gpu)]
    return round(found[0].value)


def _positions(run: Run, lengths: Mapping[str, TokenLengths]) -> int:
    """T of a run: what is given, or the longest prompt of its data sets and its length, in the context."""
    longest = max(lengths[dataset].prompt_deciles[-1] for dataset in run.datasets)
    return run.cache_tokens or min(CATALOGUE[run.model].context, round(longest) + run.length)


def _most_efficient(run: Run, reckoned: Reckon, lengths: Mapping[str, TokenLengths]) -> tuple[float, str]:
    """Shards of the run with the least energy per token, of those of the paper's grid that fit."""
    runs = [
        replace(run, shards=shards, batch=batch)
        for shards in (8, 16, 32)
        for batch in BATCHES
        if need(run.model, shards, batch, _positions(run, lengths)).total_gib <= SITE.gpus[run.gpu].memory_gib
    ]
    least = {
        shards: min(
            (one for one in runs if one.shards == shards), key=lambda one: reckoned(one).energy_per_token_j
        )
        for shards in dict.fromkeys(one.shards for one in runs)
    }
    each = (
        f"{one.shards} shards: {reckoned(one).energy_per_token_j:.1f} J at batch {one.batch}"
        for one in least.values()
    )
    best = min(least.values(), key=lambda one: reckoned(one).energy_per_token_j)
    return float(best.shards), "; ".join(each)


def _peers(reckoned: Reckon) -> Iterator[CheckRow]:
    """Measurements of others with vLLM; `fast-refill` fills places of rows that have ended, as it does."""
    for one in published("ML.ENERGY"):
        # So many prompts that the last rows, which run alone, count for nothing: 1 % of the steps or less.
        prompts = 1000 * (one.batch or 1)
        run = replace(_run(one), engine="fast-refill", precision="bf16", cache_tokens=None, prompts=prompts)
        found = reckoned(run)
        predicted = {
            "power_w": found.power_w,
            "step_s": found.step_s,
            "energy_per_token_j": found.energy_per_token_j,
        }[one.quantity]
        driver = (
            f"step {1e3 * found.step_s:.1f} ms; {found.gpu_w:.0f} W a GPU at clock {found.clock:.2f}, memory "
            f"{found.memory_share:.0%} of the time, matrix units {found.compute_share:.0%}"
        )
        # Watts of this card were looked at when ON_CHIP_J_PER_BYTE was assumed, which they would raise.
        role: Role = "was weighed" if one.quantity == "power_w" else "checks"
        yield CheckRow("Measurements of others", one, predicted, role, None, driver)
