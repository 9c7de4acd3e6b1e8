"""What a stream costs: the program with and without --stream, taking turns, from its start to its end.

    python benches/peers/stream_cost.py target/release/im2sp [--runs 60] [--weights DIR]

Medians of wall and of processor time, and their ratios. Run it on an idle machine. Standard library only.
"""
import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time

PICTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "assets", "scene.png")


def run(command):
    """Milliseconds of wall and processor time."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * wall, 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("im2sp", help="path of the program")
    ap.add_argument("--runs", type=int, default=60)
    ap.add_argument("--weights", help="model directory; without it the embedded model speaks")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [args.im2sp, "caption", PICTURE, "--device", "cpu", "-o", os.path.join(folder, "speech.wav")]
        command += ["--weights", args.weights] if args.weights else []
        whole, streamed = zip(*((run(command), run([*command, "--stream"])) for _ in range(args.runs)))
    for name, a, b in zip(("wall", "processor"), zip(*whole), zip(*streamed)):
        a, b = statistics.median(a), statistics.median(b)
        print(f"{name}: whole {a:.1f} ms, streamed {b:.1f} ms, {b / a:.3f} times")


if __name__ == "__main__":
    main()
