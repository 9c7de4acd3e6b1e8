#!/usr/bin/env bash
# Packs what a machine with a GPU but without Rust needs to check and measure this project: the program, two test programs,
# gpu-check.sh and PyTorch's side, stripped, in one archive.   scripts/gpu-bundle.sh [ARCHIVE.tar.gz|.tar.zst|.tar]
# There: tar -xf ARCHIVE && bash im2sp-gpu/gpu-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command -v gzip > /dev/null && default=target/im2sp-gpu.tar.gz || default=target/im2sp-gpu.tar
archive=$(realpath -m "${1:-$default}")
case "$archive" in
  # All programs hold the same kernels: a window that spans them keeps one copy, and tar needs to be told so to unpack it.
  *.tar.zst) pack=(zstd --quiet --long=27 -10 -T0 -c) ;;
  *.tar.gz) pack=(gzip -6 -c) ;;
  *.tar) pack=(cat) ;;
  *)
    echo "$archive: not .tar.gz, .tar.zst or .tar: choose one of these names" >&2
    exit 2
    ;;
esac
features=cuda,emulator
cargo build --release --locked --features "$features" --bin im2sp --example train_step
# The test programs' paths, as cargo gives them.
tests=$(cargo test --release --locked --features "$features" --test end_to_end --test driver --no-run \
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
strip -o "$folder/im2sp-gpu/train_step" target/release/examples/train_step
while read -r name path; do
  strip -o "$folder/im2sp-gpu/test-$name" "$path"
done <<< "$tests"
cp scripts/gpu-check.sh benches/peers/{gpu,cases,cuda_graph,ends,static_decoder,torch_side,train_step}.py "$folder/im2sp-gpu/"
cp recipes/demo/captioner.py recipes/golden/{captioners,full_size,pipeline,vocoder_reference}.py "$folder/im2sp-gpu/"
git rev-parse HEAD > "$folder/im2sp-gpu/commit"
tar -C "$folder" -cf - im2sp-gpu | "${pack[@]}" > "$archive"
echo "$archive: $(($(stat -c %s "$archive") / 1000000)) MB, unpacked $(($(du -sb "$folder" | cut -f 1) / 1000000)) MB"
