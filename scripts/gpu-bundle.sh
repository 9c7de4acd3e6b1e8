#!/usr/bin/env bash
# Packs what a machine with a GPU but without Rust needs to check and measure this project: the program, the test
# programs and gpu-check.sh, stripped, in one archive.   scripts/gpu-bundle.sh [ARCHIVE]
set -euo pipefail
cd "$(dirname "$0")/.."
archive=$(realpath -m "${1:-target/im2sp-gpu.tar.xz}")
features=cuda,emulator
cargo build --release --locked --features "$features" --bin im2sp
# The test programs' paths, as cargo gives them.
tests=$(cargo test --release --locked --features "$features" --test gpu --test device --test driver --no-run \
  --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and "test" in message.get("target", {}).get("kind", []):
        print(message["target"]["name"], message["executable"])')
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
mkdir "$folder/im2sp-gpu"
strip -o "$folder/im2sp-gpu/im2sp" target/release/im2sp
while read -r name path; do
  strip -o "$folder/im2sp-gpu/test-$name" "$path"
done <<< "$tests"
cp scripts/gpu-check.sh benches/peers/{gpu,torch_side}.py assets/scene.png "$folder/im2sp-gpu/"
cp recipes/golden/{captioners,full_size,pipeline,vocoder_reference}.py "$folder/im2sp-gpu/"
git rev-parse HEAD > "$folder/im2sp-gpu/commit"
# Every program holds the same kernels: a dictionary that spans them all keeps one copy.
tar -C "$folder" -cf - im2sp-gpu | xz --lzma2=preset=4,dict=128MiB > "$archive"
bytes=$(stat -c %s "$archive")
echo "$archive: $((bytes / 1000000)) MB"
if [ "$bytes" -gt 60000000 ]; then
  echo "more than 60 MB" >&2
  exit 1
fi
