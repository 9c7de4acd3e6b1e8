#!/usr/bin/env bash
# Makes a captioner of image units out of the captioner of pixels: bash recipes/photos/image_units.sh WORKDIR
# Needs what run.sh makes in WORKDIR (model, pictures, manifest.jsonl), and im2sp. Steps that are done already are skipped,
# interrupted trainings continue.
# LISTS: folder of Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt and Flickr_8k.testImages.txt.
# MODEL: directory of the captioner of pixels and its vocoder, which speaks the units of the manifest [default: WORKDIR/model].
# TOKENIZER: more options of tokenizer.py.
# CAPTIONER: updates of the captioner; CAPTIONER_SIZE: more options of im2sp train.
# CAPTIONS: Flickr8k.token.txt; with it the test pictures are evaluated. LISTENER: a command that hears a WAV file
# [default: Whisper, by hear.py]. BEAM: beams of the search. TEST: evaluate so many test pictures [default: all].
# DEVICE: cpu or cuda [default: cuda if there is one].
# PYTHON, IM2SP: programs, if they are not WORKDIR/venv's and the one that cargo builds.
set -euo pipefail
work=$(realpath -m "${1:?usage: image_units.sh WORKDIR}")
lists=$(realpath -e "${LISTS:?names the folder of the lists}")
model=$(realpath -e "${MODEL:-$work/model}")
im2sp=$(realpath -m "${IM2SP:-$(dirname "$0")/../../target/release/im2sp}")
captions=${CAPTIONS:+$(realpath -e "$CAPTIONS")}
py=$(realpath -ms "${PYTHON:-$work/venv/bin/python}")
cd "$(dirname "$0")"
[ -x "$im2sp" ] || { echo "$im2sp is missing: cargo build --release, or name it in IM2SP" >&2; exit 1; }
for needed in manifest.jsonl pictures; do
    [ -e "$work/$needed" ] || { echo "$work/$needed is missing: run.sh makes it" >&2; exit 1; }
done
if [ ! -x "$py" ]; then
    python3 -m venv "$work/venv"
    "$py" -m pip install --quiet -r requirements.txt
fi
device=${DEVICE:-$("$py" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
out=$work/image_units
# A shell runs it: whatever a path holds stands in quotes.
quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }
listener=${LISTENER:-$(quoted "$py") $(quoted "$PWD/hear.py")}
run=$out/run

# shellcheck disable=SC2086 # several options
[ -e "$out/tokenizer/tokenizer.json" ] ||
    "$py" -u tokenizer.py --model "$model" --pictures "$work/pictures" --list "$lists/Flickr_8k.trainImages.txt" \
        --out "$out" --device "$device" ${TOKENIZER:-}
# Units of the pictures of lists, into one file: tokenize OUTPUT LIST...
tokenize() {
    local output=$1 names
    shift
    mapfile -t names < <(cat "$@")
    "$im2sp" tokenize "${names[@]/#/$work/pictures/}" --weights "$out/tokenizer" -o "$output" --device "$device"
}
tokenize "$out/train.units" "$lists/Flickr_8k.trainImages.txt" "$lists/Flickr_8k.devImages.txt"
tokenize "$out/test.units" "$lists/Flickr_8k.testImages.txt"
if [ -e "$run/config.toml" ]; then
    "$im2sp" train "$run" --resume --device "$device"
else
    # shellcheck disable=SC2086 # several options
    "$im2sp" train "$run" --config units.toml --init "$out/begin" --manifest "$work/manifest.jsonl" \
        --image-units "$out/train.units" --vocoder "$model" --device "$device" \
        ${CAPTIONER:+--iterations "$CAPTIONER"} ${CAPTIONER_SIZE:-}
fi
last=$("$py" -c 'import json, sys; print(json.load(open(sys.argv[1]))["last"])' "$run/checkpoints.json")
"$im2sp" convert "$run/$last" --dtype bf16 --domain "photographs" --force -o "$out/model"
cp "$out"/tokenizer/tokenizer.* "$out/model/"
if [ -n "$captions" ]; then
    "$im2sp" evaluate --weights "$out/model" --dataset flickr8k --images "$work/pictures" --captions "$captions" \
        --list "$lists/Flickr_8k.testImages.txt" ${TEST:+--limit "$TEST"} --beam "${BEAM:-5}" --native \
        --asr-command "$listener" -o "$out/evaluation" --device "$device"
else
    "$im2sp" caption --units "$out/test.units" --weights "$out/model" --no-audio --device "$device" -o "$out/spoken/"
fi
