"""How long a phase takes: a roofline of its operations, and what the loop, the links and the host add.

On a GPU kernels of one stream run one after another (CUDA C++ Programming Guide, "Streams"), so that what
they take adds up: matrix products and attention, each as long as the longer of arithmetic and memory traffic
(roofline: Williams, Waterman and Patterson, 2009); copies and other passes over memory; small kernels, which
take their start and end; sampling; collectives, which the next product waits for. Launches are asynchronous
(the same guide, "Asynchronous Concurrent Execution"): the host works beside the device, and the phase takes
as long as the slower of the two. On processors each operation is taken by the thread that launches it: all
adds up.

Left out: scores of the attention beside the cache (2 % of it), norms' own arithmetic, the host's waiting for
the device at the end of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardwatt.architectures import Architecture
from shardwatt.cell import Cell
from shardwatt.engines import ENGINES, Loop
from shardwatt.modelwork import PhaseName, Work, flop, moved_bytes
from shardwatt.plan.collectives import NOTHING, CollectiveSeconds, all_gather_s, all_reduce_s, way_of
from shardwatt.plan.device import Factors, PlanDevice
from shardwatt.plan.memory import BYTES
from shardwatt.plan.workload import PhaseLoad
from shardwatt.study import CudaGraphs

#: Sums over the ranks in a layer: after attention and after the feed-forward layer (arXiv 1909.08053).
REDUCES_PER_LAYER = 2

#: Device time in s of a kernel that has next to nothing to do, at the boost clock (an assumption): its start
#: and its end take cycles, and so more time at a lower clock.
KERNEL_S = 2e-6


@dataclass(frozen=True, slots=True)
class LoopCosts:
    """What a loop costs beside its matrix products, by `Loop`.

    Attributes:
        kernels: a layer launches, counted in the loop's code, by what it takes for each operation.
        small: of these, those that neither multiply matrices nor exchange with other ranks.
        per_step: kernels of a step outside of the layers: embedding, last norm, logits, sampling.
        fused: whether norms and feed-forward layer pass over their data but once.
        graphs: whether it can replay its decode steps from CUDA graphs on a GPU.
        sampling_bytes: memory traffic of drawing a token for each piece of the vocabulary, on GPUs (counted:
            a sort of 32-bit keys and 64-bit ids takes 4 passes, read and written) and on processors, where
            sorting is slower than its traffic (600: 30 ns a piece at 20 GB/s, docs/benchmarks.md).
    """

    kernels: int
    small: int
    per_step: int
    fused: bool
    graphs: bool
    sampling_bytes: dict[str, float]


#: Memory traffic of finding the likeliest token for each piece of the vocabulary: its logit is read once.
LIKELIEST_BYTES = 4.0

#: Of each loop. The published one: two norms of 8 operations, 7 products, rotation 6, cache 2, attention 9
#: with two products and two copies of the cache in it, gate 2, two sums, two additions.
LOOP_COSTS: dict[Loop, LoopCosts] = {
    "published": LoopCosts(46, 33, 60, False, False, {"cuda": 200.0, "cpu": 600.0}),
    "transformers": LoopCosts(44, 31, 80, False, False, {"cuda": 300.0, "cpu": 1200.0}),
    "fast": LoopCosts(18, 10, 40, True, True, {"cuda": 200.0, "cpu": 80.0}),
}


@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """Time of one phase, all batches together, on each device alike.

    Attributes:
        compute_s: matrix products and attention at the rate of the matrix units; at a lower clock more.
        memory_s: reading weights and cache. Of each product the longer of these two counts.
        copies_s: further traffic of the loop: copies of the cache, passes over activations and logits.
        kernels_s: small kernels beyond what their traffic takes; at a lower clock more.
        sampling_s: drawing tokens.
        latency_s: of the collectives' messages.
        transfer_s: of their bytes.
        launch_s: the host's launches.
        duration_s: the phase.
        busy: share of it in which a kernel runs, collectives included.
        busy_compute: share of it in which matrix units work.
        busy_memory: share of it in which memory is read or written.
        busy_collective: share of it in which ranks exchange, or wait for each other.
    """

    compute_s: float = 0.0
    memory_s: float = 0.0
    copies_s: float = 0.0
    kernels_s: float = 0.0
    sampling_s: float = 0.0
    latency_s: float = 0.0
    transfer_s: float = 0.0
    launch_s: float = 0.0
    duration_s: float = 0.0
    busy: float = 0.0
    busy_compute: float = 0.0
    busy_memory: float = 0.0
    busy_collective: float = 0.0


def phase_seconds(
    architecture: Architecture,
    cell: Cell,
    phase: PhaseName,
    load: PhaseLoad,
    device: PlanDevice,
    factors: Factors,
    *,
    nodes: int,
    clock: float = 1.0,
    cuda_graphs: CudaGraphs = "one-shard",
    temperature: float = 1.0,
) -> PhaseSeconds:
    """Estimate how long a phase takes.

    Args:
        architecture: the model's shape.
        cell: its engine, precision and shards.
        phase: which one.
        load: what is done in it.
        device: what each rank computes on.
        factors: what real kernels reach of it.
        nodes: that the ranks are on, evenly.
        clock: core clock over the boost clock; arithmetic and small kernels go by it, memory, links and host
            do not.
        cuda_graphs: where the loops that can replay decode steps from CUDA graphs do so.
        temperature: at 0 the likeliest token is taken, and nothing is sorted.
    """
    if load.steps == 0:
        return PhaseSeconds()
    costs = LOOP_COSTS[ENGINES[cell.engine].loop]
    flop_per_s = device.flop_per_s * factors.compute * clock
    bytes_per_s = device.memory_bandwidth_b_s * factors.bandwidth
    products, attention = _flops(architecture, cell, phase, load, costs)
    weights, cache = _read_bytes(architecture, cell, phase, load)
    compute_s = (products + attention) / flop_per_s
    memory_s = (weights + cache) / bytes_per_s
    products_s = max(products / flop_per_s, weights / bytes_per_s)
    attention_s = max(attention / flop_per_s, cache / bytes_per_s)

    activations_s = _activation_bytes(architecture, cell, load, costs) / bytes_per_s
    copies_s = activations_s + _copied_bytes(architecture, cell, phase, load) / bytes_per_s
    small = load.steps * (architecture.n_layers * costs.small + costs.per_step)
    kernels_s = max(0.0, small * KERNEL_S / clock - activations_s) if device.kind == "cuda" else 0.0
    drawn = load.rows * load.steps if phase == "prefill" else load.work.tokens
    of_a_piece = costs.sampling_bytes[device.kind] if temperature > 0 else LIKELIEST_BYTES
    sampling_s = drawn * architecture.vocab_size * of_a_piece / bytes_per_s
    exchange = _exchange(architecture, cell, load, device, factors, nodes)

    launches = load.steps * (architecture.n_layers * costs.kernels + costs.per_step)
    replays = {"never": False, "one-shard": cell.shards == 1, "always": True}[cuda_graphs]
    if costs.graphs and replays and device.kind == "cuda" and phase == "decode":
        launches = load.steps
    launch_s = launches * device.launch_s * factors.launch

    on_device_s = products_s + attention_s + copies_s + kernels_s + sampling_s + exchange.total_s
    is_beside = device.kind == "cuda"
    duration_s = max(on_device_s, launch_s) if is_beside else on_device_s + launch_s
    return PhaseSeconds(
        compute_s=compute_s,
        memory_s=memory_s,
        copies_s=copies_s,
        kernels_s=kernels_s,
        sampling_s=sampling_s,
        latency_s=exchange.latency_s,
        transfer_s=exchange.transfer_s,
        launch_s=launch_s,
        duration_s=duration_s,
        busy=on_device_s / duration_s,
        busy_compute=compute_s / duration_s,
        busy_memory=(memory_s + copies_s + sampling_s) / duration_s,
        busy_collective=exchange.total_s / duration_s,
    )


def _without_attention(work: Work) -> Work:
    """What goes through the matrix products with weights alone."""
    return Work(tokens=work.tokens, logits=work.logits, finished=work.finished)


def _flops(
    architecture: Architecture, cell: Cell, phase: PhaseName, load: PhaseLoad, costs: LoopCosts
) -> tuple[float, float]:
    """Operations of one rank: those of matrix products with weights, and those of attention.

    A prefill whose attention is not fused computes the masked half too.
    """
    products = flop(architecture, _without_attention(load.work), cell.shards)
    attention = flop(architecture, Work(attended=load.work.attended), cell.shards)
    if phase == "prefill" and not costs.fused:
        attention *= 2
    return products / cell.shards, attention / cell.shards


def _read_bytes(
    architecture: Architecture, cell: Cell, phase: PhaseName, load: PhaseLoad
) -> tuple[float, float]:
    """The least that one rank reads: weights once a step; keys and values of what is attended to, and in a
    prefill those of each token once."""
    work = load.work
    weights = moved_bytes(
        architecture,
        _without_attention(work),
        steps=load.steps,
        precision=cell.precision,
        shards=cell.shards,
    )
    cached = work.tokens if phase == "prefill" else work.attended
    cache = moved_bytes(
        architecture, Work(attended=cached), steps=0, precision=cell.precision, shards=cell.shards
    )
    return weights / cell.shards, cache / cell.shards


def _copied_bytes(architecture: Architecture, cell: Cell, phase: PhaseName, load: PhaseLoad) -> float:
    """Traffic of a rank's copies: of the cache, beyond reading it once, and of the logits into 32 bits.

    With r query heads to a key head, and the keys and values of all positions that a step goes over as the
    unit: the published loop turns them into another order, which reads, writes and reads again (2 more); for
    grouped heads it writes them r times over before (4 r more in all). transformers' cache grows, which reads
    and writes them (2 more), and repeats them for grouped heads (2 r more).
    """
    number = BYTES[cell.precision]
    shared = architecture.n_heads // cell.shards // architecture.kv_heads_per_shard(cell.shards)
    match ENGINES[cell.engine].loop:
        case "published":
            times = 4 * shared if shared > 1 else 2
        case "transformers":
            times = 2 + 2 * shared if shared > 1 else 2
        case "fast":
            times = 0
    positions = load.work.tokens * (1.0 if phase == "prefill" else load.positions)
    of_position = 2 * architecture.kv_heads_per_shard(cell.shards) * architecture.head_dim * number
    logits = load.work.logits * architecture.vocab_size * (number + 4)
    return times * architecture.n_layers * positions * of_position + logits


def _activation_bytes(architecture: Architecture, cell: Cell, load: PhaseLoad, costs: LoopCosts) -> float:
    """Traffic of a rank's passes over activations between matrix products, from the loops' code.

    Of p bytes a number, for each token and layer: a norm, width dim, in one operation 2 p, operation by
    operation 28, and 4 p to go to 32 bits and back; the residual stream 6 p; rotation of queries and keys 16,
    and 2 p there and back; keys and values into the cache 4 p; the gate, as wide as the feed-forward layer,
    5 p.
    """
    number, shards = BYTES[cell.precision], cell.shards
    is_wide = number == 4
    norm = 2 * number if costs.fused else 28 + (0 if is_wide else 4 * number)
    rotation = 16 + (0 if is_wide else 2 * number)
    kv_width = architecture.kv_heads_per_shard(shards) * architecture.head_dim
    of_token: float = architecture.dim * (2 * norm + 6 * number)
    of_token += rotation * (architecture.q_dim / shards + kv_width) + 4 * number * kv_width
    of_token += 5 * number * architecture.hidden_dim / shards
    return architecture.n_layers * load.work.tokens * of_token


def _exchange(
    architecture: Architecture,
    cell: Cell,
    load: PhaseLoad,
    device: PlanDevice,
    factors: Factors,
    nodes: int,
) -> CollectiveSeconds:
    """What ranks tell each other: sums in each layer, columns of the embedding, logits."""
    if cell.shards == 1:
        return NOTHING
    number, steps = BYTES[cell.precision], load.steps
    hidden_bytes = load.work.tokens / steps * architecture.dim * number
    logits_bytes = load.work.logits / steps * architecture.vocab_size * number
    way = way_of(cell.shards, nodes, device, factors)
    reduced = all_reduce_s(hidden_bytes, way)
    sums = REDUCES_PER_LAYER * architecture.n_layers
    gathered = [all_gather_s(hidden_bytes, way), all_gather_s(logits_bytes, way)]
    return CollectiveSeconds(
        steps * (sums * reduced.latency_s + sum(one.latency_s for one in gathered)),
        steps * (sums * reduced.transfer_s + sum(one.transfer_s for one in gathered)),
    )
