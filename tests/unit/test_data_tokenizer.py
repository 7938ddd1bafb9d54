"""Guards tokenizers of every kind against damaged files and odd ids, and the limits on prompts and cache."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenizers_tiny as tiny
from shardwatt.checkpoints import Layout
from shardwatt.data.prompts import load_prompts
from shardwatt.data.tokenizer import Tokenizer, cache_positions, check_lengths, count_words, open_tokenizer
from shardwatt.data.tokenizer_json import JsonTokenizer
from shardwatt.datasets import load_catalogue
from shardwatt.errors import CellFailure, Reason

ROOT = Path(__file__).parents[2]
#: Name and content of a file of each kind.
CONTENT: dict[str, tuple[str, Callable[[], bytes]]] = {
    "sentencepiece": ("tokenizer.model", tiny.sentencepiece_model),
    "sentencepiece-json": (
        "tokenizer.json",
        lambda: tiny.converted(tiny.sentencepiece_model()).to_str().encode(),
    ),
    "tiktoken": ("tokenizer.model", tiny.tiktoken_file),
    "tiktoken-json": ("tokenizer.json", lambda: tiny.llama_3_json().encode()),
}
KINDS = tuple(CONTENT)

#: Text that can be stored, without the sign that SentencePiece writes for a space.
STORABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=tiny.SPACE), max_size=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in KINDS:
        name, content = CONTENT[kind]
        (root / kind).mkdir()
        (root / kind / name).write_bytes(content())
    return root


@pytest.fixture(scope="module")
def tokenizers(folder: Path) -> dict[str, Tokenizer]:
    return {kind: open_tokenizer(folder / kind / CONTENT[kind][0]) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]


def refused(path: Path, content: bytes | str | None, words: str) -> None:
    """Expect that a file of such content, if any, is refused by its path and in such words."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CellFailure, match=words) as caught:
        open_tokenizer(path)
    assert caught.value.reason is Reason.BAD_TOKENIZER
    assert str(path.parent) in caught.value.message


def test_the_content_says_the_kind_whatever_the_name(
    tmp_path: Path, folder: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    for kind in KINDS:
        path = tmp_path / kind
        path.write_bytes((folder / kind / CONTENT[kind][0]).read_bytes())
        found = open_tokenizer(path)
        assert type(found) is type(tokenizers[kind])
        assert found.encode("Who turned it on?") == tokenizers[kind].encode("Who turned it on?")


def test_ids_of_begin_and_end_are_those_of_the_family(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("sentencepiece", "sentencepiece-json"):
        found = tokenizers[kind]
        assert (found.vocab_size, found.bos_id, found.eos_ids) == (600, 1, frozenset({2}))
    for kind in ("tiktoken", "tiktoken-json"):
        found = tokenizers[kind]
        assert (found.vocab_size, found.bos_id, found.eos_ids) == (856, 600, frozenset({601, 608, 609}))


def test_encode_begins_the_sequence_and_count_leaves_that_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the lamp")
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.bos_id not in ids[1:]
    assert not tokenizer.eos_ids & set(ids)
    assert tokenizer.count("the lamp") == len(ids) - 1 > 0
    assert tokenizer.encode("") == [tokenizer.bos_id]
    assert tokenizer.count("") == 0


def test_nothing_is_padded_or_cut_though_the_file_asks_for_it(tokenizer: Tokenizer) -> None:
    text = " ".join(tiny.texts())
    assert tokenizer.count(text) > 1000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "the lamp",
        " a space in front",
        "  two  spaces ",
        " ",
        "tab\tand\nline\r\n",
        "é 漢字 🙂 \u2028",
        "a\0b",
        "<s>text is text</s><|eot_id|><unk><0x41>",
        "don't I'LL 1234567 x=(y+1);\n\n\n  z",
    ],
)
def test_text_of_any_language_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.eos_ids & set(ids)


@given(STORABLE)
def test_any_text_comes_back_as_it_was(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for found in tokenizers.values():
        assert found.decode(found.encode(text)) == text


@given(STORABLE)
def test_two_files_of_the_same_tokenizer_give_the_same_ids(
    tokenizers: dict[str, Tokenizer], text: str
) -> None:
    assert tokenizers["sentencepiece"].encode(text) == tokenizers["sentencepiece-json"].encode(text)
    assert tokenizers["tiktoken"].encode(text) == tokenizers["tiktoken-json"].encode(text)


def test_two_files_of_the_same_tokenizer_give_the_same_ids_of_prompts_and_the_same_text_of_ids(
    tokenizers: dict[str, Tokenizer],
) -> None:
    draw = random.Random(0)
    for one, other in (("sentencepiece", "sentencepiece-json"), ("tiktoken", "tiktoken-json")):
        for text in tiny.texts():
            assert tokenizers[one].encode(text) == tokenizers[other].encode(text)
        parts = tokenizers[one].unprintable_ids()
        assert parts == tokenizers[other].unprintable_ids()
        whole = sorted(set(range(600)) - set(parts))  # parts of characters may give more signs or fewer
        for _ in range(200):
            ids = draw.choices(whole, k=40)
            assert tokenizers[one].decode(ids) == tokenizers[other].decode(ids)


def test_decoding_takes_one_space_from_the_front_where_encoding_puts_one(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """A response that begins with a word begins without a space in LLaMA 1 and 2, and with it in LLaMA 3."""
    for kind, text in (
        ("sentencepiece", "the lamp"),
        ("sentencepiece-json", "the lamp"),
        ("tiktoken", " the lamp"),
        ("tiktoken-json", " the lamp"),
    ):
        before = tokenizers[kind].encode("Turn on")
        whole = tokenizers[kind].encode("Turn on the lamp")
        assert whole[: len(before)] == before
        assert tokenizers[kind].decode(whole[len(before) :]) == text


def test_padding_special_tokens_and_ids_out_of_range_give_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the lamp")
    ends = sorted(tokenizer.eos_ids)
    odd = [-1, *ids, *ends, -1, tokenizer.vocab_size, 2**31 - 1, -(2**31), 2**70]
    assert tokenizer.decode(odd) == "the lamp"
    assert tokenizer.decode([]) == tokenizer.decode([-1, tokenizer.vocab_size]) == ""
    assert tokenizer.decode([tokenizer.bos_id, *ends]) == ""


def test_what_a_tokenizer_json_does_not_call_special_gives_no_text_either(
    tmp_path: Path, folder: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    kind = "sentencepiece-json"
    settings = json.loads((folder / kind / "tokenizer.json").read_text())
    for token in settings["added_tokens"]:
        token["special"] = False
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(settings))
    found = open_tokenizer(path)
    assert found.decode([*found.encode("the lamp"), *found.eos_ids]) == "the lamp"
    assert found.unprintable_ids() == tokenizers[kind].unprintable_ids()


def test_random_ids_always_give_text_that_can_be_stored(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(200):
        text = tokenizer.decode(draw.choices(range(-2, tokenizer.vocab_size + 2), k=40))
        text.encode("utf-8")
        assert tokenizer.count(text) >= 0


def test_pieces_without_text_of_their_own(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("sentencepiece", "sentencepiece-json"):
        assert tokenizers[kind].unprintable_ids() == (0, 1, *range(3, 259))  # unknown, begin, the 256 bytes
    for kind in ("tiktoken", "tiktoken-json"):
        found = tokenizers[kind]
        ids = found.unprintable_ids()
        assert sum(token < 600 for token in ids) >= 128  # at least the bytes above 127
        assert {token for token in ids if token >= 600} == set(range(600, 856)) - found.eos_ids
        for token in set(range(600)) - set(ids):
            assert found.encode(found.decode([token]))[1:] == [token]


def test_runs_that_would_overflow_the_split_are_cut_where_the_published_code_cuts_them(
    tokenizers: dict[str, Tokenizer],
) -> None:
    found = tokenizers["tiktoken"]
    for word in (" ", "\r\n ", "turned"):
        text = word * 11_000 + "!"
        cuts = [text[first : first + 25_000] for first in range(0, len(text), 25_000)]
        assert found.encode(text)[1:] == [token for cut in cuts for token in found.encode(cut)[1:]]
    long = " the lamp" * 60_000
    parts = [long[:400_000], long[400_000:]]
    assert found.encode(long)[1:] == [token for part in parts for token in found.encode(part)[1:]]
    assert found.decode(found.encode(" " * 1_000_000)) == " " * 1_000_000


def test_opening_and_using_a_tokenizer_asks_no_network(folder: Path) -> None:
    """In a process of its own, in which every socket is an error."""
    program = (
        "import socket, sys\n"
        "from pathlib import Path\n"
        "def refuse(*args, **kwargs): raise AssertionError('a socket')\n"
        "socket.socket = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from shardwatt.data.tokenizer import open_tokenizer\n"
        "for path in sys.argv[1:]:\n"
        "    tokenizer = open_tokenizer(Path(path))\n"
        "    assert tokenizer.decode(tokenizer.encode('the lamp')) == 'the lamp'\n"
    )
    paths = [str(folder / kind / CONTENT[kind][0]) for kind in KINDS]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, timeout=600)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    refused(
        tmp_path / "tokenizer.model", None, r"tokenizer\.model: cannot be read: No such file .* expected a"
    )
    refused(tmp_path, None, "cannot be read: Is a directory")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sentencepiece", "is no tokenizer, or a damaged one .* expected a SentencePiece model"),
        ("sentencepiece-json", "is no JSON file, or a damaged one"),
        ("tiktoken", r"line \d+ is .*; expected a token in base64, a space and its rank|has no token for"),
        ("tiktoken-json", "is no JSON file, or a damaged one"),
    ],
)
def test_a_truncated_tokenizer_is_refused(
    tmp_path: Path, folder: Path, kind: str, words: str, share: float
) -> None:
    name = CONTENT[kind][0]
    whole = (folder / kind / name).read_bytes()
    part = whole[: int(share * len(whole))]
    if part.endswith(b"\n"):
        part = part[:-4]
    refused(tmp_path / name, part, words if part else "is empty; expected a SentencePiece model")


def test_a_pointer_of_git_lfs_is_told_from_a_tokenizer(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 499723\n"
    refused(tmp_path / "tokenizer.model", pointer, "is a pointer of git-lfs, .* run `git lfs pull`")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", b"PK\x03\x04" + bytes(80)])
def test_a_file_of_no_known_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(
        tmp_path / "tokenizer.model", content, "is no tokenizer, or a damaged one .* tiktoken file of LLaMA 3"
    )


def test_a_tokenizer_without_begin_or_end_of_sequence_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path / "tokenizer.model", tiny.sentencepiece_model(bos_id=-1), "begin of sequence has id -1 and"
    )
    settings = json.loads(tiny.llama_3_json(specials=1 + 9))
    settings["added_tokens"] = settings["added_tokens"][:1]
    refused(
        tmp_path / "tokenizer.json", json.dumps(settings), "has no end of sequence: expected bos_token and"
    )
    settings["added_tokens"] = []
    refused(tmp_path / "tokenizer.json", json.dumps(settings), "has no begin of sequence")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"line": b"!!!! 300"}, r"line 301 is '!!!! 300'; expected a token in base64, a space and its rank"),
        ({"line": b"aGFsbG8="}, "line 301 is 'aGFsbG8='"),
        ({"line": b"aGFsbG8= many"}, "line 301 is 'aGFsbG8= many'"),
        ({"line": b"aGFsbG8= 299"}, "has 600 lines, 600 different tokens and ranks up to 599; expected each"),
        ({"line": b"AA== 300"}, "has 600 lines, 599 different tokens"),
        ({"drop": 300}, "has 599 lines, 599 different tokens and ranks up to 599"),
        ({"from": 1}, "ranks up to 599; expected each rank from 0 on once"),
    ],
)
def test_a_damaged_tiktoken_file_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    lines = tiny.tiktoken_file().splitlines()
    if "line" in change:
        lines[300] = change["line"]
    if "drop" in change:
        del lines[change["drop"]]
    refused(tmp_path / "tokenizer.model", b"\n".join(lines[change.get("from", 0) :]), words)


def test_a_tiktoken_file_needs_a_token_for_every_byte(tmp_path: Path) -> None:
    lines = tiny.tiktoken_file().splitlines()[:250]
    refused(tmp_path / "tokenizer.model", b"\n".join(lines), "has no token for 6 of the 256 bytes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", r"holds the keys \(none\); expected those of a tokenizer\.json"),
        (
            json.dumps({"config": {}, "vocab": []}),
            r"holds the keys config, vocab; .* put the checkpoint's own",
        ),
        (json.dumps({"model": {"type": "Other"}}), r"is no tokenizer\.json, or a damaged one"),
    ],
)
def test_a_json_file_of_another_kind_is_refused(tmp_path: Path, content: str, words: str) -> None:
    refused(tmp_path / "tokenizer.json", content, words)


def changed_json(**model: object) -> str:
    settings = json.loads(tiny.converted(tiny.sentencepiece_model()).to_str())
    settings["model"].update(model)
    return json.dumps(settings)


def test_a_tokenizer_json_that_would_fail_in_the_middle_of_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    refused(path, '{"model":' + "[" * 100_000, "is no JSON file, or a damaged one")
    refused(
        path, changed_json(unk_token="<nothing>"), "puts '<nothing>' for what it does not know, and has no"
    )
    # Added beside the vocabulary it is no piece of the model's own.
    words = {**json.loads(changed_json()), "normalizer": None}
    words["model"] = {"type": "WordLevel", "vocab": {"<s>": 1, "</s>": 2, "lamp": 3}, "unk_token": "<unk>"}
    refused(path, json.dumps(words), "puts '<unk>' for what it does not know, and has no such")
    empty = {**json.loads(changed_json(vocab={}, merges=[], unk_token=None)), "added_tokens": []}
    empty |= {"post_processor": None, "padding": None}
    refused(path, json.dumps(empty), "has no pieces; expected the model's own")


@pytest.mark.parametrize("front", ["\ufeff", " \n", "\ufeff\r\n\t"])
def test_what_may_stand_before_json_does_not_make_it_another_kind(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], front: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(front + changed_json(), encoding="utf-8")
    assert open_tokenizer(path).encode("the lamp") == tokenizers["sentencepiece"].encode("the lamp")


def test_a_tokenizer_that_draws_its_merges_is_refused(tmp_path: Path) -> None:
    settings = json.loads(tiny.llama_3_json())
    settings["model"]["dropout"] = 0.1
    refused(
        tmp_path / "tokenizer.json", json.dumps(settings), "leaves merges out at random; .* `dropout` to null"
    )


def written(folder: Path, config: object) -> Path:
    """A tokenizer.json with a tokenizer_config.json beside it."""
    (folder / "tokenizer.json").write_text(tiny.llama_3_json())
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "tokenizer_config.json").write_text(text)
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("config", "bos_id", "eos_ids"),
    [
        ({"bos_token": "<|end_of_text|>", "eos_token": "<|eot_id|>"}, 601, {601, 608, 609}),
        ({"eos_token": "<|reserved_special_token_7|>"}, 600, {601, 607, 608, 609}),
        (
            {"eos_token": {"content": "<|reserved_special_token_7|>"}, "bos_token": None},
            600,
            {601, 607, 608, 609},
        ),
        ({}, 600, {601, 608, 609}),
    ],
)
def test_a_tokenizer_config_json_beside_it_names_begin_and_end(
    tmp_path: Path, config: dict[str, Any], bos_id: int, eos_ids: set[int]
) -> None:
    found = open_tokenizer(written(tmp_path, config))
    assert (found.bos_id, found.eos_ids) == (bos_id, frozenset(eos_ids))
    assert found.decode([*found.encode("the lamp"), *eos_ids]) == "the lamp"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bos_token": "<s>"}, "has no token '<s>', which the tokenizer_config.json beside it names"),
        ({"eos_token": 2}, r"tokenizer_config\.json: eos_token: found 2; expected the name of a token"),
        ("{", r"tokenizer_config\.json: is no JSON file, or a damaged one"),
        ([], r"tokenizer_config\.json: holds a JSON list; expected an object"),
    ],
)
def test_a_wrong_tokenizer_config_json_is_refused(tmp_path: Path, config: object, words: str) -> None:
    refused(written(tmp_path, config), None, words)


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.vocab_size
    tokenizer.expect_vocabulary(pieces)
    with pytest.raises(
        CellFailure, match=f"has {pieces} pieces, and the model's vocabulary has 500"
    ) as caught:
        tokenizer.expect_vocabulary(500)
    assert caught.value.reason is Reason.BAD_TOKENIZER


def test_an_embedding_may_be_padded_where_the_special_tokens_are_certain(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """A SentencePiece model beside transformers' weights, whose embeddings are padded; Meta's are not."""
    kinds: dict[Layout, tuple[str, ...]] = {
        "meta": ("sentencepiece-json", "tiktoken-json"),
        "huggingface": ("sentencepiece-json", "tiktoken-json", "sentencepiece"),
    }
    for layout, padded in kinds.items():
        for kind in padded:
            tokenizers[kind].expect_vocabulary(1024, layout)
        for kind in set(KINDS) - set(padded):
            with pytest.raises(CellFailure, match="and the model's vocabulary has 1024; expected as many"):
                tokenizers[kind].expect_vocabulary(1024, layout)


class Sized(JsonTokenizer):
    """A tokenizer.json of so many pieces, of which none is needed."""

    def __init__(self, pieces: int) -> None:
        self.path, self.vocab_size = Path("tokenizer.json"), pieces
        self.padded_in = frozenset({"huggingface"})


@pytest.mark.parametrize(
    ("pieces", "rows"),
    [(32_000, 32_000), (32_011, 32_064), (32_022, 32_256), (100_015, 102_400), (128_256, 128_512)],
)
def test_published_paddings_are_the_models_own(pieces: int, rows: int) -> None:
    Sized(pieces).expect_vocabulary(rows, "huggingface")


@pytest.mark.parametrize(("pieces", "rows"), [(32_000, 128_256), (32_000, 33_025), (32_001, 32_000)])
def test_a_tokenizer_that_only_has_fewer_pieces_is_another_models(pieces: int, rows: int) -> None:
    least = rows - max(1024, rows // 40)
    words = f"has {pieces} pieces, and the model's vocabulary has {rows}; expected {least} to {rows}, since"
    with pytest.raises(CellFailure, match=words) as caught:
        Sized(pieces).expect_vocabulary(rows, "huggingface")
    assert caught.value.reason is Reason.BAD_TOKENIZER


def test_a_file_of_as_many_ranks_as_llama_3s_has_its_ids(tmp_path: Path) -> None:
    """Bytes, pairs and triples of bytes up to rank 127,999: other tokens than LLaMA 3's, but as many."""
    path = tmp_path / "tokenizer.model"
    tokens = [bytes([value]) for value in range(256)]
    tokens += [bytes([one, two]) for one in range(256) for two in range(256)]
    tokens += [bytes([97, one, two]) for one in range(256) for two in range(256)]
    path.write_bytes(tiny.tiktoken_lines(tokens[:128_000]))
    found = open_tokenizer(path)
    assert (found.vocab_size, found.bos_id, found.eos_ids) == (
        128_256,
        128_000,
        frozenset({128_001, 128_008, 128_009}),
    )
    for rows in (128_256, 128_264):
        found.expect_vocabulary(rows)
        found.expect_vocabulary(rows, "huggingface")
    with pytest.raises(CellFailure, match="has 128256 pieces, and the model's vocabulary has 32000"):
        found.expect_vocabulary(32_000)


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
def test_llamas_tokenizer_gives_the_published_ids_and_the_text_back(tmp_path: Path) -> None:
    data = Path(os.environ["SHARDWATT_TEST_DATA"])
    catalogue = load_catalogue(ROOT)
    source = catalogue.tokenizer("llama").path(ROOT, data)
    tokenizer = open_tokenizer(source)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (32_000, 1, frozenset({2}))
    assert tokenizer.encode("Hello world") == [1, 15043, 3186]
    path = tmp_path / "tokenizer.json"
    tiny.converted(source.read_bytes()).save(str(path))
    same = open_tokenizer(path)
    assert same.unprintable_ids() == tokenizer.unprintable_ids()
    for name in ("alpaca-5000", "gsm8k"):
        dataset = catalogue.dataset(name)
        for prompt in load_prompts(name, dataset, dataset.path(ROOT, data))[:500]:
            ids = tokenizer.encode(prompt.text)
            assert tokenizer.decode(ids) == same.decode(ids) == prompt.text
            assert same.encode(prompt.text) == ids
