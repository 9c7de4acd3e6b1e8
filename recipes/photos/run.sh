#!/usr/bin/env bash
# Makes the captioner of photographs: bash recipes/photos/run.sh WORKDIR
# Needs python3, flite, im2sp, and Flickr8k as its own page gives it. Steps that are done already are skipped,
# interrupted trainings continue.
# PICTURES: folder of the JPEGs. TEXT: folder of Flickr8k.token.txt and Flickr_8k.{train,dev,test}Images.txt.
# SPEAKER: a command with {text} and {wav}, if not flite. CAPTIONS: how many of each picture are spoken.
# CLUSTERS: kinds of units. KEEP: recordings for the centres and the vocoder.
# VOCODER: minutes of the vocoder's training; VOCODER_SIZE: more options of train_vocoder.py.
# DECODER: updates of the decoder; DECODER_SIZE: more options of im2sp train. MODEL_SIZE: options of initial.py.
# TEST: evaluate so many test pictures [default: all]. LISTENER: a command that hears a WAV file [default: Whisper, by
# hear.py].
# DEVICE: cpu or cuda [default: cuda if there is one].
# PYTHON, IM2SP: programs, if they are not WORKDIR/venv's and the one that cargo builds.
set -euo pipefail
work=$(realpath -m "${1:?usage: run.sh WORKDIR}")
pictures=$(realpath -e "${PICTURES:?names the folder of pictures}")
text=$(realpath -e "${TEXT:?names the folder of captions and lists}")
im2sp=$(realpath -m "${IM2SP:-$(dirname "$0")/../../target/release/im2sp}")
py=$(realpath -ms "${PYTHON:-$work/venv/bin/python}")
cd "$(dirname "$0")"
[ -x "$im2sp" ] || { echo "$im2sp is missing: cargo build --release, or name it in IM2SP" >&2; exit 1; }
[ -n "${SPEAKER:-}" ] || command -v flite > /dev/null ||
    { echo "flite is missing (Debian: apt-get install flite), or name another speaker in SPEAKER" >&2; exit 1; }
mkdir -p "$work"
if [ ! -x "$py" ]; then
    python3 -m venv "$work/venv"
    "$py" -m pip install --quiet -r requirements.txt
fi
device=${DEVICE:-$("$py" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
export OMP_WAIT_POLICY=PASSIVE
list() { echo "$text/Flickr_8k.$1Images.txt"; }
tokens=$text/Flickr8k.token.txt
# A shell runs it: whatever a path holds stands in quotes.
quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }
listener=${LISTENER:-$(quoted "$py") $(quoted "$PWD/hear.py")}

"$py" speech.py --work "$work" --tokens "$tokens" --lists "$(list train)" "$(list dev)" --im2sp "$im2sp" \
    --captions "${CAPTIONS:-5}" --clusters "${CLUSTERS:-200}" --keep "${KEEP:-4000}" ${SPEAKER:+--speaker "$SPEAKER"}
"$py" dataset.py --work "$work" --pictures "$pictures" --train "$(list train)" --dev "$(list dev)"
if [ ! -e "$work/vocoder/done" ]; then
    # shellcheck disable=SC2086 # several options
    "$py" -u ../demo/train_vocoder.py --work "$work" --judge-every 0 --device "$device" --minutes "${VOCODER:-90}" \
        ${VOCODER_SIZE:---width 256}
    touch "$work/vocoder/done"
fi
# shellcheck disable=SC2086 # several options
[ -e "$work/initial.ckpt" ] || "$py" initial.py --out "$work/initial.ckpt" ${MODEL_SIZE:-}
run=$work/decoder
if [ -e "$run/config.toml" ]; then
    "$im2sp" train "$run" --resume --device "$device"
else
    # shellcheck disable=SC2086 # several options
    "$im2sp" train "$run" --config captioner.toml --init "$work/initial.ckpt" --manifest "$work/manifest.jsonl" \
        --device "$device" ${DECODER:+--iterations "$DECODER"} ${DECODER_SIZE:-}
fi
last=$("$py" -c 'import json, sys; print(json.load(open(sys.argv[1]))["last"])' "$run/checkpoints.json")
"$im2sp" convert "$run/$last" --vocoder "$(ls -t "$work"/vocoder/g_* | head -n 1)" --dtype bf16 --force \
    --domain "photographs" -o "$work/model"
"$im2sp" evaluate --weights "$work/model" --dataset flickr8k --images "$pictures" --captions "$tokens" \
    --list "$(list test)" ${TEST:+--limit "$TEST"} --beam "${BEAM:-5}" --native --device "$device" \
    --asr-command "$listener" -o "$work/evaluation"
for kind in random nearest human ceiling; do
    [ -n "${TEST:-}" ] || [ -e "$work/baselines/$kind.json" ] ||
        "$py" baselines.py "$kind" --work "$work" --pictures "$pictures" --tokens "$tokens" --train "$(list train)" \
            --test "$(list test)" --weights "$work/model" --im2sp "$im2sp" --python "$py"
done
