"""transformers' `LlamaForCausalLM.generate`, as its users run it: a peer of the other engines.

transformers is an extra, and slow to import: nothing of it is touched before `load` is called.
"""

from __future__ import annotations

import importlib
import os

from shardwatt.engine.protocol import Engine, ModelOnRank
from shardwatt.errors import CellFailure, Reason

#: Read by transformers and huggingface_hub when they are imported: nothing is asked of or told to the
#: network, and logs stay readable.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def load(model: ModelOnRank) -> Engine:
    """Load this rank's part of a model.

    Raises:
        CellFailure: CONFIGURATION, transformers is not there or refuses the model; BAD_CHECKPOINT,
            BAD_TOKENIZER, HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        importlib.import_module("transformers")
        from shardwatt.engine.hf.generate import open_engine
    except ImportError as problem:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"engine 'hf' needs transformers of a version that it knows, and found: {problem}; "
            "install it: pip install 'shardwatt[hf]'",
        ) from None
    return open_engine(model)
