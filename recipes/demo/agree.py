"""How many captions stay the same to the last unit when the demo model's decoder is stored in eight bits?

Draws scenes to calibrate with and, from other seeds, scenes to judge by; converts the model directory MODEL to int8, and
to fp8 with and without --calibrate; and compares the units of all with those of MODEL itself in f32. Needs numpy and
Pillow.

    python agree.py --im2sp PATH --weights ../../tests/scenes --work DIR [--calibration 512] [--count 200] [--seeds 2027 ...]
"""
import argparse
import json
import os
import subprocess

import scenes

CALIBRATION_SEED = 9001


def units(im2sp, weights, pictures, *options):
    """Units of every picture, as the model in `weights` says them on the CPU."""
    command = [im2sp, "caption", *pictures, "--no-audio", "--json", "--device", "cpu", "--weights", weights, *options]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line)["units"] for line in lines]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--im2sp", required=True, help="path of the Rust program")
    ap.add_argument("--weights", required=True, help="model directory to start from")
    ap.add_argument("--work", required=True)
    ap.add_argument("--calibration", type=int, default=512, help="scenes to calibrate with")
    ap.add_argument("--count", type=int, default=200, help="scenes of each seed to judge by")
    ap.add_argument("--seeds", type=int, nargs="+", default=[2027], help="of the scenes to judge by")
    args = ap.parse_args()
    if CALIBRATION_SEED in args.seeds:
        ap.error(f"seed {CALIBRATION_SEED} draws the calibration scenes")

    known = os.path.join(args.work, f"calibration{args.calibration}")
    scenes.save(known, CALIBRATION_SEED, args.calibration)
    expected = {}
    for seed in args.seeds:
        folder = os.path.join(args.work, f"seed{seed}")
        names = [os.path.join(folder, name) for name, _, _ in scenes.save(folder, seed, args.count)]
        expected[seed] = names, units(args.im2sp, args.weights, names, "--dtype", "f32")
    forms = {"int8": ["int8"], "fp8-nearest": ["fp8"], "fp8-calibrated": ["fp8", "--calibrate", known]}
    for form, options in forms.items():
        model = os.path.join(args.work, form)
        subprocess.run([args.im2sp, "convert", args.weights, "--quantize", *options, "--force", "-o", model],
                       check=True, stdout=subprocess.DEVNULL)
        same = {seed: sum(a == b for a, b in zip(said, units(args.im2sp, model, names)))
                for seed, (names, said) in expected.items()}
        counts = ", ".join(f"{n} (seed {seed})" for seed, n in same.items())
        print(f"{form}: of {args.count} captions keep all their units {counts}", flush=True)


if __name__ == "__main__":
    main()
