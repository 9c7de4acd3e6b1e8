#!/usr/bin/env bash
# Installs what compiles the CUDA kernels (nvcc and its parts, release 13.0) from PyPI wheels: no root, no GPU, no driver.
#
#   scripts/install-cuda-toolchain.sh [FOLDER]
#
# FOLDER is where the build looks by itself unless one is given: ${XDG_CACHE_HOME:-$HOME/.cache}/im2sp-cuda. Needs
# python3 with pip or venv, and g++, which nvcc calls. What is there already is left alone.
set -euo pipefail

default="${XDG_CACHE_HOME:-$HOME/.cache}/im2sp-cuda"
folder="${1:-$default}"
packages=(nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl)
nvcc="nvidia/cu13/bin/nvcc"

fail() {
  echo "install-cuda-toolchain: $*" >&2
  exit 1
}

# Compiles a kernel that includes what the real ones include.
try() {
  local scratch
  scratch=$(mktemp -d)
  echo '#include <cuda_bf16.h>
__global__ void twice(__nv_bfloat16* x) { x[threadIdx.x] = __hadd(x[threadIdx.x], x[threadIdx.x]); }' >"$scratch/try.cu"
  local status=0
  "$1" -std=c++17 -gencode=arch=compute_90a,code=sm_90a -fatbin -o "$scratch/try.fatbin" "$scratch/try.cu" || status=$?
  rm -r "$scratch"
  return "$status"
}

if [ -x "$folder/$nvcc" ]; then
  try "$folder/$nvcc" || fail "$folder/$nvcc is there but cannot compile: remove $folder and run this again"
  echo "$folder/$nvcc is there already"
  exit 0
fi
command -v python3 >/dev/null || fail "python3 is missing: install it (Debian: apt-get install python3 python3-venv)"
command -v g++ >/dev/null || fail "g++ is missing, which nvcc calls: install it (Debian: apt-get install g++)"

mkdir -p "$folder"
# Beside its final place, so that an interrupted run leaves nothing that looks finished.
scratch=$(mktemp -d "$folder/.install.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
python=python3
if ! python3 -m pip --version >/dev/null 2>&1; then
  python3 -m venv "$scratch/venv" >/dev/null ||
    fail "python3 has neither pip nor venv: install one (Debian: apt-get install python3-venv)"
  python="$scratch/venv/bin/python"
fi
PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --target "$scratch/toolchain" "${packages[@]/%/==13.0.*}" ||
  fail "pip could not install ${packages[*]} 13.0: is PyPI reachable, and is there room for 300 MB in $folder?"
try "$scratch/toolchain/$nvcc" || fail "nvcc was installed but cannot compile: see above"
rm -rf "$folder/nvidia"
mv "$scratch/toolchain/nvidia" "$folder/nvidia"
echo "installed $("$folder/$nvcc" --version | grep release) in $folder"
if [ "$folder" != "$default" ]; then
  echo "builds find it with: export CUDA_HOME=$(cd "$folder/nvidia/cu13" && pwd)"
fi
