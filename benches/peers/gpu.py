"""What a GPU does for im2sp, beside what it does for the same machine's PyTorch.

    python gpu.py --doctor doctor.json [--bench bench-*.json] --json results.json

Operations: those of `im2sp doctor` beside cuBLASLt, scaled_dot_product_attention and layer_norm, on the shapes that the
doctor timed, with events and inputs that change places beyond the caches. The path from pixels to samples: `im2sp bench`
beside the reference pipeline (transformers and the PyTorch vocoder, torch_side.py), if transformers is installed. Prints
tables of medians and their ratios.
"""
import argparse
import importlib.util
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

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


# Rows of `im2sp bench` that together are a stage of torch_side.py.
STAGES = {
    "vision": ("vision",),
    "decode": ("prefill", "all units"),
    "vocoder": ("vocoder",),
    "whole": ("picture to samples",),
}
FORMS = ("f32", "bf16", "bf16+compile")


def pipelines(bench):
    """{form: {stage: [ms] or what went wrong}} of the reference pipeline, for as many units as the bench had."""
    if not importlib.util.find_spec("transformers"):
        print("transformers is not installed: the reference pipeline was not measured", file=sys.stderr)
        return {}
    side = Path(__file__).resolve().parent / "torch_side.py"
    command = [sys.executable, side, "random", "--device", "cuda", "--units", str(bench["units"])]
    asked = [(form, stage) for form in FORMS for stage in STAGES] + [("bf16", "static")]
    lines = "".join(f"{stage} {form} {5 if stage in ('decode', 'whole') else 20}\n" for form, stage in asked)
    answer = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True)
    times = {}
    for (form, stage), line in zip(asked, answer.stdout.splitlines()):
        found = json.loads(line)
        times.setdefault(form, {})[stage] = found.get("ms") or found["problem"]
    return times


def print_pipelines(benches, theirs):
    for bench in benches:
        print(f"\n{bench['device']}, {bench['dtype']}, {bench['units']} units, milliseconds")
        rows = {row["stage"]: row["median"] for row in bench["rows"]}
        for stage, parts in STAGES.items():
            ours = sum(rows[part] for part in parts)
            line = f"  {stage:<10} im2sp {ours:>9.3f}"
            for form, stages in theirs.items():
                found = stages.get(stage)
                if isinstance(found, list):
                    median = statistics.median(found)
                    line += f"   PyTorch {form} {median:>9.3f} ({median / ours:.1f}x)"
                elif found:
                    line += f"   PyTorch {form}: {found}"
            print(line)


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
    benches = [json.load(open(path)) for path in args.bench]
    theirs = pipelines(benches[0]) if benches else {}
    result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "doctor": doctor, "beside": rows,
              "bench": benches, "pipelines": theirs}
    with open(args.json, "w") as f:
        json.dump(result, f, indent=1)
    print(f"{'operation':<12} {'type':<5} {'case':<44} {'ours us':>9} {'PyTorch us':>11} {'ratio':>6} {'share':>6}")
    for r in rows:
        share = f"{100 * r['share']:.0f} %" if r["share"] else "-"
        print(f"{r['op']:<12} {r['dtype']:<5} {r['case']:<44} {r['microseconds']:>9.1f} {r['pytorch_us']:>11.1f} "
              f"{r['ratio']:>6.2f} {share:>6}")
    print_pipelines(benches, theirs)


if __name__ == "__main__":
    main()
