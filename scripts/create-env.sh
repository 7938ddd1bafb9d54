#!/usr/bin/env bash
# Makes .venv beside this folder and installs the project into it, at the versions of constraints.txt.
#
#   scripts/create-env.sh [--dev]      --dev: also what the tests need
#
# PYTHON       the interpreter to make it from (default: python3; 3.11 or newer)
# TORCH_INDEX  package index for torch alone, e.g. https://download.pytorch.org/whl/cpu
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
packages=(-e '.[hf]')
[[ ${1:-} != --dev ]] || packages+=(--group dev)

# A cluster's modules and a user's settings must not reach into the environment.
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
quiet=()
[[ -t 1 ]] || quiet=(--quiet)

fail() {
    printf 'create-env: %s\n' "$*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_environments() {
    # Debian keeps ensurepip in a package of its own.
    "$python" -c 'import ensurepip, venv' 2>/dev/null
}

pinned() {
    sed -n "s/^$1==//p" constraints.txt
}

check_python() {
    command -v "$python" >/dev/null ||
        fail "$python is not there; install Python 3.11 or newer, or pass PYTHON=/path/to/python3"
    is_new_enough "$python" ||
        fail "$python is $("$python" --version 2>&1); expected Python 3.11 or newer; pass PYTHON=/path/to/python3.11"
    can_make_environments && return
    local package
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        fail "$python cannot make virtual environments: its module ensurepip is missing;" \
            "install it (Debian, Ubuntu: sudo apt-get install $package), or pass PYTHON=/path/to/python3"
    fi
    echo "create-env: installing Debian's $package, which $python needs to make virtual environments"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package"
    can_make_environments || fail "$python cannot make virtual environments though $package is installed"
}

install() {
    .venv/bin/python -m pip install "${quiet[@]}" "$@"
}

# An environment that still runs is brought up to date; any other is made anew.
if ! is_new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    check_python
    echo "create-env: making .venv from $("$python" --version)"
    "$python" -m venv --clear .venv
fi

# Debian's pip neither knows dependency groups nor pins what builds packages.
install "pip==$(pinned pip)"
if [[ -n ${TORCH_INDEX:-} ]]; then
    echo "create-env: installing torch $(pinned torch) from $TORCH_INDEX"
else
    echo "create-env: installing torch $(pinned torch) (its CUDA build takes gigabytes; see TORCH_INDEX in 'make help')"
fi
# Without its dependencies, which torch's own indexes hold in other versions; the next step brings them.
install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$(pinned torch)"
echo "create-env: installing the other packages"
install --constraint constraints.txt --build-constraint constraints.txt "${packages[@]}"
.venv/bin/python -m pip check
