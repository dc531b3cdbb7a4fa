#!/usr/bin/env bash
# Writes both lock files anew: exact versions and hashes for every platform, no addresses. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_PYTHON_DOWNLOADS=never
lock() {
    uv pip compile --quiet --universal --generate-hashes --python-version 3.12 --group build \
        --no-emit-index-url --no-header --no-annotate "$@"
}
PATH="$PWD/.venv/bin:$PATH"
# boto3, which the tests use, takes no newer one, and both locks name the same versions.
lock pyproject.toml --constraint <(echo 'python-dateutil<3') -o requirements.lock
lock pyproject.toml --extra test --constraint requirements.lock -o tests/requirements.lock
