#!/usr/bin/env bash
# Runs on a machine with a GPU, from the unpacked bundle (scripts/gpu-bundle.sh): is every kernel right, how fast is it, how
# fast is this machine's PyTorch, and what does compute-sanitizer say?   bash gpu-check.sh [FOLDER FOR RESULTS]
#
# Ends within GPU_CHECK_SECONDS (480) whatever happens: every step has a limit, the most valuable come first, and what no
# longer fits is skipped. Results are written as they come: steps.jsonl has a line for each step, summary.txt is written anew
# after each, results.json is what benches/report.py reads. Exit status 1 if a step failed or ran into its limit.
# Needs bash, coreutils and the driver; compares with PyTorch if python3 and torch are there. GPU_CHECK_JOBS processes at a
# time check for correctness, with cases up to GPU_CHECK_SIZE (small, ragged, real); GPU_CHECK_LIMIT lowers every limit.
set -uo pipefail
cd "$(dirname "$0")"
out=$(realpath -m "${1:-results}")
mkdir -p "$out"
: > "$out/steps.jsonl"

# Seconds that killing the last step, and the last summary and results, may take.
RESERVE=12
# A step that has less than this is not worth its start.
LEAST=2
GRACE=3
seconds=${GPU_CHECK_SECONDS:-480}
size=${GPU_CHECK_SIZE:-real}
longest=${GPU_CHECK_LIMIT:-480}
cores=$(nproc)
jobs=${GPU_CHECK_JOBS:-$((cores < 8 ? cores : 8))}
export IM2SP_TEST_DEVICE=cuda:0

left() { echo $((seconds - RESERVE - SECONDS)); }

# note STEP STATUS SECONDS REMARK: a line of steps.jsonl, in one write since steps may run side by side.
note() {
  local remark=${4//[^[:print:]]/ }
  remark=${remark//\\/\\\\}
  printf '{"step": "%s", "status": "%s", "seconds": %s, "remark": "%s"}\n' "$1" "$2" "$3" "${remark//\"/\\\"}" \
    >> "$out/steps.jsonl"
}

# The summary as of now; moved into its place whole.
summarise() {
  {
    echo "im2sp $(cat commit 2>/dev/null || echo 'of an unknown commit'), $SECONDS of $seconds s"
    sed -E 's/^\{"step": "([^"]*)", "status": "([^"]*)", "seconds": ([0-9.]*), "remark": "(.*)"\}$/\2\t\3 s\t\1\t\4/' \
      "$out/steps.jsonl" | awk -F '\t' '{printf "%-10s %9s  %-24s %s\n", $1, $2, $3, $4}'
    for status in passed failed 'timed out' skipped; do
      echo "$(grep -c "\"status\": \"$status\"" "$out/steps.jsonl") $status"
    done | paste -sd ',' | sed 's/,/, /g'
  } > "$out/summary.fresh"
  mv "$out/summary.fresh" "$out/summary.txt"
}

# skip STEP REMARK
skip() { note "$1" skipped 0 "$2"; }

# step NAME LIMIT COMMAND...: standard output in NAME.out, standard error in NAME.log. One that even SIGKILL does not end,
# as in a driver that hangs, is left behind.
step() {
  local name=$1 limit=$2 left began=$EPOCHREALTIME code status pid
  shift 2
  left=$(left)
  if ((left < LEAST)); then
    skip "$name" 'no time left'
    return
  fi
  ((limit > longest)) && limit=$longest
  ((limit > left)) && limit=$left
  # Without bash's own words on jobs that were killed.
  {
    timeout --kill-after=$GRACE "$limit" "$@" > "$out/$name.out" 2> "$out/$name.log" < /dev/null &
    pid=$!
    local end=$((SECONDS + limit + GRACE + 2))
    while kill -0 $pid && ((SECONDS < end)); do sleep 0.1; done
    if kill -0 $pid; then
      status='timed out'
      code='cannot be killed'
      disown $pid
    else
      wait $pid
      code=$?
      case $code in
        0) status=passed ;;
        124 | 137) status='timed out' ;;
        *) status=failed ;;
      esac
    fi
  } 2> /dev/null
  local took remark=''
  took=$(awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $began}")
  # Of doctor its cases count, of everything else the last words.
  local wrong
  wrong=$(grep -c '"passed": *false' "$out/$name.out")
  if ((wrong)); then
    remark="$wrong cases failed $(grep -m 1 -o '"problem": *"[^"]*"' "$out/$name.out" | cut -c 1-120)"
  elif [ "$status" != passed ]; then
    remark="$code: $(tail -n 1 "$out/$name.log" | cut -c 1-120)"
  fi
  note "$name" "$status" "$took" "$remark"
}

# together COUNT: reads "NAME LIMIT COMMAND..." lines and runs so many at a time.
together() {
  local count=$1 running=0 line
  while read -ra line; do
    if ((running >= count)); then
      wait -n
      running=$((running - 1))
      summarise
    fi
    step "${line[@]}" < /dev/null &
    running=$((running + 1))
  done
  wait
  summarise
}

alone() {
  step "$@"
  summarise
}

summarise
operations=$(timeout 20 ./im2sp doctor --list)
[ -n "$operations" ] || note operations failed 0 "im2sp doctor --list names none"

# Models and files of both ends are made while there is work for the device.
ends=$(mktemp -d)
trap 'rm -rf "$ends"' EXIT

# Correctness: every operation in a process of its own; then models of three sizes. Left out by name: tests
# of the emulator, and tests that need this project's sources or a C compiler.
{
  if command -v python3 > /dev/null; then
    echo "ends-prepare 150 python3 ends.py prepare $ends/files --im2sp ./im2sp"
  fi
  for op in $operations; do
    echo "doctor-$op 75 ./im2sp doctor --op =$op --size $size --no-timing --json"
  done
  if [ -x test-end_to_end ]; then
    echo "published-size 100 ./test-end_to_end --ignored --exact the_published_size_speaks_as_on_the_cpu"
    echo "embedded-model 60 ./test-end_to_end --ignored --exact the_embedded_model_speaks_as_on_the_cpu"
    echo "test-end_to_end 100 ./test-end_to_end --skip emulated::"
  fi
  # Updates of the small model from pixels, whose losses must be the CPU's.
  if [ -x train_step ]; then
    for dtype in f32 bf16; do
      echo "train-scenes-$dtype 60 ./train_step scenes 8 60 20 cuda $dtype"
    done
  fi
} | together "$jobs"

# One of its tests asks for more memory than there is; meanwhile others may find none.
if [ -x test-driver ]; then
  alone test-driver 40 ./test-driver --skip fake:: --skip the_emulator --skip sums_end_however_the_other_ranks_do \
    --skip a_machine_without_nccl_is_told_what_to_do
fi

# Times, with the device to themselves.
alone timing 75 ./im2sp doctor --size "$size" --timing-only --json
for dtype in bf16 f32; do
  alone "bench-$dtype" 45 ./im2sp bench --random --device cuda --dtype "$dtype" --units 100 --json
done
if [ -x train_step ]; then
  for model in decoder frozen full; do
    alone "train-$model" 30 ./train_step "$model" 16 150 20 cuda bf16
  done
fi
# Large products by pairs of blocks: right, and how fast?
alone pairs-doctor 75 env IM2SP_PAIRS=1 ./im2sp doctor --op =linear --size "$size" --no-timing --json
alone pairs-timing 30 env IM2SP_PAIRS=1 ./im2sp doctor --op =linear --size "$size" --timing-only --json
if [ -x train_step ]; then
  alone pairs-train 30 env IM2SP_PAIRS=1 ./train_step full 16 150 20 cuda bf16
fi
alone bulk 60 ./im2sp bench --random --device cuda --dtype bf16 --units 100 --in-flight 64 --json

# Recordings to units, images to image units and to scores, from the command line.
for end in recordings tokenize evaluate; do
  if [ -e "$ends/files/ready" ]; then
    alone "$end" 90 python3 ends.py "$end" "$ends/files" --im2sp ./im2sp
  else
    skip "$end" 'no models: they need python3 with torch and transformers'
  fi
done

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck initcheck synccheck; do
    echo "$tool 90 compute-sanitizer --tool $tool --error-exitcode 9 ./im2sp doctor --size small --no-timing --json"
  done | together 3
  # On the whole small table racecheck does not end within 85 s on an H200: operation by operation, without the greedy loop,
  # whose blocks wait for each other. One that runs into its limit has found nothing, and is no failure.
  for op in $operations; do
    [ "$op" = decode_greedy ] || echo "racecheck-$op 40 compute-sanitizer --tool racecheck --error-exitcode 9" \
      "./im2sp doctor --op =$op --size small --no-timing --json"
  done | together "$jobs"
else
  skip sanitizers 'compute-sanitizer is not installed'
fi

if command -v python3 > /dev/null; then
  alone peers 140 python3 gpu.py --doctor "$out"/doctor-*.out --timing "$out/timing.out" --bench "$out"/bench-*.out \
    --bulk "$out/bulk.out" --ends "$out"/{recordings,tokenize,evaluate}.out --out "$out" --seconds 125
  if [ -x train_step ]; then
    alone train-peers 130 python3 train_step.py --device cuda --ours ./train_step --rounds 1 --seconds 120 \
      --json "$out/train-peers.json"
  fi
else
  skip peers 'python3 is not installed'
fi

if command -v python3 > /dev/null; then
  timeout 5 python3 gpu.py --finish "$out/steps.jsonl" --out "$out"
fi
summarise
cat "$out/summary.txt"
! awk '/"status": "failed"/ || (/"status": "timed out"/ && !/"step": "racecheck-/) {bad = 1} END {exit !bad}' "$out/steps.jsonl"
