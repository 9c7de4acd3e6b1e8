"""Images a second and core: JPEG to normalised pixels by im2sp and by torchvision, taking turns on one core.

    cargo build --release --example data_loading
    taskset -c 0 python benches/peers/data_loading.py FOLDER [--size 224] [--rounds 9]

Both sides decode the JPEG files of FOLDER, which are in memory, resize the short side with the antialiased bicubic filter,
keep the centre and normalise, each on one thread. torchvision has two turns: with its transforms, and with the operators of
PyTorch that these come down to. Time is that which the thread ran, so other work on the machine counts little. Prints one
JSON object: images a second of each side, and how often im2sp's rate is the faster one's of torchvision, each the lowest, the
median and the highest of the rounds.
"""
import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torchvision
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.2613026, 0.2757771]
FACTOR = (1 / 255 / torch.tensor(STD)).view(3, 1, 1)
SUMMAND = (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)
PROGRAM = Path(__file__).resolve().parents[2] / "target" / "release" / "examples" / "data_loading"


def with_transforms(image, size):
    image = F.resize(image, [size], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    image = F.center_crop(image, [size, size])
    F.normalize(F.to_dtype(image, torch.float32, scale=True), MEAN, STD)


def with_operators(image, size):
    """The operators that the transforms come down to, and scale, mean and deviation in two of them."""
    height, width = image.shape[1:]
    short = min(height, width)
    if short != size:
        height, width = size * height // short, size * width // short
        image = interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    top, left = (height - size) // 2, (width - size) // 2
    image[:, top : top + size, left : left + size].contiguous().float().mul_(FACTOR).add_(SUMMAND)


def of_torchvision(files, size, preprocess):
    start = time.thread_time()
    for data in files:
        preprocess(decode_jpeg(data, mode=ImageReadMode.RGB), size)
    return len(files) / (time.thread_time() - start)


def of_im2sp(program):
    line = json.loads(program.stdout.readline())
    return line["images"] / line["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--program", type=Path, default=PROGRAM, help="the other side")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(arguments.folder.glob("*.jp*g"))
    files = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    command = [arguments.program, arguments.folder, str(arguments.size), str(arguments.rounds + 1)]
    rates = {"im2sp": [], "transforms": [], "operators": []}
    # All warm up with a round; the program waits, stopped, while the others have their turns.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        for turn in range(arguments.rounds + 1):
            program.stdin.write("\n")
            program.stdin.flush()
            rate = {"im2sp": of_im2sp(program)}
            rate["transforms"] = of_torchvision(files, arguments.size, with_transforms)
            rate["operators"] = of_torchvision(files, arguments.size, with_operators)
            for side in rates if turn > 0 else []:
                rates[side].append(rate[side])
    ratios = [ours / max(theirs) for ours, *theirs in zip(*rates.values())]
    report = {
        "folder": arguments.folder.name, "images": len(files), "size": arguments.size,
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "images_per_second": {side: spread(values, 0) for side, values in rates.items()}, "ratio": spread(ratios, 2),
    }
    print(json.dumps(report))


def spread(values, digits):
    return [round(value, digits) for value in (min(values), statistics.median(values), max(values))]


if __name__ == "__main__":
    main()
