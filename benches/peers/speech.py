"""Speech models beside transformers on one CPU: HuBERT Base and wav2vec 2.0 large over 10 s, and units from the shell.

    cargo build --release --examples
    python benches/peers/speech.py FOLDER --im2sp target/release/im2sp --ours target/release/examples/speech [--json FILE]

Random weights of the published sizes are made in FOLDER by transformers, once, and converted. All sides take turns in
every round, each in a process of its own whose first pass is not counted; the table gives medians over all rounds and,
in parentheses, the lowest and the highest. Run it on an idle machine.
"""
import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ends

SECONDS, PASSES, LAYER = 10, 3, 6
MODELS = {"hubert": "HuBERT Base, 12 layers, 10 s", "wav2vec2": "wav2vec 2.0 large, CTC, 10 s"}


def prepare(folder, im2sp):
    import numpy as np

    if (folder / "ready").exists():
        return
    folder.mkdir(exist_ok=True)
    ends.speech_models(folder, False)
    shutil.rmtree(folder / "sounds", ignore_errors=True)
    for name in MODELS:
        subprocess.run([im2sp, "convert", folder / name, "--force", "-o", folder / f"{name}-im2sp"], check=True)
    np.save(folder / "centres.npy", np.random.default_rng(3).normal(0, 1, (ends.CENTRES, 768)).astype("float32"))
    ends.sounds(folder / "sounds", SECONDS)
    (folder / "ready").touch()


def peer(folder, name, form):
    """Milliseconds of transformers' passes, one a line."""
    import torch
    from transformers import HubertModel, Wav2Vec2ForCTC

    kind = {"hubert": HubertModel, "wav2vec2": Wav2Vec2ForCTC}[name]
    attention = "eager" if form == "eager" else "sdpa"
    model = kind.from_pretrained(folder / name, attn_implementation=attention).eval()
    run = torch.compile(model) if form == "compiled" else model
    samples = torch.randn(1, SECONDS * ends.RATE) * 0.1
    with torch.inference_mode():
        for _ in range(PASSES + 1):
            start = time.perf_counter()
            out = run(samples)
            if name == "wav2vec2":
                out.logits.argmax(-1)
            print(json.dumps({"ms": 1e3 * (time.perf_counter() - start)}), flush=True)


def units(folder, sound):
    """Units of a recording, as a script would make them."""
    import wave

    import numpy as np
    import torch
    from transformers import HubertModel

    with wave.open(str(sound)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype("float32") / 32768
    model = HubertModel.from_pretrained(folder / "hubert").eval()
    centres = torch.from_numpy(np.load(folder / "centres.npy"))
    with torch.inference_mode():
        states = model(torch.from_numpy(samples)[None], output_hidden_states=True).hidden_states[LAYER][0]
        print(*torch.cdist(states, centres).argmin(1).tolist())


def passes(command):
    lines = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line)["ms"] for line in lines.splitlines()[1:]]


def seconds(command):
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def cell(values, digits=0):
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def measure(arguments, forms):
    folder, script = arguments.folder, Path(__file__).resolve()
    sides = {}
    for number in range(arguments.rounds):
        for name in MODELS:
            commands = {"im2sp": [arguments.ours, folder / f"{name}-im2sp", SECONDS, PASSES + 1]}
            commands |= {form: [sys.executable, script, folder, "--peer", name, form] for form in forms}
            for side, command in list(commands.items())[:: 1 if number % 2 else -1]:
                sides.setdefault((name, side), []).extend(passes(command))
        sound = next((folder / "sounds").iterdir())
        ours = [arguments.im2sp, "units", sound, "--weights", folder / "hubert-im2sp", "--kmeans", folder / "centres.npy"]
        script_units = [sys.executable, script, folder, "--units", sound]
        sides.setdefault(("shell", "im2sp"), []).append(seconds(ours))
        sides.setdefault(("shell", "sdpa"), []).append(seconds(script_units))
    return sides


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--im2sp", help="the release binary")
    parser.add_argument("--ours", help="the binary of the example speech")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--forms", default="eager,sdpa,compiled")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--units", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return peer(arguments.folder, *arguments.peer)
    if arguments.units:
        return units(arguments.folder, arguments.units)

    prepare(arguments.folder, arguments.im2sp)
    forms = arguments.forms.split(",")
    sides = measure(arguments, forms)
    rows = []
    for name, title in MODELS.items():
        fastest = min(statistics.median(sides[name, form]) for form in forms)
        ratio = fastest / statistics.median(sides[name, "im2sp"])
        rows.append([f"{title}, ms", *(cell(sides[name, side]) for side in ("im2sp", *forms)), f"{ratio:.2f}"])
    ratio = statistics.median(sides["shell", "sdpa"]) / statistics.median(sides["shell", "im2sp"])
    shell = {side: cell(sides["shell", side], 2) if ("shell", side) in sides else "" for side in ("im2sp", *forms)}
    rows.append(["10 s to units from the shell, s", *shell.values(), f"{ratio:.2f}"])
    columns = ["f32", "im2sp", *(f"PyTorch {form}" for form in forms), "fastest PyTorch over im2sp"]
    text = json.dumps({"columns": columns, "rows": rows}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
