"""The data set of `im2sp train`: the images of the pool as files, and flite's units of their captions.

    python dataset.py --work DIR [--jobs N]

reads DIR/pool and DIR/speech and writes DIR/scenes/images/NNNNNN.png and DIR/scenes/manifest.jsonl, one line an image:
{"image": "images/000000.png", "units": [71, 12, ...], "split": "train", "caption": "a large red circle"}. Images whose
caption was not spoken are left out. All images of every 50th caption of two or three objects are for validation, so that
new combinations are tested.
"""
import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image

import scenes
import speech
from pretrain import held_out

CHUNK = 500  # images of a job


def write_images(folder, pixels, numbers):
    pixels = np.load(pixels, mmap_mode="r")
    for i in numbers:
        Image.fromarray(pixels[i]).save(os.path.join(folder, f"{i:06d}.png"), compress_level=1)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--jobs", type=int, default=2)
    args = ap.parse_args()

    units = speech.load_units(args.work)
    with open(os.path.join(args.work, "pool", "captions.json")) as f:
        captions = json.load(f)
    spoken = np.array([i for i, text in enumerate(captions) if text in units])
    kept = {captions[i] for i in spoken[held_out(spoken)] if scenes.parse(captions[i])[1]}

    folder = os.path.join(args.work, "scenes")
    images = os.path.join(folder, "images")
    os.makedirs(images, exist_ok=True)
    pixels = os.path.join(args.work, "pool", "pixels.npy")
    with ProcessPoolExecutor(args.jobs) as pool:
        chunks = [spoken[at: at + CHUNK] for at in range(0, len(spoken), CHUNK)]
        for job in [pool.submit(write_images, images, pixels, chunk) for chunk in chunks]:
            job.result()

    manifest = os.path.join(folder, "manifest.jsonl")
    with open(manifest + ".part", "w") as f:
        for i in spoken:
            text = captions[i]
            row = {"image": f"images/{i:06d}.png", "units": units[text].tolist(),
                   "split": "val" if text in kept else "train", "caption": text}
            f.write(json.dumps(row) + "\n")
    os.replace(manifest + ".part", manifest)
    back = sum(captions[i] in kept for i in spoken)
    print(f"{len(spoken) - back} images to train on, {back} for validation, {len({captions[i] for i in spoken})} captions")


if __name__ == "__main__":
    main()
