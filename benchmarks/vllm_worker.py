"""vLLM that answers in turns: see turns.py; started by vllm_peer.py with the Python of vLLM's environment.

Nothing of shardwatt is imported. The engine runs in this process, not in one beside it, which on a CPU would
keep a core for itself.
"""

from __future__ import annotations

import os
import time

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

import torch
from vllm import LLM, SamplingParams, TokensPrompt  # type: ignore[import-not-found]

from turns import Message, serve

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class _Engine:
    """What this process has loaded."""

    def load(self, folder: str, precision: str, rows: int, positions: int, compiled: bool) -> Message:
        self.llm = LLM(
            folder,
            skip_tokenizer_init=True,
            dtype=_DTYPES[precision],
            max_model_len=positions,
            max_num_seqs=rows,
            enforce_eager=not compiled,
            enable_prefix_caching=False,  # rounds ask the same
            disable_log_stats=True,
            seed=1,
        )
        return {"threads": torch.get_num_threads()}

    def answer(
        self, prompts: list[list[int]], new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Message:
        """Answer prompts, all handed over at once; every response takes its whole length."""
        settings = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        begin_s = time.monotonic()
        answers = self.llm.generate(asked, settings, use_tqdm=False)
        wall_s = time.monotonic() - begin_s
        generated = sum(len(answer.outputs[0].token_ids) for answer in answers)
        return {"wall_s": wall_s, "generated_tokens": generated}


def _main() -> None:
    here = _Engine()
    serve({"load": here.load, "answer": here.answer})


if __name__ == "__main__":
    _main()
