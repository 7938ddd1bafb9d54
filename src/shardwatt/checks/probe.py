"""What a GPU type's Python says of itself; runs in the environment of its ranks, and prints one line of JSON.

Python 3.6 can read this file: what is wrong with an old one is to be told, not to be a syntax error.
"""

import importlib
import json
import sys

#: What ranks and meters import, by the name of its distribution.
NEEDED = {
    "fairscale": "fairscale.nn.model_parallel",
    "sentencepiece": "sentencepiece",
    "nvidia-ml-py": "pynvml",
    "pydantic": "pydantic",
    "psutil": "psutil",
    "pyarrow": "pyarrow.parquet",
    "pyyaml": "yaml",
    "submitit": "submitit",
}


def _torch():
    # type: () -> dict[str, object]
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", None)
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": (flags() or "").split() if flags else [],
    }


def main():
    # type: () -> None
    """Print what is there and what is missing."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "executable": sys.executable}  # type: dict[str, object]
    missing = {}
    try:
        found["torch"] = _torch()
    except Exception as problem:
        missing["torch"] = f"{type(problem).__name__}: {problem}"
    for name, module in NEEDED.items():
        try:
            importlib.import_module(module)
        except Exception as problem:
            missing[name] = f"{type(problem).__name__}: {problem}"
    try:
        found["shardwatt"] = importlib.import_module("shardwatt").__file__
        importlib.import_module("shardwatt.run.rank")
    except Exception as problem:
        missing["shardwatt"] = f"{type(problem).__name__}: {problem}"
    found["missing"] = missing
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
