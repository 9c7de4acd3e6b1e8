#!/usr/bin/env bash
# Trains the captioner of image units on the pictures of the pixel model: bash recipes/photos/image_units.sh WORKDIR
# Needs WORKDIR/manifest.jsonl and WORKDIR/pictures, which run.sh makes, and im2sp. Steps that are done already are skipped,
# interrupted trainings continue.
# LISTS: folder of Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt and Flickr_8k.testImages.txt.
# VOCODER: model directory whose vocoder speaks; without one the captioner says units only.
# DEVICE: cpu or cuda [default: cuda if there is one]. THREADS: for PyTorch.
# TOKENIZER: seconds of training of the tokenizer; TOKENIZER_SIZE: more options of tokenizer.py.
# CAPTIONER: updates of the captioner; CAPTIONER_SIZE: more options of im2sp train.
# CAPTIONS, LISTENER: Flickr8k.token.txt and a command that hears a WAV file; with both the test pictures are evaluated.
# PYTHON, IM2SP: programs, if they are not WORKDIR/venv's and the one that cargo builds.
set -euo pipefail
work=$(realpath -m "${1:?usage: image_units.sh WORKDIR}")
lists=$(realpath -e "${LISTS:?names the folder of the lists}")
im2sp=$(realpath -m "${IM2SP:-$(dirname "$0")/../../target/release/im2sp}")
vocoder=(${VOCODER:+--vocoder "$(realpath -e "$VOCODER")"})
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
run=$out/run

if [ ! -e "$out/captioner.ckpt" ]; then
    # shellcheck disable=SC2086 # several options
    "$py" -u tokenizer.py --pictures "$work/pictures" --list "$lists/Flickr_8k.trainImages.txt" --out "$out" \
        --device "$device" --seconds "${TOKENIZER:-3600}" ${THREADS:+--threads "$THREADS"} ${TOKENIZER_SIZE:-}
fi
[ -e "$out/tokenizer/tokenizer.json" ] ||
    "$im2sp" convert --tokenizer "$out/tokenizer.ckpt" --codebook "$out/codebook.ckpt" -o "$out/tokenizer"
# Units of the pictures of lists, into one file: tokenize OUTPUT LIST...
tokenize() {
    local output=$1 names
    shift
    mapfile -t names < <(cat "$@")
    "$im2sp" tokenize "${names[@]/#/$work/pictures/}" --weights "$out/tokenizer" -o "$output" --device "$device"
}
tokenize "$out/train.units" "$lists/Flickr_8k.trainImages.txt" "$lists/Flickr_8k.devImages.txt"
tokenize "$out/test.units" "$lists/Flickr_8k.testImages.txt"
[ -e "$out/begin/config.json" ] ||
    "$im2sp" convert "$out/captioner.ckpt" --codebook "$out/codebook.ckpt" -o "$out/begin"
if [ -e "$run/config.toml" ]; then
    "$im2sp" train "$run" --resume --device "$device"
else
    # shellcheck disable=SC2086 # several options
    "$im2sp" train "$run" --config units.toml --init "$out/begin" --manifest "$work/manifest.jsonl" \
        --image-units "$out/train.units" "${vocoder[@]}" --device "$device" ${CAPTIONER:+--iterations "$CAPTIONER"} \
        ${CAPTIONER_SIZE:-}
fi
last=$("$py" -c 'import json, sys; print(json.load(open(sys.argv[1]))["last"])' "$run/checkpoints.json")
"$im2sp" convert "$run/$last" --tokenizer "$out/tokenizer.ckpt" --codebook "$out/codebook.ckpt" --force -o "$out/model"
if [ -n "$captions" ] && [ -n "${LISTENER:-}" ]; then
    "$im2sp" evaluate --weights "$out/model" --dataset flickr8k --images "$work/pictures" --captions "$captions" \
        --list "$lists/Flickr_8k.testImages.txt" --asr-command "$LISTENER" -o "$out/evaluation" --device "$device"
else
    "$im2sp" caption --units "$out/test.units" --weights "$out/model" --no-audio --device "$device" -o "$out/spoken/"
fi
