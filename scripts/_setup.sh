# Sourced by the other scripts: `. scripts/_setup.sh run|test`. Leaves the repository as the working directory
# and .venv in it, installed from the lock with hashes. A second time it only compares a stamp.
# uv is used where there is one and never required.
# shellcheck shell=bash
set -euo pipefail

say() { printf 'tidegate: %s\n' "$*" >&2; }

# A pyenv shim may exist and not run, so a candidate counts only when it answers.
runs() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.14 python3.12 python3 \
        $(printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python | sort -rV) \
        "$(uv python find --no-python-downloads '>=3.12' 2>/dev/null)"; do
        if [ -n "$candidate" ] && runs "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say "needs Python 3.12 or newer, and found none that runs (your python3 is: $(python3 --version 2>&1 || echo none))."
    say "Get one with 'uv python install 3.13', 'pyenv install 3.13', 'brew install python@3.13' or your system's"
    say "packages (with venv), or name one: PYTHON=/path/to/python3.13 $0"
    return 1
}

install() { # lock file
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python .venv/bin/python --require-hashes -r "$1"
        uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
    else
        .venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r "$1"
        .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
    fi
}

stamp_of() { { pwd; .venv/bin/python -VV; cat pyproject.toml "$1"; } 2>/dev/null | cksum; }

set_up() { # run|test
    local lock=requirements.lock
    [ "$1" = test ] && lock=tests/requirements.lock
    if [ -x .venv/bin/python ] && [ "$(cat ".venv/.tidegate-$1" 2>/dev/null)" = "$(stamp_of "$lock")" ]; then
        return
    fi
    if ! runs .venv/bin/python || [ "$(cat .venv/.tidegate-home 2>/dev/null || pwd)" != "$(pwd)" ]; then
        local python
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "installing from $lock (about a minute the first time)"
    install "$lock"
    pwd >.venv/.tidegate-home
    stamp_of "$lock" >".venv/.tidegate-$1"
    if [ "$1" = test ]; then stamp_of requirements.lock >.venv/.tidegate-run; fi # the same versions and more
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${1:-}" ]; then set_up "$1"; fi
