#!/bin/sh
# Checks that Python and the C++ compiler fit, then makes the virtual environment.
# usage: environment.sh PYTHON FOLDER       (the Makefile calls it)
# CXX names another compiler. Exits 1 with advice where something is unfit.
set -eu

python=$1
folder=$2
compiler=${CXX:-c++}
versions="3.11 3.12 3.13 3.14" # requires-python in pyproject.toml

fail() {
    printf '\nSet-up stopped: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# Prints "minor-version version system machine" of a Python; Python 2 can run it too.
describe_python() {
    "$1" -c 'import platform, sys; sys.stdout.write(" ".join(("%d.%d" % sys.version_info[:2],
        platform.python_version(), platform.system(), platform.machine())))' 2>/dev/null
}

is_supported() {
    for version in $versions; do
        if [ "$1" = "$version" ]; then return 0; fi
    done
    return 1
}

# Names a Python that is here and fits (a command on the PATH may be a pyenv shim that runs nothing), or how to get one.
fail_python() {
    for version in $versions; do
        if "python$version" -c 'import sys' >/dev/null 2>&1; then
            fail "$1" "Supported are Python $versions, and one is here. Add to the command: PYTHON=python$version"
        fi
    done
    fail "$1" "Supported are Python $versions. Install one and add it to the command, for example:" \
        "apt-get install python3.11 python3.11-venv    and    PYTHON=python3.11"
}

check_python() {
    described=$(describe_python "$python") || fail_python "'$python' is not a Python that runs"
    # shellcheck disable=SC2086
    set -- $described
    is_supported "${1:-none}" || fail_python "'$python' is Python ${2:-of no known version}"
    [ "$3" = Linux ] || fail "this is $3" "Supported is Linux: the kernels are built for it alone."
}

# C++20 is what PyTorch's headers need; <span> is missing where the compiler is new but its library is old.
# The compiler may be two words (ccache g++).
check_compiler() {
    command -v "${compiler%% *}" >/dev/null 2>&1 ||
        fail "there is no C++ compiler '$compiler'" "apt-get install g++, or add another to the command: CXX=clang++"
    # shellcheck disable=SC2086
    printf '#include <span>\nint main() { return std::span<int>().size(); }\n' |
        $compiler -std=c++20 -x c++ -fsyntax-only - >/dev/null 2>&1 ||
        fail "the compiler '$compiler' does not compile C++20" \
            "GCC does from 10, Clang from 12: apt-get install g++, or add another to the command: CXX=g++-12"
}

make_environment() {
    if [ -e "$folder" ] && [ ! -e "$folder/pyvenv.cfg" ]; then
        fail "'$folder' is there and is no virtual environment" "Move it away, or add to the command: VENV=elsewhere"
    fi
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "== making the virtual environment $folder with $("$python" --version)"
        "$python" -m venv --clear "$folder"
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        echo "== making the virtual environment $folder with $("$python" --version) and virtualenv"
        "$python" -m virtualenv --quiet --clear "$folder"
    else
        fail "'$python' cannot make a virtual environment (Debian packs that apart)" \
            "apt-get install python3-venv (python3.12-venv for a python3.12 beside the system's Python)"
    fi
}

check_compiler
kept=$(describe_python "$folder/bin/python") || kept=
if is_supported "${kept%% *}" && "$folder/bin/python" -c 'import pip' >/dev/null 2>&1; then
    echo "== keeping the virtual environment $folder with $("$folder/bin/python" --version); make clean deletes it"
else
    check_python
    make_environment
fi
