#!/usr/bin/env bash
# Writes requirements.lock: every package that the project and its tools need, for every platform, with the hashes of
# its files and without saying where they came from.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '==> Installing uv into a temporary directory, and resolving\n'
.venv/bin/python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --disable-pip-version-check -q uv
"$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --extra dev \
    --generate-hashes --no-annotate --no-header pyproject.toml -o "$work/lock"
{
    echo '# Every package with the hashes of its files. Written by `make lock`; installed by every other target.'
    cat "$work/lock"
} > requirements.lock
grep -c '==' requirements.lock | xargs printf '==> requirements.lock: %s packages\n'
