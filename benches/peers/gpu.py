"""Operations of `im2sp doctor` beside the same machine's PyTorch (cuBLASLt, scaled_dot_product_attention, layer_norm).

    python gpu.py --doctor doctor.json [--bench bench-*.json] --json results.json

Times PyTorch on the shapes that the doctor timed, with events and inputs that change places beyond the caches, and prints
one table: microseconds of both, medians, and their ratio.
"""
import argparse
import json
import re
import statistics

import torch
from torch.nn import functional as F

REPEATS = 30


def median_us(make, run):
    """Median microseconds of `run` over rotating inputs."""
    inputs = [make() for _ in range(4)]
    for x in inputs:
        run(*x)
    times = []
    for i in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(*inputs[i % len(inputs)])
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def rand(*shape, dtype):
    return torch.rand(shape, device="cuda", dtype=torch.float32).mul_(2).sub_(1).to(dtype)


def linear(case, dtype):
    m, n, k = map(int, re.match(r"(\d+)x(\d+)x(\d+)", case).groups())
    weight, bias = rand(n, k, dtype=dtype), rand(n, dtype=dtype)
    return median_us(lambda: (rand(m, k, dtype=dtype),), lambda x: F.linear(x, weight, bias))


def layer_norm(case, dtype):
    m, c = map(int, re.match(r"(\d+)x(\d+)", case).groups())
    weight, bias = rand(c, dtype=dtype), rand(c, dtype=dtype)
    return median_us(lambda: (rand(m, c, dtype=dtype),), lambda x: F.layer_norm(x, (c,), weight, bias))


def attention(case, dtype):
    b, t, h, d = map(int, re.match(r"(\d+)x(\d+)x(\d+)x(\d+)", case).groups())
    if f"after {t} " not in case:
        return None
    return median_us(lambda: tuple(rand(b, h, t, d, dtype=dtype) for _ in range(3)), F.scaled_dot_product_attention)


PEERS = {"linear": linear, "linear_step": linear, "layer_norm": layer_norm, "attention": attention}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--doctor", required=True)
    ap.add_argument("--bench", nargs="*", default=[])
    ap.add_argument("--json", required=True)
    args = ap.parse_args()
    # True f32, as ours.
    torch.backends.cuda.matmul.allow_tf32 = False
    doctor = json.load(open(args.doctor))
    rows = []
    for case in doctor["cases"]:
        peer = PEERS.get(case["op"])
        if not peer or not case["microseconds"] or case["flops"] < 1e6 or "whole" in case["case"]:
            continue
        theirs = peer(case["case"], torch.bfloat16 if case["dtype"] == "bf16" else torch.float32)
        if theirs:
            rows.append({**case, "pytorch_us": theirs, "ratio": theirs / case["microseconds"]})
    result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "doctor": doctor, "beside": rows,
              "bench": [json.load(open(path)) for path in args.bench]}
    with open(args.json, "w") as f:
        json.dump(result, f, indent=1)
    print(f"{'operation':<12} {'type':<5} {'case':<44} {'ours us':>9} {'PyTorch us':>11} {'ratio':>6} {'share':>6}")
    for r in rows:
        share = f"{100 * r['share']:.0f} %" if r["share"] else "-"
        print(f"{r['op']:<12} {r['dtype']:<5} {r['case']:<44} {r['microseconds']:>9.1f} {r['pytorch_us']:>11.1f} "
              f"{r['ratio']:>6.2f} {share:>6}")
    for bench in result["bench"]:
        print(f"\n{bench['device']}, {bench['dtype']}, {bench['units']} units")
        for row in bench["rows"]:
            print(f"  {row['stage']:<20} {row['median']:>9.3f} ms")


if __name__ == "__main__":
    main()
