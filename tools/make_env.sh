#!/usr/bin/env bash
# Make a virtual environment from requirements.lock, every file checked against its hash.
# usage: tools/make_env.sh FOLDER
set -euo pipefail

folder=$1
build_tools='^(cython|setuptools|wheel|packaging)=='

# The interpreter behind the first command that is a fitting one: a command may itself lie in the
# folder that is about to be made again.
find_python() {
    local fitting='import sys, venv; assert (3, 11) <= sys.version_info < (3, 13)
print(getattr(sys, "_base_executable", None) or sys.executable)'
    local candidate
    for candidate in "${PYTHON:-python3.11}" python3.12 python3 python; do
        "$candidate" -c "$fitting" 2>/dev/null && return
    done
    echo 'No Python 3.11 or 3.12 (with venv) found. Name one: make env PYTHON=path/to/python3.11' >&2
    return 1
}

python=$(find_python)
echo "Making $folder with $("$python" --version) (some 3 GB to fetch, once) ..."
rm -rf "$folder"
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip -qq --disable-pip-version-check --no-input)
install=("${pip[@]}" install --progress-bar off --no-compile --no-deps --require-hashes)

# pydensecrf is compiled here, against a Cython older than its C++ files were made with: the build
# tools go in first, and the rest is built without isolation.
awk -v tools="$build_tools" '$0 ~ tools {keep = 1} keep {print} keep && !/\\$/ {keep = 0}' \
    requirements.lock >"$folder/build-tools.lock"
"${install[@]}" --requirement "$folder/build-tools.lock"
CYTHON_FORCE_REGEN=1 "${install[@]}" --no-build-isolation --requirement requirements.lock
