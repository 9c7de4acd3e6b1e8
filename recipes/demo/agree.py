"""How many captions stay the same to the last unit when the demo model's decoder is stored in eight bits?

Draws scenes to calibrate with and, from another seed, scenes to judge by; converts the model directory MODEL with and
without --calibrate; and compares the units of both with those of MODEL itself in f32. Needs numpy and Pillow.

    python agree.py --im2sp PATH --weights ../../weights/demo --work DIR [--calibration 1024] [--count 200] [--seed 2027]
"""
import argparse
import glob
import json
import os
import subprocess

import scenes

CALIBRATION_SEED = 9001


def units(im2sp, weights, pictures):
    """Units of every picture, as the model in `weights` says them on the CPU."""
    command = [im2sp, "caption", *pictures, "--no-audio", "--json", "--device", "cpu", "--weights", weights]
    if not os.path.basename(weights).startswith("fp8"):
        command += ["--dtype", "f32"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line)["units"] for line in lines]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--im2sp", required=True, help="path of the Rust program")
    ap.add_argument("--weights", required=True, help="model directory to start from")
    ap.add_argument("--work", required=True)
    ap.add_argument("--calibration", type=int, default=1024, help="scenes to calibrate with")
    ap.add_argument("--count", type=int, default=200, help="scenes to judge by")
    ap.add_argument("--seed", type=int, default=2027, help="of the scenes to judge by")
    args = ap.parse_args()
    if args.seed == CALIBRATION_SEED:
        ap.error(f"seed {CALIBRATION_SEED} draws the calibration scenes")

    known, unseen = (os.path.join(args.work, name) for name in (f"calibration{args.calibration}", f"seed{args.seed}"))
    scenes.save(known, CALIBRATION_SEED, args.calibration)
    scenes.save(unseen, args.seed, args.count)
    pictures = sorted(glob.glob(os.path.join(unseen, "*.png")))[:args.count]
    expected = units(args.im2sp, args.weights, pictures)
    for name, options in ("nearest", []), ("calibrated", ["--calibrate", known]):
        model = os.path.join(args.work, f"fp8-{name}")
        subprocess.run([args.im2sp, "convert", args.weights, "--quantize", "fp8", *options, "--force", "-o", model],
                       check=True, stdout=subprocess.DEVNULL)
        same = sum(a == b for a, b in zip(expected, units(args.im2sp, model, pictures)))
        print(f"{name}: {same} of {len(pictures)} captions keep all their units")


if __name__ == "__main__":
    main()
