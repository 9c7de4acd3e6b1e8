"""Does the demo model say what is in the picture? Heard by PocketSphinx, on scenes from an unseen seed.

Draws the scenes, lets im2sp turn every PNG into a WAV, has each WAV written down (hear.py: grammar of
all valid captions, no knowledge of the picture), and counts how often shapes, colours, and relation are
all right (`right`), and the sizes too (`exact`). A sentence that the recogniser leaves unfinished is cut back to
its last complete caption; `right_uncut` counts those as wrong. Two sources of sound:

  --im2sp PATH  the program: PATH caption IMAGES... -o DIR [--weights DIR]
  --resynth     no image at all: flite's own units of the caption through the newest generator in WORK/vocoder (the
                upper bound)

    python evaluate.py --work DIR [--count 200] [--seed 4711] (--im2sp PATH [--weights DIR] | --resynth)
"""
import argparse
import json
import os
import subprocess
import time

import numpy as np

import hear
import scenes


def resynthesise(work, pictures, captions, out):
    """Speak the captions themselves: flite -> units -> vocoder."""
    import soundfile
    import torch

    import speech
    import vocoder

    z = np.load(os.path.join(work, "speech", "units.npz"))
    voice = vocoder.load(os.path.join(work, "vocoder"))
    for path, text in zip(pictures, captions):
        frames = speech.segment(speech.features(speech.speak(text)), z["centres"], speech.CHANGE * float(z["spread"]))
        soundfile.write(wav_of(path, out), voice.synthesise(torch.from_numpy(speech.runs(frames)[0])), 16000)


def program(im2sp, weights, pictures, out):
    """Speak all pictures with the Rust program."""
    subprocess.run([im2sp, "caption", *pictures, "-o", out, *(["--weights", weights] if weights else [])], check=True)


def wav_of(picture, out):
    return os.path.join(out, os.path.splitext(os.path.basename(picture))[0] + ".wav")


def finished(text):
    """Sphinx may end in the middle of the grammar ("... circle and a") when silence follows: cut back to a caption."""
    words = text.split()
    while words:
        try:
            scenes.parse(" ".join(words))
            break
        except ValueError:
            words.pop()
    return " ".join(words)


FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "scenes")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--count", type=int, default=200)
    ap.add_argument("--seed", type=int, default=4711)
    ap.add_argument("--size", type=int, default=256)
    ap.add_argument("--im2sp", help="path of the Rust program")
    ap.add_argument("--weights", default=FIXTURE,
                    help="for --im2sp: model directory [default: tests/scenes]")
    ap.add_argument("--resynth", action="store_true")
    args = ap.parse_args()

    if args.resynth == bool(args.im2sp):
        ap.error("name the source of sound: --im2sp PATH or --resynth")
    kind = "resynth" if args.resynth else "im2sp"
    images, out = os.path.join(args.work, "eval", "images"), os.path.join(args.work, "eval", kind)
    os.makedirs(out, exist_ok=True)
    rows = scenes.save(images, args.seed, args.count, args.size)
    pictures = [os.path.join(images, name) for name, _, _ in rows]
    began = time.time()
    if args.resynth:
        resynthesise(args.work, pictures, [text for _, _, text in rows], out)
    else:
        program(args.im2sp, args.weights, pictures, out)
    seconds = time.time() - began

    results = []
    for path, (name, scene, text) in zip(pictures, rows):
        heard = hear.hear(wav_of(path, out))
        results.append({"image": name, "caption": text, "heard": heard, **scenes.agrees(scene, finished(heard)),
                        "right_uncut": scenes.agrees(scene, heard)["right"]})
    marks = ("objects", "colours", "relation", "sizes", "right", "exact", "right_uncut")
    summary = {m: round(100 * float(np.mean([r[m] for r in results])), 1) for m in marks}
    for n in (1, 2, 3):
        part = [r["right"] for r, (_, s, _) in zip(results, rows) if len(s.objects) == n]
        summary[f"right_with_{n}"] = round(100 * float(np.mean(part)), 1) if part else None
    summary = {"source": kind, "scenes": args.count, "seed": args.seed, **summary, "seconds": round(seconds, 1)}
    with open(os.path.join(args.work, "eval", kind + ".json"), "w") as f:
        json.dump({"summary": summary, "rows": results}, f, indent=1)
    for r in results:
        if not r["right"]:
            print(f"{r['image']}: {r['caption']} | heard: {r['heard']}")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
