"""Guards the arithmetic of work: what responses need, operations and bytes, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.modelwork import Answer, Work, flop, moved_bytes, useful_work

#: Heads of 2; wq and wo 8 x 8, wk and wv 8 x 4, feed-forward 3 x 8 x 16: 576 weights in a layer's matrices,
#: of which 448 are behind its attention, wo and the feed-forward layer.
SMALL = Architecture(dim=8, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=16, vocab_size=10)

#: Ended by itself after two tokens; and filled its length of four.
ENDED, FULL = Answer(3, 2, ended=True), Answer(5, 4, ended=False)

ANSWERS = st.lists(st.builds(Answer, st.integers(1, 9), st.integers(0, 9), ended=st.booleans()), min_size=1)


def test_an_end_is_drawn_after_the_last_token_and_a_full_response_feeds_its_last_one_nowhere() -> None:
    assert (ENDED.needed, FULL.needed) == (3 + 2, 5 + 3)
    assert Answer(4, 0, ended=True).needed == 4, "ended at once: the prompt alone"
    assert Answer(4, 0, ended=False).needed == 4, "no room for any token"


def test_prompts_prefilled_whole_and_what_follows() -> None:
    work = useful_work([ENDED, FULL], walked=False)
    # 1 + 2 + 3 and 1 + … + 5 positions attended to; the last position of each prompt draws.
    assert work["prefill"] == Work(tokens=8, logits=2, attended=6 + 15, finished=2)
    assert work["walk"] == Work()
    # Positions 3 and 4 of the first, 5 to 7 of the second.
    assert work["decode"] == Work(tokens=5, logits=5, attended=(4 + 5) + (6 + 7 + 8), finished=5)


def test_the_walk_holds_the_longer_prompts_rest_and_the_shorter_ones_tokens() -> None:
    work = useful_work([ENDED, FULL], walked=True)
    assert work["prefill"] == Work(tokens=6, logits=1, attended=6 + 6, finished=1)
    # Positions 3 and 4 of both: new tokens of the first, prompt of the second, whose last position draws.
    assert work["walk"] == Work(tokens=4, logits=3, attended=9 + 9, finished=3)
    assert work["decode"] == Work(tokens=3, logits=3, attended=6 + 7 + 8, finished=3)


@given(ANSWERS)
def test_what_responses_need_does_not_depend_on_how_prompts_are_fed(answers: Sequence[Answer]) -> None:
    walked, whole = (useful_work(answers, walked=walk) for walk in (True, False))
    assert sum(walked.values(), Work()) == sum(whole.values(), Work())
    fed = [position for answer in answers for position in range(answer.needed)]
    drawn = sum(answer.needed - answer.prompt_tokens + 1 for answer in answers)
    assert sum(whole.values(), Work()) == Work(len(fed), drawn, sum(position + 1 for position in fed), drawn)


def test_operations_by_hand() -> None:
    # 2 layers x 576 weights without the last 448; these; 10 x 8 weights of the output layer; 2 layers of 4
    # heads of 2.
    assert flop(SMALL, Work(tokens=1)) == 2 * (2 * 576 - 448) == 1408
    assert flop(SMALL, Work(finished=1)) == 2 * 448 == 896
    assert flop(SMALL, Work(logits=1)) == 2 * 80
    assert flop(SMALL, Work(attended=1)) == 4 * 2 * 8
    assert flop(SMALL, Work(3, 2, 7, 3)) == 3 * 2304 + 2 * 160 + 7 * 64


def test_the_prefill_of_an_engine_that_ends_with_the_last_tokens_is_what_the_answers_need() -> None:
    """Two prompts of 3 and 5: `fast` takes 8 tokens to the last layer's attention and 2 beyond it."""
    needed = useful_work([ENDED, FULL], walked=False)["prefill"]
    all_the_way = replace(needed, finished=8)
    assert flop(SMALL, needed) == 8 * 1408 + 2 * 896 + 2 * 160 + 21 * 64
    assert flop(SMALL, all_the_way) - flop(SMALL, needed) == 6 * 896


def test_a_7b_model_takes_13_2_gflop_a_token() -> None:
    # 6,738,415,616 weights, of which 131,072,000 are the embedding and 266,240 norms.
    whole = 2 * 6_607_077_376
    assert flop(CATALOGUE["llama-7b"], Work(1, 1, 0, 1)) == whole
    # One whose last layer goes no further than its attention: without wo and the feed-forward layer.
    short = 4096 * 4096 + 3 * 4096 * 11_008
    assert flop(CATALOGUE["llama-7b"], Work(1, 1, 0, 0)) == whole - 2 * short


def test_bytes_by_hand() -> None:
    # 2 x 576 matrices, 5 norms of 8 and an output layer of 80: 1,272 weights a step; 8 numbers of the
    # embedding a token; 2 x 2 layers x 4 numbers of keys and values for each position attended to.
    work = Work(tokens=6, logits=6, attended=30)
    numbers = 3 * 1272 + 6 * 8 + 30 * 16
    assert moved_bytes(SMALL, work, steps=3, precision="bf16", shards=1) == 2 * numbers
    assert moved_bytes(SMALL, work, steps=3, precision="fp32", shards=1) == 4 * numbers
    assert moved_bytes(SMALL, Work(), steps=0, precision="fp16", shards=1) == 0


def test_heads_above_their_number_are_read_and_calculated_by_each_rank() -> None:
    # Two KV heads on four ranks: keys and values are 8 wide instead of 4, so a layer's matrices 640.
    assert flop(SMALL, Work(tokens=1), shards=2) == flop(SMALL, Work(tokens=1))
    assert flop(SMALL, Work(tokens=1, finished=1), shards=4) == 2 * 2 * 640
    assert flop(SMALL, Work(finished=1), shards=4) == 2 * 448, "nothing behind attention is repeated"
    assert flop(SMALL, Work(attended=1), shards=4) == 4 * 2 * 8, "query heads are split, never repeated"
    one_step = moved_bytes(SMALL, Work(), steps=1, precision="fp16", shards=4) // 2
    assert one_step == 2 * 640 + 4 * 40 + 80
    assert moved_bytes(SMALL, Work(attended=1), steps=0, precision="fp16", shards=4) == 2 * 32


@pytest.mark.parametrize("name", ["llama-7b", "llama-65b", "llama-2-70b"])
@pytest.mark.parametrize("shards", [1, 8, 16])
def test_a_step_reads_every_weight_of_every_rank_but_the_embedding(name: str, shards: int) -> None:
    architecture = CATALOGUE[name]
    held = shards * architecture.parameters_per_shard(shards)
    read = moved_bytes(architecture, Work(), steps=1, precision="fp16", shards=shards) // 2
    assert read == held - architecture.vocab_size * architecture.dim


def test_a_tied_embedding_is_read_as_the_output_layer() -> None:
    tied = Architecture(8, 2, 4, 2, 16, 10, tied_embeddings=True)
    step, other = (moved_bytes(a, Work(2, 2, 9), steps=1, precision="fp16", shards=1) for a in (tied, SMALL))
    assert step == other
