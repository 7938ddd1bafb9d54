"""Small tokenizers of every kind, trained on the demo's prompts: two pairs that give the same ids.

A SentencePiece model and the same as tokenizer.json; a tiktoken file and the same as tokenizer.json.
"""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from shardwatt.data.prompts import load_prompts
from shardwatt.datasets import load_catalogue

ROOT = Path(__file__).parents[1]
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space

#: The split of LLaMA 3, a second time: a slip in the first shows.
LLAMA_3_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@cache
def texts() -> tuple[str, ...]:
    """The demo's prompts."""
    catalogue = load_catalogue(ROOT)
    return tuple(
        prompt.text
        for name in ("demo-alpaca", "demo-gsm8k")
        for prompt in load_prompts(
            name, catalogue.dataset(name), catalogue.dataset(name).path(ROOT, Path("unused"))
        )
    )


@cache
def sentencepiece_model(pieces: int = 600, bos_id: int = 1) -> bytes:
    """A SentencePiece BPE with LLaMA's conventions."""
    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts() for line in text.split("\n")]),
        model_writer=stream,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        unk_id=0,
        bos_id=bos_id,
        eos_id=2,
        pad_id=-1,
    )
    return stream.getvalue()


def converted(content: bytes) -> tokenizers.Tokenizer:
    """A SentencePiece BPE as transformers has it: the same pieces, and a merge for each way to make one."""
    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(content)
    pieces = {model.id_to_piece(token): token for token in range(model.vocab_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, token in sorted(pieces.items(), key=lambda item: -model.get_score(item[1]))
        if not model.IsByte(token) and not model.IsControl(token) and not model.IsUnknown(token)
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    found = tokenizers.Tokenizer(
        models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    found.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    found.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    found.add_special_tokens([model.id_to_piece(token) for token in range(3)])
    # What is to be left aside: a wrapping of the file's own, padding and truncation.
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    found.enable_padding(length=64)
    found.enable_truncation(8)
    return found


@cache
def llama_3_json(pieces: int = 600, specials: int = 256) -> str:
    """A tokenizer.json in LLaMA 3's manner: bytes merged within its split, special tokens after them."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    found.train_from_iterator(texts(), trainer)
    assert found.get_vocab_size() == pieces
    names = [f"<|reserved_special_token_{place}|>" for place in range(specials)]
    for place, name in {0: "begin_of_text", 1: "end_of_text", 8: "eom_id", 9: "eot_id"}.items():
        names[place] = f"<|{name}|>"
    found.add_special_tokens(names)
    return found.to_str()


@cache
def tiktoken_file(pieces: int = 600) -> bytes:
    """The same as `llama_3_json` as Meta saves it: a token and its rank a line, special tokens left out."""
    vocabulary = json.loads(llama_3_json(pieces))["model"]["vocab"]
    letters = {letter: value for value, letter in enumerate(_letters_of_bytes())}
    by_rank = sorted(vocabulary, key=vocabulary.__getitem__)
    return tiktoken_lines([bytes(letters[letter] for letter in token) for token in by_rank])


def tiktoken_lines(tokens: list[bytes]) -> bytes:
    """A tiktoken file of tokens in the order of their ranks."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def _letters_of_bytes() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it prints."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(value) if value in prints else chr(next(others)) for value in range(256)]
