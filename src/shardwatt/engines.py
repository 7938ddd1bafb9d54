"""The engines that a cell can run, by name: what tells them apart before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: What paces an engine: the published loop's copies, buffers of its own, or transformers.
Loop = Literal["published", "fast", "transformers"]

#: Compute capability from which NVIDIA GPUs calculate in bfloat16 (CUDA C++ Programming Guide, table
#: "Arithmetic Instructions"); torch.cuda.is_bf16_supported() says yes below it too, by emulation.
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What plan, batching and tables need to know of an engine.

    Attributes:
        about: one line for users.
        order: in which order a study's prompts are put into batches: as they were sampled, or the longest
            first, so that rows of a batch are alike.
        queue: whether all prompts are handed over at once, to fill places of rows that have ended; otherwise
            batch after batch.
        loop: what paces it, for the memory plan.
        logits: of which positions of a prefill it makes logits: the last of each row, or all.
        finished: which positions of a prefill go on behind the last layer's attention: the last of each row,
            or all.
        simulates: the engine that it stands for, all of whose facts it shares; None for one that runs models.
    """

    about: str
    order: Literal["sample", "length"]
    queue: bool = False
    loop: Loop = "published"
    logits: Literal["last", "all"] = "last"
    finished: Literal["last", "all"] = "all"
    simulates: str | None = None


#: Engines that run models; `shardwatt.engine.load.LOADERS` loads the same names.
MODEL_ENGINES: dict[str, EngineFacts] = {
    "reference": EngineFacts("the published loop of LLaMA (v1): never stops early", "sample"),
    "reference-v2": EngineFacts(
        "the published loop of Llama 2: stops when all rows have ended", "sample", logits="all"
    ),
    "fast": EngineFacts(
        "static cache, fused and prepacked layers, packed prefill; stops when all rows have ended",
        "length",
        loop="fast",
        finished="last",
    ),
    "fast-drop": EngineFacts(
        "as fast; rows that have ended leave the batch", "length", loop="fast", finished="last"
    ),
    "fast-refill": EngineFacts(
        "as fast; rows that have ended give their place to the next prompt",
        "length",
        queue=True,
        loop="fast",
        finished="last",
    ),
    "hf": EngineFacts("transformers' LlamaForCausalLM.generate, as it comes", "sample", loop="transformers"),
}

#: The engine that `simulated` alone stands for; the others' counterparts carry their names.
_PLAINLY_SIMULATED = "reference"


def simulated_counterpart(name: str) -> str:
    """The engine that rehearses another one without its model: `simulated`, or `simulated-NAME`.

    A simulated engine is its own; a name that no engine has stays as it is.
    """
    if name not in MODEL_ENGINES:
        return name
    return "simulated" if name == _PLAINLY_SIMULATED else f"simulated-{name}"


#: Every engine that a study may name: those that run models, and a simulated counterpart of each, which runs
#: none and holds the power that the plan says for as long as it says, scaled down.
ENGINES: dict[str, EngineFacts] = {
    **MODEL_ENGINES,
    **{
        simulated_counterpart(name): replace(
            facts, about=f"no model: {name}'s time and power as planned, for rehearsals", simulates=name
        )
        for name, facts in MODEL_ENGINES.items()
    },
}


def loop_of(name: str) -> str:
    """The engine whose loop paces another: the one that it simulates, or itself.

    Raises:
        KeyError: there is no such engine.
    """
    return ENGINES[name].simulates or name
