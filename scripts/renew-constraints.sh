#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that pyproject.toml allows, as they install together.
#
#   scripts/renew-constraints.sh
#
# torch and pip stay as they are pinned (edit constraints.txt first to move them). The packages are
# installed into a temporary environment; .venv is not touched.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off

pinned() {
    sed -n "s/^$1==//p" constraints.txt
}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
environment="$temporary/env/bin/python"
"$python" -m venv "$temporary/env"
"$environment" -m pip install --quiet "pip==$(pinned pip)"
"$environment" -m pip install --quiet --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$(pinned torch)"
# setuptools, which builds the project, is pinned with the rest.
"$environment" -m pip install --quiet --editable '.[hf]' --group dev setuptools wheel

{
    cat <<'HEADER'
# Every package that `make demo` and `make test` install, at the version they were tested with.
# Written by `make constraints`; renew it with that, then run `make test`. pyproject.toml holds the ranges.
# torch's own CUDA packages are left out: torch pins them itself.
HEADER
    "$environment" -m pip freeze --all --exclude-editable |
        sed -E 's/^(torch==[^+]*)\+.*/\1/' |
        awk '/^nvidia-ml-py==/ || !/^(nvidia-|cuda-|triton==)/' |
        LC_ALL=C sort --ignore-case
} >"$temporary/constraints.txt"
cp "$temporary/constraints.txt" constraints.txt
