"""Guards the tokenizer against damaged files and odd ids, and the limits on prompts and cache."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from shardwatt.data.prompts import load_prompts
from shardwatt.data.tokenizer import Tokenizer, cache_positions, check_lengths, count_words
from shardwatt.datasets import load_catalogue
from shardwatt.errors import CellFailure, Reason

ROOT = Path(__file__).parents[2]
LINES = ["the lamp is on", "the lamp is off", "who turned the lamp off and on again?"]


def _model(*, bos_id: int = 1) -> bytes:
    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=stream,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        unk_id=0,
        bos_id=bos_id,
        eos_id=2,
        pad_id=-1,
    )
    return stream.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return _model()


@pytest.fixture
def tokenizer(tmp_path: Path, model: bytes) -> Tokenizer:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model)
    return Tokenizer(path)


def test_encode_begins_the_sequence_and_count_leaves_that_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the lamp")
    assert ids[0] == tokenizer.bos_id == 1
    assert tokenizer.count("the lamp") == len(ids) - 1 > 0
    assert tokenizer.encode("") == [1]
    assert tokenizer.count("") == 0
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (300, 2)


@pytest.mark.parametrize("text", ["the lamp", "two  spaces ", "tab\tand\nline", "é 漢字 🙂 \u2028", "a\0b"])
def test_text_of_any_language_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_padding_and_ids_out_of_range_give_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the lamp")
    odd = [-1, *ids, tokenizer.eos_id, -1, tokenizer.vocab_size, 2**31 - 1, -(2**31), 2**70]
    assert tokenizer.decode(odd) == "the lamp"
    assert tokenizer.decode([]) == tokenizer.decode([-1, 300]) == ""


def test_random_ids_always_give_text_that_can_be_stored(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(200):
        text = tokenizer.decode(draw.choices(range(-2, 302), k=40))
        text.encode("utf-8")
        assert tokenizer.count(text) >= 0


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match=r"tokenizer\.model: cannot be read: No such file") as caught:
        Tokenizer(tmp_path / "tokenizer.model")
    assert caught.value.reason is Reason.BAD_TOKENIZER


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_tokenizer_is_refused(tmp_path: Path, model: bytes, share: float) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model[: int(share * len(model))])
    with pytest.raises(CellFailure, match="is no SentencePiece model, or a damaged one") as caught:
        Tokenizer(path)
    assert caught.value.reason is Reason.BAD_TOKENIZER


def test_a_tokenizer_without_begin_or_end_of_sequence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(_model(bos_id=-1))
    with pytest.raises(CellFailure, match="begin of sequence has id -1") as caught:
        Tokenizer(path)
    assert caught.value.reason is Reason.BAD_TOKENIZER


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.expect_vocabulary(300)
    with pytest.raises(CellFailure, match="has 300 pieces, and the model's vocabulary has 32000") as caught:
        tokenizer.expect_vocabulary(32_000)
    assert caught.value.reason is Reason.BAD_TOKENIZER


@pytest.mark.parametrize(
    ("text", "words"), [("", 0), (" \n", 0), ("one", 1), ("one  two\nthree\tfour ", 4), ("don't, re-do", 2)]
)
def test_words_are_what_stands_between_white_space(text: str, words: int) -> None:
    assert count_words(text) == words


def test_prompts_that_leave_no_room_are_refused_with_their_number() -> None:
    prompts = [[1] * tokens for tokens in (5, 100, 511, 512, 600)]
    check_lengths(prompts[:3], 512)
    with pytest.raises(
        CellFailure, match="2 of 5 prompts are too long: the longest has 600 tokens"
    ) as caught:
        check_lengths(prompts, 512)
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert "expected at most 511 tokens" in caught.value.message


@pytest.mark.parametrize(
    ("length", "context", "cache_tokens", "positions"),
    [
        (32, 512, None, 132),
        (412, 512, None, 512),
        (1024, 512, None, 512),
        (32, 512, 256, 256),
        (32, 512, 2048, 512),
    ],
)
def test_the_cache_spans_the_longest_prompt_and_the_response_within_the_context(
    length: int, context: int, cache_tokens: int | None, positions: int
) -> None:
    assert cache_positions([[1] * 7, [1] * 100], length, context, cache_tokens) == positions


@pytest.mark.skipif("SHARDWATT_TEST_DATA" not in os.environ, reason="SHARDWATT_TEST_DATA is not set")
def test_llamas_tokenizer_gives_the_published_ids_and_the_text_back() -> None:
    data = Path(os.environ["SHARDWATT_TEST_DATA"])
    catalogue = load_catalogue(ROOT)
    tokenizer = Tokenizer(catalogue.tokenizer("llama").path(ROOT, data))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (32_000, 1, 2)
    assert tokenizer.encode("Hello world") == [1, 15043, 3186]
    for name in ("alpaca-5000", "gsm8k"):
        dataset = catalogue.dataset(name)
        for prompt in load_prompts(name, dataset, dataset.path(ROOT, data))[:500]:
            assert tokenizer.decode(tokenizer.encode(prompt.text)) == prompt.text


def test_pieces_without_text_of_their_own(tokenizer: Tokenizer) -> None:
    ids = tokenizer.unprintable_ids()
    assert {0, 1} <= set(ids)
    assert tokenizer.eos_id not in ids
    assert len(ids) == 258  # unknown, begin of sequence, and the 256 bytes
