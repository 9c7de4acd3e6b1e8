"""Golden data of the cepstra and of units with a price for changes: those of recipes/demo.

    python recipes/golden/cepstra.py        writes tests/golden/cepstra.safetensors
"""
import os
import sys

import numpy as np
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import speech  # noqa: E402

CENTRES = os.path.join(HERE, "..", "..", "tests", "scenes", "cepstra.npy")


def signal(seconds, seed=0):
    """int16 samples: gliding harmonics that come and go, and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * speech.RATE)) / speech.RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.3 * t)) / speech.RATE
    voice = sum(np.sin(k * phase) * np.exp(-((k - 6 - 5 * np.sin(2 * np.pi * 2.1 * t)) / 4) ** 2) for k in range(1, 30))
    x = 0.1 * voice * (np.sin(2 * np.pi * 1.7 * t) > -0.4) + 0.01 * rng.standard_normal(len(t))
    return np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)


def main():
    pcm, centres = signal(1.53), np.load(CENTRES)
    feats = speech.features(pcm)
    tensors = {"samples": (pcm / np.float32(32768)).astype(np.float32), "features": feats}
    for price in (0, 50, 434):
        tensors[f"units_{price}"] = speech.segment(feats, centres, price).astype(np.float32)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()},
              os.path.join(HERE, "..", "..", "tests", "golden", "cepstra.safetensors"))


if __name__ == "__main__":
    main()
