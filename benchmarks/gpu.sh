#!/usr/bin/env bash
# Measure imago on one GPU in 10 minutes. The machine needs torch, torchvision, lightning, psutil, tensorboard and
# matplotlib, but neither Hydra nor a network: pure wheels of what it lacks travel with the tree.
#
#     bash benchmarks/gpu.sh --pack [NAME ...]   # where there is a network: download wheels to build/gpu/wheels
#     IMAGO_DATA_DIR=DIRECTORY bash benchmarks/gpu.sh [--airbench FILE]   # on the GPU; options: benchmarks/gpu.py -h
#     bash benchmarks/gpu.sh --smoke             # run every step to its end on a CPU, for nothing but errors
#
# IMAGO_DATA_DIR contains cifar-10-batches-py. PYTHON chooses the interpreter; it is python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
WHEELS=build/gpu/wheels PACKAGES=build/gpu/packages
MAX_KIB=65536  # of what travels, our own choice

fail() {
  echo "error: $*" >&2
  exit 2
}

if [ "${1:-}" = --pack ]; then
  shift
  [ $# -gt 0 ] || set -- hydra-core omegaconf
  pinned=()
  for name in "$@"; do
    pinned+=("$(grep -m 1 -oE "^$name==[^ ;]+" requirements.lock)") || fail "--pack $name: requirements.lock has no such package"
  done
  rm -rf "$WHEELS"
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --dest "$WHEELS" "${pinned[@]}"
  for wheel in "$WHEELS"/*; do
    [[ $wheel == *-none-any.whl ]] || fail "$wheel is built for one platform; leave it out, or install it there"
  done
  git rev-parse HEAD > build/gpu/commit
  size=$(du -sk "$WHEELS" | cut -f 1)
  [ "$size" -le $MAX_KIB ] || fail "$WHEELS has $size KiB, more than $MAX_KIB; pack fewer packages"
  echo "$WHEELS: $(ls "$WHEELS" | wc -l) wheels, $size KiB"
  exit
fi

if compgen -G "$WHEELS/*.whl" > /dev/null; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --find-links "$WHEELS" --target "$PACKAGES" "$WHEELS"/*.whl
fi
export PYTHONPATH=$PWD/$PACKAGES:$PWD/src${PYTHONPATH:+:$PYTHONPATH}
found=$("$PYTHON" -c "import hydra, lightning, matplotlib, psutil, tensorboard, torch, torchvision" 2>&1) || fail "${found##*$'\n'}"
exec "$PYTHON" benchmarks/gpu.py "$@"
