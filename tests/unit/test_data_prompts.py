"""Guards the published templates, the naming of malformed entries, and the seeded sample."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest

from shardwatt.data.fetch import DataError
from shardwatt.data.prompts import Prompt, load_examples, load_prompts, sample_prompts
from shardwatt.datasets import Dataset, load_catalogue

ROOT = Path(__file__).parents[2]
ALPACA = Dataset(format="alpaca", file="a.json", folder=Path())
GSM8K = Dataset(format="gsm8k", file="g.jsonl", folder=Path())


def _write(folder: Path, dataset: Dataset, text: str) -> Path:
    path = folder / dataset.file
    path.write_text(text, encoding="utf-8")
    return path


def test_alpaca_prompts_have_the_published_templates(tmp_path: Path) -> None:
    entries = [
        {"instruction": "Count {these}.", "input": "a\nb", "output": "2"},
        {"instruction": "Say hello.", "input": "", "output": ""},
        {"instruction": "Say hello."} | {"output": "Hello", "category": "further keys are left alone"},
    ]
    path = _write(tmp_path, ALPACA, json.dumps(entries))
    prompts = load_prompts("a", ALPACA, path)
    assert [prompt.id for prompt in prompts] == ["0", "1", "2"]
    assert prompts[0].text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Count {these}.\n"
        "\n"
        "### Input:\n"
        "a\n"
        "b\n"
        "\n"
        "### Response:"
    )
    assert prompts[1].text == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Say hello.\n"
        "\n"
        "### Response:"
    )
    assert prompts[2].text == prompts[1].text
    assert [example.answer for example in load_examples("a", ALPACA, path)] == ["2", "", "Hello"]


def test_gsm8k_prompts_keep_every_character_of_the_question(tmp_path: Path) -> None:
    # U+2028 may stand in a JSON string, and is no end of line there.
    text = '{"question": "One\u2028or two? ", "answer": "#### 1"}\n{"question": "{x}", "answer": ""}\n\n'
    prompts = load_prompts("g", GSM8K, _write(tmp_path, GSM8K, text))
    assert [prompt.text for prompt in prompts] == [
        "Question: One\u2028or two? \nAnswer:",
        "Question: {x}\nAnswer:",
    ]


GOOD_LINE = '{"question": "q", "answer": "a"}'


@pytest.mark.parametrize(
    ("dataset", "text", "expected"),
    [
        (ALPACA, "", "is empty; expected at least one entry"),
        (ALPACA, "[]", "is empty; expected at least one entry"),
        (ALPACA, '[{"instruction": "i", "output": "o"}', "no valid JSON: .*line 1"),
        (ALPACA, '{"instruction": "i"}', "expected a JSON list of entries, found an object"),
        (
            ALPACA,
            '[{"instruction": "i", "output": "o"}, 7]',
            "entry 2: expected a JSON object, found a number",
        ),
        (ALPACA, '[{"instruction": " ", "output": "o"}]', "entry 1: 'instruction': is empty"),
        (ALPACA, '[{"output": "o"}]', "entry 1: 'instruction': expected a text, it is missing"),
        (ALPACA, '[{"instruction": "i"}]', "entry 1: 'output': expected a text, it is missing"),
        (
            ALPACA,
            '[{"instruction": "i", "input": null, "output": "o"}]',
            "entry 1: 'input': expected a text, found null",
        ),
        (ALPACA, '[{"instruction": "\\ud800", "output": "o"}]', "entry 1: 'instruction': holds half"),
        (ALPACA, "[" * 100_000, "no valid JSON"),
        (GSM8K, "", "is empty; expected at least one entry"),
        (GSM8K, "\n \n", "is empty; expected at least one entry"),
        (GSM8K, f"{GOOD_LINE}\n{GOOD_LINE[:-1]}\n{GOOD_LINE}", "line 2: no valid JSON"),
        (GSM8K, f"{GOOD_LINE}\n\n{GOOD_LINE}", "line 2: no valid JSON"),
        (GSM8K, f'{GOOD_LINE}\n{{"question": "q"}}', "line 2: 'answer': expected a text, it is missing"),
        (GSM8K, f'{GOOD_LINE}\n{{"question": 3, "answer": "a"}}', "line 2: 'question': .*found a number"),
        (GSM8K, '["q", "a"]', "line 1: expected a JSON object, found a list"),
    ],
)
def test_a_malformed_entry_is_named_by_its_number(
    tmp_path: Path, dataset: Dataset, text: str, expected: str
) -> None:
    path = _write(tmp_path, dataset, text)
    with pytest.raises(DataError, match=expected) as caught:
        load_prompts("mine", dataset, path)
    assert f"data set 'mine': {path}" in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / GSM8K.file
    path.write_bytes(b'{"question": "caf\xe9", "answer": "a"}')
    with pytest.raises(DataError, match="is no UTF-8 text, from byte 17 on"):
        load_prompts("mine", GSM8K, path)


def test_a_file_of_another_content_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    dataset = Dataset(format="gsm8k", file="g.jsonl", sha256="0" * 64)
    path = _write(tmp_path, dataset, "not even JSON")
    with pytest.raises(DataError, match="where 0000"):
        load_prompts("mine", dataset, path)


def _numbered(count: int) -> list[Prompt]:
    return [Prompt(str(number), f"text {number}") for number in range(count)]


def test_a_sample_is_the_same_everywhere_and_for_ever() -> None:
    sample = sample_prompts(_numbered(100), 8, seed=2023)
    # Changing these means that every recorded study was run on other prompts.
    assert [prompt.id for prompt in sample] == ["76", "84", "5", "8", "83", "56", "1", "37"]


def test_a_sample_is_without_replacement_and_a_smaller_one_begins_a_larger_one() -> None:
    prompts = _numbered(50)
    everything = sample_prompts(prompts, 50, seed=1)
    assert sorted(everything, key=lambda prompt: int(prompt.id)) == prompts
    assert sample_prompts(prompts, 20, seed=1) == everything[:20]
    assert sample_prompts(list(reversed(prompts)), 20, seed=1) == everything[:20]
    assert sample_prompts(prompts, 20, seed=2) != everything[:20]


def test_every_prompt_is_as_likely_to_be_drawn() -> None:
    prompts = _numbered(20)
    drawn = [0] * 20
    for seed in range(2000):
        for prompt in sample_prompts(prompts, 5, seed):
            drawn[int(prompt.id)] += 1
    # Expected 500 each; chi-square with 19 degrees of freedom stays below 43.8 in 999 of 1000 cases.
    assert sum((count - 500) ** 2 / 500 for count in drawn) < 43.8


def test_more_prompts_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match="prompts: 101 asked for, and the data set has 100"):
        sample_prompts(_numbered(100), 101, seed=0)


@pytest.mark.parametrize("name", ["demo-alpaca", "demo-gsm8k"])
def test_the_demo_has_64_different_prompts_of_varied_length(name: str) -> None:
    dataset = load_catalogue(ROOT).dataset(name)
    prompts = load_prompts(name, dataset, dataset.path(ROOT, Path()))
    assert len({prompt.text for prompt in prompts}) == 64
    words = sorted(len(prompt.text.split()) for prompt in prompts)
    assert words[-1] > 3 * words[0]


def test_a_third_of_the_demo_instructions_has_an_input() -> None:
    entries = json.loads((ROOT / "config/prompts/demo-alpaca.json").read_text(encoding="utf-8"))
    assert 16 <= sum(bool(entry["input"]) for entry in entries) <= 28


def test_the_demo_problems_are_solved_right() -> None:
    dataset = load_catalogue(ROOT).dataset("demo-gsm8k")
    for number, example in enumerate(
        load_examples("demo-gsm8k", dataset, dataset.path(ROOT, Path())), start=1
    ):
        steps, _, result = example.answer.rpartition("\n#### ")
        worked = re.findall(r"<<([0-9.+*/()-]+)=([0-9.]+)>>([0-9]+(?:\.[0-9]+)?)", steps)
        assert worked, f"problem {number} shows no working"
        assert len(worked) == steps.count("<<"), f"problem {number}"
        for expression, value, shown in worked:
            assert math.isclose(eval(expression), float(value)), f"problem {number}: {expression}"
            assert value == shown, f"problem {number}: {expression}"
        assert worked[-1][1] == result, f"problem {number}"


@pytest.mark.skipif("SHARDWATT_TEST_DATA" not in os.environ, reason="SHARDWATT_TEST_DATA is not set")
@pytest.mark.parametrize(("name", "count"), [("alpaca-5000", 5000), ("gsm8k", 7473)])
def test_the_published_data_sets_are_read_whole(name: str, count: int) -> None:
    dataset = load_catalogue(ROOT).dataset(name)
    prompts = load_prompts(name, dataset, dataset.path(ROOT, Path(os.environ["SHARDWATT_TEST_DATA"])))
    assert len(prompts) == count
    assert prompts[-1].id == str(count - 1)
    with_input = sum("### Input:" in prompt.text for prompt in prompts)
    assert with_input == (1943 if name == "alpaca-5000" else 0)
