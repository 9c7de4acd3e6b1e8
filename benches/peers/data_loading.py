"""Images a second and core: JPEG to normalised pixels by im2sp and by torchvision, taking turns on one core.

    cargo build --release --example data_loading
    taskset -c 0 python benches/peers/data_loading.py FOLDER [--size 224] [--rounds 9]

Both sides decode the JPEG files of FOLDER, which are in memory, resize the short side with the antialiased bicubic filter,
keep the centre and normalise, each on one thread. Time is that which the thread ran, so other work on the machine counts
little. Prints one JSON object: images a second of each round, their medians, and the median ratio.
"""
import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torchvision
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.2613026, 0.2757771]
PROGRAM = Path(__file__).resolve().parents[2] / "target" / "release" / "examples" / "data_loading"


def of_torchvision(files, size):
    start = time.thread_time()
    for data in files:
        image = decode_jpeg(data, mode=ImageReadMode.RGB)
        image = F.resize(image, [size], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
        image = F.center_crop(image, [size, size])
        F.normalize(F.to_dtype(image, torch.float32, scale=True), MEAN, STD)
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
    rates = {"im2sp": [], "torchvision": []}
    # Both warm up with a round; then the program waits, stopped, while the other side has its turn.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        for turn in range(arguments.rounds + 1):
            program.stdin.write("\n")
            program.stdin.flush()
            pair = of_im2sp(program), of_torchvision(files, arguments.size)
            if turn > 0:
                rates["im2sp"].append(pair[0])
                rates["torchvision"].append(pair[1])
    ratios = [ours / theirs for ours, theirs in zip(rates["im2sp"], rates["torchvision"])]
    report = {
        "folder": arguments.folder.name, "images": len(files), "size": arguments.size,
        "torch": torch.__version__, "torchvision": torchvision.__version__, "images_per_second": rates,
        "median": {side: statistics.median(values) for side, values in rates.items()},
        "ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
