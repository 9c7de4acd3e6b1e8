"""Both sides on one picture at the published size: equal tokens, equal sound, or exit code 1.

    python recipes/golden/compare_full_size.py --full DIR --ours DIR/im2sp --im2sp target/release/im2sp [--image PNG]

DIR is made by full_size.py, best with --eos-bias 3 so that captions end; captions end at --max-units otherwise. Runs
greedy and beam search on both sides, then compares the wav of the greedy caption. PyTorch's greedy caption comes with
the smallest distance between its best and second-best logit: a mismatch where that is below 1e-4 is a tie.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import pipeline
from captioners import BOS, EOS


@torch.inference_mode()
def closest(model, pixels, tokens):
    """The smallest distance between the best two logits along a greedy caption."""
    logits = model(pixel_values=pixels, input_ids=torch.tensor([[BOS] + tokens[:-1]]), use_cache=False).logits
    best = logits[0, -len(tokens) :].topk(2).values
    return (best[:, 0] - best[:, 1]).min().item()


def ours(arguments, beams, wav):
    """(tokens after BOS, cut at EOS; the JSON report)"""
    command = [arguments.im2sp, "caption", arguments.image, "--weights", arguments.ours, "--json", "--device", "cpu"]
    command += ["--beam", str(beams), "--max-units", str(arguments.max_units)]
    command += ["-o", wav] if wav else ["--no-audio"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(answer.stdout)
    tokens = report["tokens"]
    tokens = tokens[1:] if tokens[:1] == [BOS] else tokens
    return (tokens[: tokens.index(EOS)] if EOS in tokens else tokens), report


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", required=True)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--im2sp", required=True)
    parser.add_argument("--image", help="any picture; the folder's photo.png by default")
    parser.add_argument("--beams", default="1,3,5")
    parser.add_argument("--max-units", type=int, default=24)
    parser.add_argument("--tolerance", type=float, default=2e-3, help="largest difference of two samples")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.image = arguments.image or str(Path(arguments.full) / "photo.png")
    torch.set_num_threads(arguments.threads)

    model = pipeline.load_captioner(arguments.full, best=True)
    pixels = pipeline.preprocess(arguments.image)
    failed = False
    print("| what | PyTorch | im2sp | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        wav = str(Path(folder) / "ours.wav")
        for beams in map(int, arguments.beams.split(",")):
            theirs = pipeline.generate(model, pixels, arguments.max_units, beams)
            mine, _ = ours(arguments, beams, wav if beams == 1 else None)
            agree = sum(a == b for a, b in zip(theirs, mine))
            verdict = "same" if theirs == mine else f"DIFFERENT: {agree} of {len(theirs)} agree"
            if beams == 1 and theirs:
                verdict += f"; closest logits {closest(model, pixels, theirs):.1e} apart"
            failed |= theirs != mine
            print(f"| tokens, {beams} beam(s) | {theirs} | {mine} | {verdict} |")
            if beams == 1 and theirs:
                vocoder = pipeline.load_vocoder(arguments.full, best=True)
                samples = pipeline.speak(vocoder, pipeline.spoken_units(theirs)).double().numpy()
                read = pipeline.read_wav(wav)
                if len(read) != len(samples):
                    failed, verdict = True, "DIFFERENT length"
                else:
                    # A file's sample lies up to 1/32768 below the one it was made from.
                    error = np.abs(np.clip(np.floor(samples * 32768), -32768, 32767) / 32768 - read).max()
                    failed |= not error <= arguments.tolerance
                    verdict = f"largest difference {error:.1e}, peak {np.abs(samples).max():.2f}"
                print(f"| samples | {len(samples)} | {len(read)} | {verdict} |")
    print("FAILED" if failed else "passed", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
