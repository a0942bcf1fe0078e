#!/bin/sh
# Make .venv: a virtual environment with what requirements.txt pins, hashes checked.
# Usage: scripts/setup.sh [dev]    dev adds what tests and linters need, the trainers' frameworks included
set -eu
cd "$(dirname "$0")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

find_python() {
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer on PATH: install one, or name it: make PYTHON=/path/to/python3 …"
}

make_venv() {
  python=$(find_python)
  echo "setting up: .venv ($("$python" --version))"
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv --clear .venv
    return
  fi
  # Debian and Ubuntu ship venv's other half in a package of its own.
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setting up: $package (apt-get)"
    { apt-get -qq update && apt-get -qq install -y "$package"; } >/dev/null 2>&1 ||
      fail "apt-get could not install $package: see 'apt-get install $package'"
    "$python" -m venv --clear .venv
  else
    fail "$python has no ensurepip: run 'sudo apt-get install $package' and call make again"
  fi
}

install() {
  .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode "$@" ||
    fail "packages could not be installed (see above): check the network or pip's index settings, then call make again"
}

if ! [ -x .venv/bin/uv ]; then
  make_venv
  # uv installs the rest, in seconds; the version and hashes are those of the lock file.
  sed -n '/^uv==/,/[^\\]$/p' requirements.txt >.venv/uv.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt ||
    fail "uv could not be installed (see above): check the network or pip's index settings, then call make again"
  # A cache of packages that wasn't there before is ours: `make clean` takes it away again.
  [ -d "$(.venv/bin/uv cache dir)" ] || touch .venv/made-uv-cache
fi
# What no package index has: the browser that tests the server's page, and the load of bench-serving.
debian_tools() {
  lacking=
  command -v chromedriver >/dev/null || lacking="chromium chromium-driver"
  command -v wrk >/dev/null || lacking="$lacking wrk"
  if [ -n "$lacking" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setting up: $lacking (apt-get)"
    # shellcheck disable=SC2086 # names of packages
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends $lacking; } >/dev/null 2>&1 ||
      fail "apt-get could not install $lacking"
  elif [ -n "$lacking" ]; then
    echo "tests/browser and bench-serving need: sudo apt-get install $lacking"
  fi
}

if [ "${1:-}" = dev ]; then
  debian_tools
  echo "setting up: test tools and the trainers' frameworks"
  install --require-hashes -r requirements-dev.txt
  for requirements in images/*/requirements.txt; do
    # PyTorch's own site has builds for CPUs; PyPI, for Linux, has CUDA's alone.
    .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --torch-backend auto \
      -r "$requirements" 2>/dev/null || install -r "$requirements"
  done
else
  echo "setting up: packages"
  install --require-hashes -r requirements.txt
  install --no-deps --editable .
fi
