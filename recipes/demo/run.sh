#!/usr/bin/env bash
# Makes the embedded demo model from nothing: bash recipes/demo/run.sh WORKDIR
# Needs python3 and flite. Steps that are done already are skipped, interrupted trainings go on.
# CAPTIONS, PICTURES: how many are spoken and drawn. VOCODER, VISION, DECODER, SETTLE, FOCUS: whole minutes of training.
# IM2SP: the im2sp program; with it the result is also converted to WORKDIR/model and judged as the program speaks it.
set -euo pipefail
work=$(realpath -m "${1:?usage: run.sh WORKDIR}")
im2sp=${IM2SP:+$(realpath "$IM2SP")}
cd "$(dirname "$0")"
command -v flite > /dev/null || { echo "flite is missing (Debian: apt-get install flite)" >&2; exit 1; }
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet -r requirements.txt
fi
py="$work/venv/bin/python -u"
export OMP_WAIT_POLICY=PASSIVE  # the two trainings below share the cores

[ -e "$work/speech/units.npz" ] || $py speech.py --work "$work" --count "${CAPTIONS:-6000}"
[ -e "$work/pool/captions.json" ] || $py train_captioner.py pool --work "$work" --count "${PICTURES:-48000}"
$py train_vocoder.py --work "$work" --minutes "${VOCODER:-60}" > "$work/vocoder.log" 2>&1 &
vocoder=$!
[ -e "$work/vision.pt" ] || $py train_captioner.py vision --work "$work" --minutes "${VISION:-25}"
$py train_captioner.py decoder --work "$work" --minutes "${DECODER:-40}"
[ -e "$work/settled.ckpt" ] || $py settle.py --work "$work" --minutes "${SETTLE:-25}"
wait $vocoder
# The listener takes "white" for "red" more often than any other word, so the last minutes look at it more closely.
$py train_vocoder.py --work "$work" --minutes "$((${VOCODER:-60} + ${FOCUS:-15}))" --focus "large white" --threads 2

$py evaluate.py --work "$work" --resynth
$py evaluate.py --work "$work"
if [ -n "$im2sp" ]; then
    "$im2sp" convert "$work/settled.ckpt" --vocoder "$(ls -t "$work"/vocoder/g_* | head -n 1)" --dtype bf16 --force \
        --domain "drawn scenes of coloured shapes" -o "$work/model"
    $py evaluate.py --work "$work" --im2sp "$im2sp" --weights "$work/model"
fi
