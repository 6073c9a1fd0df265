#!/usr/bin/env bash
# Resolve requirements.in into requirements.lock: exact versions with hashes, for every platform.
set -euo pipefail

folder=build/lock
python=${PYTHON:-python3.11}
[ -x "$folder/bin/uv" ] || "$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet uv 'cython<3' 'setuptools<81' wheel
CYTHON_FORCE_REGEN=1 "$folder/bin/uv" pip compile --quiet --python "$folder/bin/python" \
    --universal --python-version 3.11 --prerelease if-necessary-or-explicit \
    --no-build-isolation-package pydensecrf \
    --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command 'make lock' \
    requirements.in --output-file requirements.lock
echo "requirements.lock: $(grep -c '==' requirements.lock) packages"
