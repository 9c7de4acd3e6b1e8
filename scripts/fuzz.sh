#!/usr/bin/env bash
# Fuzzes a parser, or one after the other, from the golden files of the tests.   scripts/fuzz.sh TARGET|all [EXECUTIONS]
# Needs cargo-fuzz (cargo install cargo-fuzz --locked) and a C++ compiler; the stable toolchain is enough.
set -euo pipefail
cd "$(dirname "$0")/.."
declare -A longest=([image]=4096 [pickle]=1024 [checkpoint]=4096 [safetensors]=2048 [config]=2048 [units]=512
  [image_units]=512 [recording]=4096)
targets=(image pickle checkpoint safetensors config units image_units recording)
if [ $# -lt 1 ] || { [ "$1" != all ] && [ -z "${longest[$1]:-}" ]; }; then
  echo "usage: scripts/fuzz.sh all|$(IFS='|'; echo "${targets[*]}") [EXECUTIONS, default 1000000]" >&2
  exit 2
fi
[ "$1" = all ] || targets=("$1")
if ! cargo fuzz --version > /dev/null 2>&1; then
  echo "cargo-fuzz is missing: cargo install cargo-fuzz --locked" >&2
  exit 1
fi
# The versions of the libraries that the program is built with.
cp Cargo.lock fuzz/Cargo.lock
cargo run --release --locked --quiet --example fuzz_seeds
for target in "${targets[@]}"; do
  # No sanitizer: that would need nightly, and the little `unsafe` of these parsers is not where they fail.
  cargo fuzz run "$target" --sanitizer none -- -runs="${2:-1000000}" -max_len="${longest[$target]}" -timeout=20 \
    -rss_limit_mb=1024 -print_final_stats=1
done
