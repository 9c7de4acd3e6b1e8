"""The peer of `im2sp caption PHOTO -o OUT.wav`: one photo to one wav from a cold process, in PyTorch.

    python benches/peers/oneshot.py plain|best PHOTO DIR UNITS OUT.wav

`plain` loads as one would write it at first; `best` maps the checkpoints and initialises nothing. Neither downloads,
tokenizes or builds anything it does not use. DIR is made by recipes/golden/full_size.py.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "golden"))

import torch

import pipeline


def main():
    how, photo, folder, units, out = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    model = pipeline.load_captioner(folder, how == "best")
    vocoder = pipeline.load_vocoder(folder, how == "best")
    tokens = pipeline.greedy(model, pipeline.preprocess(photo), int(units))
    pipeline.write_wav(out, pipeline.speak(vocoder, pipeline.spoken_units(tokens)))


if __name__ == "__main__":
    main()
