"""Speaks the captions of a data set and turns the recordings into speech units.

    python speech.py --work DIR --tokens Flickr8k.token.txt --lists Flickr_8k.trainImages.txt Flickr_8k.devImages.txt

speaks the captions of the listed pictures (the first of every picture, then the second, ...) by flite, or by any
command that is given a text and the name of a WAV file; the recordings' cepstra become 200 kinds of units, 50 a second,
by `im2sp kmeans` and `im2sp units`. An interrupted run continues. Everything is kept under WORK/speech:

  centres.npy           the k-means centres, found on the first recordings
  chunks/NNNN.jsonl     for each caption {"key": "NAME.jpg#0", "number": ..., "text": ..., "units": [...],
                        "frames": [...]}: units without repetition, and how many frames of 20 ms each lasts
  recordings/           the first recordings
  captions.json, audio.npy, sample_bounds.npy, units.npz
                        the same with their units, as train_vocoder.py reads them
"""
import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flickr import read_captions, read_list

RATE, HOP = 16000, 320
SPEAKER = "flite -voice slt --setf duration_stretch=0.95 -t {text} -o {wav}"
PRICE = 70  # of a change of unit, about a frame's mean squared distance to its centre
CHUNK = 500  # captions


def speakable(text):
    """A caption without quotes and other signs that would be read out, and with its full stop at the last word."""
    return re.sub(r"\s+", " ", re.sub(r"[\"`#*_<>|/\\]", " ", text)).strip(" .") + "."


def read_wav(path):
    """int16 samples of a 16 kHz mono file."""
    with wave.open(path) as f:
        kind = f.getframerate(), f.getnchannels(), f.getsampwidth()
        if kind != (RATE, 1, 2):
            raise SystemExit(f"{path}: {kind[0]} Hz, {kind[1]} channels, {8 * kind[2]} bits, not 16 kHz, mono, 16 bits")
        return np.frombuffer(f.readframes(f.getnframes()), np.int16)


def write_wav(path, pcm):
    with wave.open(path, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(RATE)
        f.writeframes(pcm.tobytes())


def speak(command, text, path):
    """A 16 kHz WAV file: silence at both ends trimmed, a whole number of frames."""
    fresh = path + ".part.wav"
    words = [part.format(text=speakable(text), wav=fresh) for part in shlex.split(command)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    pcm = read_wav(fresh)
    pcm = pcm[: len(pcm) // HOP * HOP]
    loud = np.flatnonzero(np.abs(pcm.reshape(-1, HOP).astype(np.float32)).max(1) > 250)
    if len(loud):
        pcm = pcm[max(0, loud[0] - 2) * HOP: (loud[-1] + 4) * HOP]
    write_wav(fresh, pcm)
    os.replace(fresh, path)


def record(args, rows, folder):
    """Recordings of the rows, numbered, in a folder; those that are there are kept."""
    os.makedirs(folder, exist_ok=True)
    wanted = [(os.path.join(folder, f"{i:05d}.wav"), text) for i, (_, _, text) in enumerate(rows)]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(speak, args.speaker, text, path) for path, text in wanted if not os.path.exists(path)]
        for job in jobs:
            job.result()


def units_of(args, folder, out):
    """Units of the recordings of a folder, in their order: (units without repetition, frames of each)."""
    subprocess.run([args.im2sp, "units", folder, "--cepstra=frame", "--kmeans", args.centres, "--change-price",
                    str(args.price), "-o", out], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = {}
    with open(out) as f:
        for line in f:
            row = json.loads(line)
            runs = [(unit, len(list(same))) for unit, same in itertools.groupby(map(int, row["hubert"].split()))]
            found[int(os.path.splitext(os.path.basename(row["audio"]))[0])] = runs
    os.remove(out)
    return found


def chunk(args, rows, number):
    """Speaks 500 captions and writes their units."""
    path = os.path.join(args.work, "speech", "chunks", f"{number:04d}.jsonl")
    if os.path.exists(path):
        return
    kept = number * CHUNK < args.keep
    folder = os.path.join(args.work, "speech", "recordings" if kept else "now", f"{number:04d}")
    record(args, rows, folder)
    found = units_of(args, folder, path + ".units.jsonl")
    with open(path + ".part", "w") as f:
        for i, (name, caption, text) in enumerate(rows):
            if i in found:
                units, frames = zip(*found[i])
                f.write(json.dumps({"key": f"{name}#{caption}", "number": i, "text": text, "units": units,
                                    "frames": frames}) + "\n")
    os.replace(path + ".part", path)
    if not kept:
        shutil.rmtree(folder)


def bounds(parts):
    return np.cumsum([0, *map(len, parts)])


def pack(folder, count):
    """The recordings that were kept, in the form that the vocoder's training reads."""
    texts, units, durations, audio = [], [], [], []
    for number in range(-(-count // CHUNK)):
        with open(os.path.join(folder, "chunks", f"{number:04d}.jsonl")) as f:
            rows = {row["key"]: row for row in map(json.loads, f)}
        for row in rows.values():
            pcm = read_wav(os.path.join(folder, "recordings", f"{number:04d}", f"{row['number']:05d}.wav"))
            texts.append(row["text"])
            units.append(np.array(row["units"]))
            durations.append(np.array(row["frames"]))
            audio.append(pcm[: HOP * sum(row["frames"])])
    np.save(os.path.join(folder, "audio.npy"), np.concatenate(audio))
    np.save(os.path.join(folder, "sample_bounds.npy"), bounds(audio))
    with open(os.path.join(folder, "captions.json"), "w") as f:
        json.dump(texts, f)
    np.savez(os.path.join(folder, "units.npz"), units=np.concatenate(units), durations=np.concatenate(durations),
             unit_bounds=bounds(units))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--tokens", required=True, help="Flickr8k.token.txt")
    ap.add_argument("--lists", nargs="+", required=True, help="names of pictures, one a line")
    ap.add_argument("--captions", type=int, default=5, help="of each picture")
    ap.add_argument("--keep", type=int, default=4000, help="recordings that are kept; the centres are found on them")
    ap.add_argument("--clusters", type=int, default=200)
    ap.add_argument("--price", type=float, default=PRICE)
    ap.add_argument("--speaker", default=SPEAKER, help=f"default: {SPEAKER}")
    ap.add_argument("--im2sp", default="im2sp")
    ap.add_argument("--jobs", type=int, default=os.cpu_count())
    args = ap.parse_args()

    folder = os.path.join(args.work, "speech")
    os.makedirs(os.path.join(folder, "chunks"), exist_ok=True)
    listed = set().union(*map(read_list, args.lists))
    rows = [row for row in read_captions(args.tokens) if row[0] in listed and row[1] < args.captions]
    rng = np.random.default_rng(1)
    order = rng.permutation(len(rows))
    rows = sorted((rows[i] for i in order), key=lambda row: row[1])
    chunks = [rows[at: at + CHUNK] for at in range(0, len(rows), CHUNK)]

    args.centres = os.path.join(folder, "centres.npy")
    if not os.path.exists(args.centres):
        kept = range(min(len(chunks), -(-args.keep // CHUNK)))
        for number in kept:
            record(args, chunks[number], os.path.join(folder, "recordings", f"{number:04d}"))
        subprocess.run([args.im2sp, "kmeans", os.path.join(folder, "recordings"), "--cepstra=frame", "--clusters",
                        str(args.clusters), "--max-frames", "300000", "-o", args.centres], check=True)
    for number, part in enumerate(chunks):
        chunk(args, part, number)
        if (number + 1) * CHUNK >= min(args.keep, len(rows)) and not os.path.exists(os.path.join(folder, "units.npz")):
            pack(folder, min(args.keep, len(rows)))
        print(f"{min((number + 1) * CHUNK, len(rows))} of {len(rows)} captions", flush=True)


if __name__ == "__main__":
    main()
