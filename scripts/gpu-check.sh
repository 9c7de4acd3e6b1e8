#!/usr/bin/env bash
# Runs on a machine with a GPU, from the unpacked bundle: is every kernel right, what do the sanitizers say, how fast is
# it beside the machine's own PyTorch?   bash gpu-check.sh [FOLDER FOR RESULTS]
# Writes results.json and results.txt there; exit status 1 if anything is wrong.
set -uo pipefail
cd "$(dirname "$0")"
out=$(realpath -m "${1:-results}")
mkdir -p "$out"
wrong=0
say() { echo "== $1" | tee -a "$out/results.txt"; }
: > "$out/results.txt"

say "doctor"
./im2sp doctor --json > "$out/doctor.json" || wrong=1
say "tests"
for test in ./test-*; do
  IM2SP_TEST_DEVICE=cuda:0 "$test" > "$out/$(basename "$test").log" 2>&1 || { wrong=1; say "$test failed"; }
done
IM2SP_TEST_DEVICE=cuda:0 ./test-device --ignored the_published_size > "$out/published-size.log" 2>&1 ||
  { wrong=1; say "the published size failed"; }
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    say "compute-sanitizer $tool, small shapes"
    compute-sanitizer --tool "$tool" --error-exitcode 9 ./im2sp doctor --size small --json \
      > "$out/sanitizer-$tool.log" 2>&1 || { wrong=1; say "$tool found something"; }
  done
else
  say "compute-sanitizer is not installed: not run"
fi
say "stages"
for dtype in bf16 f32; do
  ./im2sp bench --random --device cuda --dtype "$dtype" --units 100 --json > "$out/bench-$dtype.json" || wrong=1
done
say "beside PyTorch"
python3 gpu.py --doctor "$out/doctor.json" --bench "$out"/bench-*.json --json "$out/results.json" \
  | tee -a "$out/results.txt" || wrong=1
exit $wrong
