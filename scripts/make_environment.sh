#!/bin/sh
# Make the virtual environment VENV with a Python that the project supports; one that stands stays.
#   PYTHON=… sh scripts/make_environment.sh VENV
# It takes PYTHON, where that is set; else the first of SUPPORTED on PATH; else one that uv brings.
set -eu
venv=$1
SUPPORTED="3.11 3.12 3.13" # the best tested first; pyproject.toml names the same

version_of() { # as in 3.11; empty for what is no Python, or cannot make environments
    "$1" -c 'import sys, ensurepip, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

is_supported() {
    for version in $SUPPORTED; do
        if [ "$1" = "$version" ]; then return 0; fi
    done
    return 1
}

standing=$(version_of "$venv/bin/python") # empty for an environment without pip, too
"$venv/bin/python" -c 'import pip' 2>/dev/null || standing=

make_with() {
    echo "making $venv with Python $(version_of "$1"), $(command -v "$1")"
    exec "$1" -m venv --clear "$venv"
}

if [ -n "${PYTHON:-}" ]; then
    found=$(version_of "$PYTHON")
    if is_supported "$found"; then
        if [ "$standing" = "$found" ]; then exit 0; fi
        make_with "$PYTHON"
    fi
    echo "PYTHON=$PYTHON: Python ${found:-that makes environments not found}; supported: $SUPPORTED" >&2
    echo "without PYTHON, one on PATH is taken, or uv brings one" >&2
    exit 1
fi

if is_supported "$standing"; then exit 0; fi
for version in $SUPPORTED; do
    if [ "$(version_of "python$version")" = "$version" ]; then make_with "python$version"; fi
done
if is_supported "$(version_of python3)"; then make_with python3; fi

echo "no Python of $SUPPORTED with its module venv on PATH: uv brings ${SUPPORTED%% *}"
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    if [ -z "$(version_of python3)" ]; then
        echo "that needs uv (https://docs.astral.sh/uv) or any Python 3 on PATH; neither was found" >&2
        exit 1
    fi
    trap 'rm -rf "$venv.uv"' EXIT
    python3 -m venv --clear "$venv.uv"
    "$venv.uv/bin/python" -m pip install --quiet uv
    uv="$venv.uv/bin/uv"
fi
"$uv" venv --quiet --clear --seed --managed-python --python "${SUPPORTED%% *}" "$venv" || {
    echo "uv could not bring Python ${SUPPORTED%% *}; install one of $SUPPORTED, then run this again" >&2
    exit 1
}
