"""The published loops' bookkeeping: which steps they take, what those count as, and where answers are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import engine_tiny
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.protocol import BatchResult, Sampling
from shardwatt.engine.reference import Reference
from shardwatt.engine.reference_v2 import ReferenceV2
from shardwatt.errors import CellFailure, DoesNotFit, Reason

GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=11)
NEVER_EOS = frozenset({1})  # the made weights never say it
SHORT, MIDDLE, LONG = [1, 40, 41], [1, 7, 9, 250, 33], [1, 5, 80, 81, 82, 83, 84, 11]
MIXED = [MIDDLE, SHORT, LONG]


@pytest.fixture(scope="module", params=[Reference, ReferenceV2], ids=["v1", "v2"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    checkpoint = engine_tiny.make(folder / "model")
    with engine_tiny.alone(folder / "group"):
        opened = engine_tiny.open_engine(checkpoint)
        opened.allocate(4, 64)
        yield request.param(opened.model, opened.device, NEVER_EOS)


def ask(
    engine: Reference,
    prompts: list[list[int]],
    length: int,
    *,
    positions: int = 64,
    sampling: Sampling = GREEDY,
    first: int = 0,
) -> BatchResult:
    return engine.generate(engine_tiny.ask(prompts, length, positions, first), sampling, lambda rows: None)


def with_eos(engine: Reference, *eos_ids: int) -> Reference:
    return type(engine)(engine.model, engine.device, frozenset(eos_ids))


@torch.inference_mode()
def greedy_alone(engine: Reference, prompt: list[int], length: int) -> list[int]:
    """Answer one prompt by feeding everything again for each token."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(engine.model(torch.tensor([tokens]), 0).argmax()))
    return tokens[len(prompt) :]


def test_longer_prompts_are_walked_and_never_overwritten(engine: Reference) -> None:
    alone = [greedy_alone(engine, prompt, 10) for prompt in MIXED]
    assert ask(engine, MIXED, 10).tokens == alone


def test_steps_are_prefill_to_the_shortest_prompt_then_token_by_token(engine: Reference) -> None:
    seen: list[tuple[int, int, int]] = []

    def note(block: nn.Module, arguments: tuple[Tensor, int, Tensor, Tensor | None]) -> None:
        x, start = arguments[:2]
        seen.append((x.shape[0], x.shape[1], start))

    counted: list[int] = []
    hook = engine.model.layers[0].register_forward_pre_hook(note)
    try:
        result = engine.generate(engine_tiny.ask(MIXED, 4), GREEDY, counted.append)
    finally:
        hook.remove()
    # Shortest 3, longest 8, total 12: tokens 3 to 7 walk through prompts, 8 to 10 decode.
    assert seen == [(3, 3, 0), *((3, 1, start) for start in range(3, 11))]
    assert counted == [3] * 9
    assert result.generated_tokens == 27
    assert [phase.name for phase in result.phases] == ["prefill", "walk", "decode"]


def test_phases_count_steps_fed_tokens_and_the_positions_that_those_attend_to(engine: Reference) -> None:
    phases = ask(engine, MIXED, 4).phases
    assert [(phase.steps, phase.tokens, phase.attended) for phase in phases] == [
        (1, 3 * 3, 3 * (1 + 2 + 3)),
        (5, 3 * 5, 3 * (4 + 5 + 6 + 7 + 8)),
        (3, 3 * 3, 3 * (9 + 10 + 11)),
    ]


def test_phases_follow_each_other_in_time(engine: Reference) -> None:
    times = [t for phase in ask(engine, MIXED, 4).phases for t in (phase.start_s, phase.stop_s)]
    assert times == sorted(times)
    assert all(start < stop for start, stop in zip(times[::2], times[1::2], strict=True))


@pytest.mark.parametrize(
    ("prompts", "length", "names", "steps"),
    [
        ([MIDDLE, MIDDLE], 4, ["prefill", "decode"], 4),
        ([MIDDLE], 1, ["prefill"], 1),
        ([SHORT, MIDDLE], 1, ["prefill", "walk"], 3),
    ],
)
def test_a_phase_without_steps_is_left_out(
    engine: Reference, prompts: list[list[int]], length: int, names: list[str], steps: int
) -> None:
    result = ask(engine, prompts, length)
    assert [phase.name for phase in result.phases] == names
    assert result.generated_tokens == steps * len(prompts)
    assert [len(tokens) for tokens in result.tokens] == [length] * len(prompts)


def test_answers_are_cut_at_length(engine: Reference) -> None:
    result = ask(engine, MIXED, 6)
    assert [len(tokens) for tokens in result.tokens] == [6, 6, 6]
    assert result.finish == ["length"] * 3


def test_answers_are_cut_before_the_end_of_sequence_and_the_loop_goes_on(engine: Reference) -> None:
    whole = ask(engine, MIXED, 10)
    eos_id = whole.tokens[0][4]
    result = ask(with_eos(engine, eos_id), MIXED, 10)
    first = whole.tokens[0].index(eos_id)
    assert result.tokens[0] == whole.tokens[0][:first]
    assert result.finish[0] == "eos"
    assert result.generated_tokens == whole.generated_tokens


def test_an_end_of_sequence_in_the_prompt_cuts_nothing(engine: Reference) -> None:
    whole = ask(engine, [MIDDLE], 6)
    in_prompt = next(token for token in MIDDLE if token not in whole.tokens[0])
    assert ask(with_eos(engine, in_prompt), [MIDDLE], 6).tokens == whole.tokens


def test_an_end_of_sequence_past_the_length_does_not_count(engine: Reference) -> None:
    # The short row computes on until the long one has its tokens; what comes after is not its answer.
    whole = greedy_alone(engine, SHORT, 9)
    late = next(token for token in whole[4:] if token not in whole[:4])
    result = ask(with_eos(engine, late), [SHORT, LONG], 4)
    assert result.tokens[0] == whole[:4]
    assert result.finish[0] == "length"


def test_a_full_cache_ends_rows_and_says_so(engine: Reference) -> None:
    result = ask(engine, MIXED, 10, positions=11)
    assert [len(tokens) for tokens in result.tokens] == [6, 8, 3]
    assert result.finish == ["context"] * 3
    assert result.generated_tokens == 3 * 8
    result = ask(engine, MIXED, 6, positions=11)
    assert result.finish == ["length", "length", "context"]


def test_any_of_several_ends_of_sequence_cuts(engine: Reference) -> None:
    whole = ask(engine, [MIDDLE, [*MIDDLE[:4], 34]], 8)
    ends = [whole.tokens[0][3], whole.tokens[1][5]]
    result = ask(with_eos(engine, *ends), [MIDDLE, [*MIDDLE[:4], 34]], 8)
    assert result.finish == ["eos", "eos"]
    for cut, tokens in zip(result.tokens, whole.tokens, strict=True):
        assert cut == tokens[: min(tokens.index(end) for end in ends if end in tokens)]


def test_seed_and_prompt_id_decide_what_is_drawn(engine: Reference) -> None:
    first = ask(engine, MIXED, 12, sampling=SAMPLED)
    ask(engine, MIXED, 12, sampling=SAMPLED, first=3)
    assert ask(engine, MIXED, 12, sampling=SAMPLED).tokens == first.tokens
    assert ask(engine, MIXED, 12, sampling=SAMPLED, first=3).tokens != first.tokens
    assert ask(engine, MIXED, 12, sampling=Sampling(0.8, 0.95, seed=12)).tokens != first.tokens


def test_a_batch_smaller_than_the_cache_ignores_what_it_held(engine: Reference) -> None:
    ask(engine, [LONG] * 4, 20)
    assert ask(engine, [SHORT], 8).tokens == [greedy_alone(engine, SHORT, 8)]


def test_memory_that_the_host_lacks_is_a_failure_of_the_host(engine: Reference) -> None:
    with pytest.raises(CellFailure, match="host ran out of memory") as caught:
        engine.allocate(10**7, 10**6)
    assert caught.value.reason is Reason.HOST_OOM
    engine.allocate(4, 64)


def test_memory_that_a_device_lacks_does_not_fit() -> None:
    with pytest.raises(DoesNotFit, match=r"Tried to allocate 2\.00 GiB\.$"), torch_failures():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


@pytest.mark.parametrize("word", ["Cuda failure 2 'out of memory'", "Cuda failure 'out of memory'"])
def test_memory_that_nccl_lacks_on_a_device_does_not_fit(word: str) -> None:
    told = f"""NCCL error in: /pytorch/torch/csrc/NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.27.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
{word}"""
    with pytest.raises(DoesNotFit, match=f"^{word}$"), torch_failures():
        raise torch.distributed.DistBackendError(told)


def test_a_rank_that_does_not_answer_is_told_and_a_kernel_that_ran_too_long_is_not_taken_for_one() -> None:
    peers = "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv to complete"
    with pytest.raises(CellFailure, match="another rank did not answer") as caught, torch_failures():
        raise RuntimeError(f"Gloo failed.\n{peers}")
    assert caught.value.reason is Reason.COLLECTIVE_TIMEOUT
    # As torch 2.13 tells cudaErrorLaunchTimeout.
    own = "CUDA error: the launch timed out and was terminated\nSearch for `cudaErrorLaunchTimeout' in https://…"
    with pytest.raises(RuntimeError, match="launch timed out"), torch_failures():
        raise RuntimeError(own)


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), torch_failures():
        raise RuntimeError("shapes do not match")


def test_peak_memory_is_of_this_process(engine: Reference) -> None:
    before = engine.peak_memory_gib()
    # A quarter of a GiB more than ever before: zeros are touched, so they are resident.
    held = torch.ones(int((before + 0.25) * 2**30 / 4))
    assert before + 0.2 < engine.peak_memory_gib() < before * 2 + 1
    assert held.numel() > 0
