"""Spoken captions as discrete units: the speech half of the demo model's data.

flite (voice slt, deterministic) speaks a few thousand distinct captions of drawn scenes. Each recording
becomes 50 feature vectors a second (smooth cepstra of a few neighbouring frames), k-means turns the
vectors into 200 kinds, and a shortest path through "distance to the centre + a fixed price for every change"
gives the unit of each frame, so that units do not flicker. Everything is kept under WORK/speech:

  captions.json                 the captions, in order
  audio.npy, sample_bounds.npy  int16, 16 kHz, all recordings end to end, and where each begins and ends
  units.npz                     units, durations in frames, and where each caption's begin; the k-means centres

    python speech.py --work DIR [--count 6000] [--units-only]

The first part (`load_units`, `load_durations`, `load_speech`) is what the trainers read.
"""
import argparse
import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

import scenes

RATE, HOP, K = 16000, 320, 200
MELS, CEPSTRA, WINDOW, CONTEXT = 40, 16, 800, (0.5, 0.8, 1.0, 0.8, 0.5)
FLITE = ["flite", "-voice", "slt", "--setf", "duration_stretch=0.95"]
CHANGE = 6.0  # price of a change of unit, in mean squared distances of a frame to its centre


# ---------------------------------------------------------------- reading

def load_speech(work):
    """(captions, units, durations, audio): lists with one array each per caption; units are deduplicated."""
    folder = os.path.join(work, "speech")
    with open(os.path.join(folder, "captions.json")) as f:
        captions = json.load(f)
    z = np.load(os.path.join(folder, "units.npz"))
    audio = np.load(os.path.join(folder, "audio.npy"), mmap_mode="r")
    limits = np.load(os.path.join(folder, "sample_bounds.npy"))
    cut = z["unit_bounds"][1:-1]
    return (captions, np.split(z["units"], cut), np.split(z["durations"], cut),
            [audio[a:b] for a, b in zip(limits, limits[1:])])


def load_units(work):
    """Caption -> deduplicated unit ids (int64)."""
    captions, units, _, _ = load_speech(work)
    return dict(zip(captions, units))


def load_durations(work):
    """Caption -> frames (of 20 ms) that each unit of `load_units` lasts."""
    captions, _, durations, _ = load_speech(work)
    return dict(zip(captions, durations))


# ---------------------------------------------------------------- speaking

def speak(text):
    """int16 samples at 16 kHz, silence trimmed, a whole number of frames."""
    import soundfile
    with tempfile.NamedTemporaryFile(suffix=".wav") as f:
        subprocess.run([*FLITE, "-t", text, "-o", f.name], check=True)
        pcm, rate = soundfile.read(f.name, dtype="int16")
    assert rate == RATE
    pcm = pcm[: len(pcm) // HOP * HOP]
    loud = np.flatnonzero(np.abs(pcm.reshape(-1, HOP).astype(np.float32)).max(1) > 250)
    return pcm[max(0, loud[0] - 2) * HOP: (loud[-1] + 4) * HOP]


# ---------------------------------------------------------------- features and units

@lru_cache
def mel_filters(bands, n_fft, low=60.0, high=8000.0):
    """(bands, n_fft/2+1) triangular filters, evenly spaced on the mel scale."""
    edges = 700 * (10 ** (np.linspace(*(np.log10(1 + v / 700) for v in (low, high)), bands + 2)) - 1)
    f = np.fft.rfftfreq(n_fft, 1 / RATE)
    up = (f - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - f) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def features(pcm):
    """(frames, CEPSTRA * len(CONTEXT)); frame t is centred on sample 320 t + 160."""
    from scipy.fft import dct, rfft
    frames, side = len(pcm) // HOP, (WINDOW - HOP) // 2
    x = np.pad(pcm.astype(np.float32) / 32768, side)
    x = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP][:frames] * np.hanning(WINDOW)
    power = np.abs(rfft(x.astype(np.float32), 1024)) ** 2
    logmel = np.log(power @ mel_filters(MELS, 1024).T + 1e-3)
    cep = dct(logmel, norm="ortho", axis=1)[:, :CEPSTRA]
    half = len(CONTEXT) // 2
    padded = np.pad(cep, ((half, half), (0, 0)), mode="edge")
    return np.concatenate([w * padded[i: i + frames] for i, w in enumerate(CONTEXT)], 1).astype(np.float32)


def fit(feats, seed):
    """k-means centres (K, dim), and the mean squared distance to the nearest of them."""
    from sklearn.cluster import MiniBatchKMeans
    rng = np.random.default_rng(seed)
    x = np.concatenate(feats)
    x = x[rng.permutation(len(x))[:150_000]]
    model = MiniBatchKMeans(K, batch_size=4096, n_init=3, max_iter=60, random_state=seed).fit(x)
    return model.cluster_centers_.astype(np.float32), float(model.transform(x[:20_000]).min(1).__pow__(2).mean())


def segment(feat, centres, price):
    """Cheapest unit per frame: squared distance plus `price` per change (Viterbi)."""
    cost = (centres ** 2).sum(1) - 2 * feat @ centres.T + (feat ** 2).sum(1, keepdims=True)
    total, back = cost[0].copy(), np.empty(cost.shape, np.int64)
    stay = np.arange(len(centres))
    for t in range(1, len(cost)):
        best = total.argmin()
        change = total > total[best] + price
        back[t] = np.where(change, best, stay)
        total = np.where(change, total[best] + price, total) + cost[t]
    path = [total.argmin()]
    for t in range(len(cost) - 1, 0, -1):
        path.append(back[t][path[-1]])
    return np.array(path[::-1])


def runs(frames):
    """Deduplicated units and how long each lasts."""
    starts = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]])
    return frames[starts], np.diff(np.r_[starts, len(frames)])


# ---------------------------------------------------------------- building

def distinct_captions(count, seed):
    found = {}
    i = 0
    while len(found) < count:
        found.setdefault(scenes.caption(scenes.sample_scene(np.random.default_rng([seed, i]))))
        i += 1
    return list(found)


def bounds(parts):
    return np.cumsum([0, *map(len, parts)])


def record(work, count, seed, jobs):
    """captions.json, audio.npy and where each recording begins."""
    captions = distinct_captions(count, seed)
    with ThreadPoolExecutor(jobs) as pool:
        audio = list(pool.map(speak, captions))
    np.save(os.path.join(work, "speech", "audio.npy"), np.concatenate(audio))
    np.save(os.path.join(work, "speech", "sample_bounds.npy"), bounds(audio))
    with open(os.path.join(work, "speech", "captions.json"), "w") as f:
        json.dump(captions, f)


def make_units(work, seed):
    """units.npz from the recordings."""
    folder = os.path.join(work, "speech")
    audio, limits = np.load(os.path.join(folder, "audio.npy")), np.load(os.path.join(folder, "sample_bounds.npy"))
    feats = [features(audio[a:b]) for a, b in zip(limits, limits[1:])]
    centres, spread = fit(feats, seed)
    units, durations = zip(*(runs(segment(f, centres, CHANGE * spread)) for f in feats))
    used = len(np.unique(np.concatenate(units)))
    assert used == K, f"only {used} of {K} units occur"
    np.savez(os.path.join(folder, "units.npz"), units=np.concatenate(units), durations=np.concatenate(durations),
             unit_bounds=bounds(units), centres=centres, spread=spread)


def report(work):
    captions, units, durations, _ = load_speech(work)
    for n in (1, 2, 3):
        rows = [(len(u), d.sum()) for c, u, d in zip(captions, units, durations) if len(scenes.parse(c)[0]) == n]
        length, frames = np.array(rows).T
        print(f"{n} objects: {len(rows)} captions, units mean {length.mean():.1f} max {length.max()}, "
              f"frames mean {frames.mean():.0f}")
    print(f"units lasting one frame: {np.mean(np.concatenate(durations) == 1):.1%}")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--count", type=int, default=6000)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--jobs", type=int, default=2)
    ap.add_argument("--units-only", action="store_true", help="keep the recordings, make the units anew")
    args = ap.parse_args()
    os.makedirs(os.path.join(args.work, "speech"), exist_ok=True)
    if not args.units_only:
        record(args.work, args.count, args.seed, args.jobs)
    make_units(args.work, args.seed)
    report(args.work)
