#!/usr/bin/env bash
# Both recipes on 40 drawn pictures, tiny and in minutes on a CPU, to see that every step works: bash recipes/photos/try.sh WORKDIR
# Needs what run.sh needs, but no data set and no Whisper: the listener says the same of every sound, so scores mean nothing.
# PYTHON, IM2SP, SPEAKER: as for run.sh.
set -euo pipefail
work=$(realpath -m "${1:?usage: try.sh WORKDIR}")
im2sp=$(realpath -m "${IM2SP:-$(dirname "$0")/../../target/release/im2sp}")
py=$(realpath -ms "${PYTHON:-$work/venv/bin/python}")
cd "$(dirname "$0")"
mkdir -p "$work/text"
if [ ! -x "$py" ]; then
    python3 -m venv "$work/venv"
    "$py" -m pip install --quiet -r requirements.txt
fi
"$py" ../demo/scenes.py --count 40 --seed 3 --kind jpg --out "$work/drawn" |
    awk '{name = $1; $1 = ""; for (n = 0; n < 5; n++) print name "#" n "\t" substr($0, 2) " ."}' > "$work/text/Flickr8k.token.txt"
split() { seq -f 'scene_%04g.jpg' "$2" "$3" > "$work/text/Flickr_8k.$1Images.txt"; }
split train 0 29
split dev 30 34
split test 35 39
export PYTHON=$py IM2SP=$im2sp DEVICE=cpu LISTENER="echo a red circle" BEAM=1 TEST=5
CAPTIONS=2 CLUSTERS=20 KEEP=60 VOCODER=0.2 VOCODER_SIZE="--width 32" DECODER=20 DECODER_SIZE="--batch 8 --warmup 2" \
    MODEL_SIZE="--width 64 --layers 1" PICTURES=$work/drawn TEXT=$work/text bash run.sh "$work"
TOKENIZER="--axes 4 --held-out 5 --codes 40 --layers 1" CAPTIONER=20 CAPTIONER_SIZE="--batch 8 --warmup 2" LISTS=$work/text \
    CAPTIONS=$work/text/Flickr8k.token.txt bash image_units.sh "$work"
for result in evaluation image_units/evaluation; do
    [ -s "$work/$result/report.html" ] || { echo "$work/$result/report.html is missing" >&2; exit 1; }
done
