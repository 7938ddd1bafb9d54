"""Guards utilisation: work over what all devices can do, and null wherever any of it is not known."""

from __future__ import annotations

from typing import Any

import pytest

from shardwatt.architectures import Architecture
from shardwatt.efficiency import Efficiency, PeakFigures, PhaseWork, efficiency, peak_figures
from shardwatt.modelwork import Work
from shardwatt.site import GpuType

SMALL = Architecture(dim=8, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=16, vocab_size=10)

#: By hand, with 2,304 operations a token, 896 of them behind the last layer's attention, 160 for logits and
#: 64 for each position attended to.
PREFILL = PhaseWork(1.0, 1, Work(10, 2, 30, 10), Work(8, 2, 21, 2))
DECODE = PhaseWork(2.0, 3, Work(6, 6, 30, 6), Work(5, 5, 25, 5))
PREFILL_FLOP, PREFILL_USEFUL = 10 * 2304 + 2 * 160 + 30 * 64, 8 * 1408 + 2 * 896 + 2 * 160 + 21 * 64
DECODE_FLOP, DECODE_USEFUL = 6 * 2304 + 6 * 160 + 30 * 64, 5 * 2304 + 5 * 160 + 25 * 64

#: Three steps of 1,272 weights, six rows of the embedding, and 16 numbers for each position attended to.
DECODE_BYTES = 2 * (3 * 1272 + 6 * 8 + 30 * 16)


def peaks(**changes: Any) -> PeakFigures:
    figures = {
        "data_sheet": None, "source": "a test", "devices": 2, "memory_bandwidth_b_s": 8688.0,
        "flop_per_s": 100_000.0,
    }  # fmt: skip
    return PeakFigures(**(figures | changes))


def made(peak: PeakFigures | None, **phases: PhaseWork) -> Efficiency:
    work: Any = phases or {"prefill": PREFILL, "decode": DECODE}
    return efficiency(SMALL, work, peak, precision="bf16", shards=1, duration_s=4.0)


def test_bandwidth_and_operations_by_hand() -> None:
    found = made(peaks())
    decode = found.decode
    assert (decode.steps, decode.tokens, decode.tokens_useful) == (3, 6, 5)
    assert (decode.tokens_per_s, decode.tokens_useful_per_s) == (3.0, 2.5)
    assert decode.moved_bytes == DECODE_BYTES == 8688
    assert decode.bandwidth_utilisation == pytest.approx(8688 / (2 * 8688 * 2))
    assert (decode.flop_executed, decode.flop_useful) == (DECODE_FLOP, DECODE_USEFUL)
    assert decode.flop_utilisation_executed == pytest.approx(16704 / (2 * 100_000 * 2))
    assert decode.flop_utilisation_useful == pytest.approx(13920 / (2 * 100_000 * 2))


def test_the_window_has_all_phases_over_its_own_time() -> None:
    window = made(peaks()).window
    assert window.flop_executed == PREFILL_FLOP + DECODE_FLOP
    assert window.flop_useful == PREFILL_USEFUL + DECODE_USEFUL
    assert window.flop_utilisation_executed == pytest.approx((PREFILL_FLOP + DECODE_FLOP) / 800_000)
    assert window.flop_utilisation_useful == pytest.approx((PREFILL_USEFUL + DECODE_USEFUL) / 800_000)


def test_a_prefill_has_no_bandwidth_utilisation() -> None:
    prefill = made(peaks()).prefill
    assert (prefill.moved_bytes, prefill.bandwidth_utilisation) == (None, None)
    assert prefill.flop_utilisation_executed == pytest.approx(PREFILL_FLOP / 200_000)
    assert (prefill.tokens_per_s, prefill.tokens_useful_per_s) == (10.0, 8.0)


def test_a_phase_that_did_not_occur_is_zero_work_and_no_rate() -> None:
    walk = made(peaks()).walk
    assert (walk.steps, walk.tokens, walk.moved_bytes, walk.flop_executed) == (0, 0, 0, 0)
    assert (walk.tokens_per_s, walk.tokens_useful_per_s) == (None, None)
    assert (walk.bandwidth_utilisation, walk.flop_utilisation_useful) == (None, None)


def test_the_walk_reads_as_decode_does() -> None:
    found = made(peaks(), walk=DECODE)
    assert found.walk.model_dump() == made(peaks()).decode.model_dump()


@pytest.mark.parametrize(
    ("peak", "bandwidth", "operations"),
    [
        (None, False, False),
        (peaks(memory_bandwidth_b_s=None), False, True),
        (peaks(flop_per_s=None), True, False),
    ],
    ids=["no data sheet", "operations alone", "bandwidth alone"],
)
def test_what_is_not_known_is_null_and_never_zero(
    peak: PeakFigures | None, bandwidth: bool, operations: bool
) -> None:
    found = made(peak)
    assert (found.decode.bandwidth_utilisation is not None) == bandwidth
    for part in (found.prefill, found.decode, found.window):
        assert (part.flop_utilisation_executed is not None) == operations
        assert (part.flop_utilisation_useful is not None) == operations
    assert found.decode.moved_bytes == 8688, "work is known without a data sheet"


def test_heads_that_several_ranks_calculate_are_executed_and_not_useful() -> None:
    """Two KV heads on four ranks: 640 weights in a layer's matrices instead of 576."""
    fed = Work(tokens=6, finished=6)
    work = {"decode": PhaseWork(2.0, 3, fed, fed)}
    found = efficiency(SMALL, work, None, precision="bf16", shards=4, duration_s=4.0).decode  # type: ignore[arg-type]
    assert (found.flop_executed, found.flop_useful) == (6 * 2 * 2 * 640, 6 * 2 * 2 * 576)


def test_a_data_sheet_counts_once_a_shard_whatever_the_nodes() -> None:
    gpu = GpuType(kind="cuda", per_node=2, memory_gib=32, data_sheet="v100-pcie-32gb")
    found = peak_figures(gpu, precision="fp16", shards=8, nodes=4)
    assert found is not None
    assert (found.data_sheet, found.devices) == ("v100-pcie-32gb", 8)
    assert (found.memory_bandwidth_b_s, found.flop_per_s) == (900e9, 112e12)
    assert (found.all_b_s, found.all_flop_per_s) == (7.2e12, 896e12)
    assert "V100 data sheet" in found.source


def test_a_precision_that_the_device_has_not_leaves_the_bandwidth() -> None:
    gpu = GpuType(kind="cuda", per_node=2, memory_gib=32, data_sheet="v100-pcie-32gb")
    found = peak_figures(gpu, precision="bf16", shards=1, nodes=1)
    assert found is not None
    assert (found.memory_bandwidth_b_s, found.flop_per_s) == (900e9, None)
    assert found.all_flop_per_s is None


def test_figures_of_the_sites_own_are_those_of_a_machine_of_processors() -> None:
    peak = {"memory_bandwidth_gb_s": 40, "tflops": {"fp32": 0.5}, "source": "measured"}
    cpu = GpuType.model_validate({"kind": "cpu", "per_node": 4, "memory_gib": 2, "peak": peak})
    found = peak_figures(cpu, precision="fp32", shards=4, nodes=2)
    assert found == PeakFigures(
        data_sheet=None, source="measured", devices=2, memory_bandwidth_b_s=40e9, flop_per_s=0.5e12
    )
    other = peak_figures(cpu, precision="bf16", shards=1, nodes=1)
    assert other is not None
    assert (other.devices, other.flop_per_s) == (1, None)


def test_a_site_that_says_nothing_has_no_peak() -> None:
    assert (
        peak_figures(GpuType(kind="cuda", per_node=1, memory_gib=80), precision="fp16", shards=1, nodes=1)
        is None
    )
