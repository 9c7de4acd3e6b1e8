#!/usr/bin/env bash
# Makes the model of drawn scenes, the tests' fixture, from nothing: bash recipes/demo/run.sh WORKDIR
# Needs python3, flite and im2sp. Steps that are done already are skipped, interrupted trainings go on.
# CAPTIONS, IMAGES: how many are spoken and drawn. VOCODER, FOCUS, VISION, SETTLE: whole minutes of training.
# DECODER: updates of the decoder.
# IM2SP: the im2sp program, if it is not the one that cargo builds.
set -euo pipefail
work=$(realpath -m "${1:?usage: run.sh WORKDIR}")
im2sp=$(realpath -m "${IM2SP:-$(dirname "$0")/../../target/release/im2sp}")
cd "$(dirname "$0")"
command -v flite > /dev/null || { echo "flite is missing (Debian: apt-get install flite)" >&2; exit 1; }
[ -x "$im2sp" ] || { echo "$im2sp is missing: cargo build --release, or name it in IM2SP" >&2; exit 1; }
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet -r requirements.txt
fi
py="$work/venv/bin/python -u"
export OMP_WAIT_POLICY=PASSIVE  # the trainings of the vocoder and of the vision encoder share the cores

# Trains in the directory $1, or continues there; the other arguments are for a new run.
train() {
    local run=$1
    shift
    if [ -e "$run/config.toml" ]; then "$im2sp" train "$run" --resume; else "$im2sp" train "$run" "$@"; fi
}
last() { ls -d "$1"/step-* | tail -n 1; }

[ -e "$work/speech/units.npz" ] || $py speech.py --work "$work" --count "${CAPTIONS:-6000}"
[ -e "$work/pool/captions.json" ] || $py pretrain.py pool --work "$work" --count "${IMAGES:-48000}"
[ -e "$work/scenes/manifest.jsonl" ] || $py dataset.py --work "$work"
$py train_vocoder.py --work "$work" --minutes "${VOCODER:-60}" > "$work/vocoder.log" 2>&1 &
vocoder=$!
[ -e "$work/vision.ckpt" ] || $py pretrain.py vision --work "$work" --minutes "${VISION:-25}"
train "$work/decoder" --config captioner.toml --init "$work/vision.ckpt" --manifest "$work/scenes/manifest.jsonl" \
    --iterations "${DECODER:-5000}"
[ -e "$work/captioner.ckpt" ] || "$im2sp" export "$(last "$work/decoder")" --format reference -o "$work/captioner.ckpt"
[ -e "$work/settled.ckpt" ] || $py settle.py --work "$work" --minutes "${SETTLE:-25}"
wait $vocoder
# The listener takes "white" for "red" more often than any other word, so the last minutes look at it more closely.
$py train_vocoder.py --work "$work" --minutes "$((${VOCODER:-60} + ${FOCUS:-15}))" --focus "large white" --threads 2

"$im2sp" convert "$work/settled.ckpt" --vocoder "$(ls -t "$work"/vocoder/g_* | head -n 1)" --dtype bf16 --force \
    --domain "drawn scenes of coloured shapes" -o "$work/model"
$py evaluate.py --work "$work" --resynth
$py evaluate.py --work "$work" --im2sp "$im2sp" --weights "$work/model"
