"""im2sp and PyTorch on the same GPU: what im2sp measured, and the same work by this machine's PyTorch.

    python gpu.py --doctor doctor-*.jsonl --timing timing.jsonl --bench bench-*.json --bulk bulk.json --out FOLDER

Operations: those of `im2sp doctor` and PyTorch's (cuBLAS, scaled_dot_product_attention, cuDNN) at the same shapes, both
with a cold L2 and by the device's clock. One caption: `im2sp bench` and transformers' GIT with a PyTorch vocoder
(torch_side.py), for as many units and as much sound. Writes FOLDER/results.json anew after every measurement, in the form
that benches/report.py reads; what cannot be read or measured is named under `problems` and costs nothing else.

    python gpu.py --finish STEPS --out FOLDER         adds the outcomes of gpu-check.sh's steps to results.json
    python gpu.py --device cpu --tiny ...             goes through all of it with small shapes, without a GPU
"""
import argparse
import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cases

HERE = Path(__file__).resolve().parent
REPEATS = 30
# Stage, form and repetitions of torch_side.py, the most valuable first.
REQUESTS = [
    ("vision", "bf16+sdpa+static+graph", 20),
    ("units", "bf16+sdpa+static+graph", 10),
    ("vocoder", "bf16+sdpa+static+graph", 20),
    ("whole", "bf16+sdpa+static+graph", 10),
    ("vision", "bf16", 20),
    ("units", "bf16", 3),
    ("vocoder", "bf16", 20),
    ("whole", "bf16", 3),
    ("vision", "bf16+compile+static+graph", 20),
    ("units", "bf16+compile+static+graph", 10),
    ("vocoder", "bf16+compile+static+graph", 20),
    ("whole", "bf16+compile+static+graph", 10),
    ("vision", "f32", 20),
    ("units", "f32", 3),
    ("vocoder", "f32", 20),
    ("whole", "f32", 3),
    ("units", "f32+nocache", 2),
    ("units:64", "bf16+sdpa+static+graph", 3),
    ("units:128", "bf16+sdpa+static+graph", 3),
    ("vision:64", "bf16+sdpa+static+graph", 5),
    ("vision", "bf16+autocast", 20),
    ("units", "bf16+autocast", 3),
    ("vision", "f32+sdpa+static+graph", 20),
    ("units", "f32+sdpa+static+graph", 5),
    ("whole", "f32+sdpa+static+graph", 5),
    ("units:64", "bf16", 2),
]
TINY_REQUESTS = [
    ("vision", "bf16+sdpa+graph", 1),
    ("units", "f32+sdpa+static+graph", 1),
    ("whole", "bf16+sdpa+static+graph", 1),
    ("units:2", "f32+nocache", 1),
    ("vision", "no such form", 1),
]


class Results:
    """results.json, whole on the disk after every change."""

    def __init__(self, folder, arguments):
        self.path = Path(folder) / "results.json"
        head, outcomes = cases.doctor(arguments.doctor)
        timed_head, self.cases = cases.doctor(arguments.timing)
        facts = timed_head.get("device") or head.get("device") or {}
        benches, bulk, ends = cases.bench(arguments.bench), cases.bulk(arguments.bulk), cases.ends(arguments.ends)
        timed = [case for case in self.cases if case.get("microseconds")]
        self.all = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": facts.get("commit") or next((report["commit"] for report in benches), "unknown"),
            "machine": machine(facts),
            "device": facts.get("name") or next((report["device"] for report in benches), "unknown"),
            "commands": {
                "bench": "im2sp bench --random --device cuda --dtype DTYPE --units N --json",
                "bulk": "im2sp bench --random --device cuda --dtype bf16 --units N --in-flight N --json",
                "ends": "python ends.py recordings|tokenize|evaluate FOLDER",
                "operations": "im2sp doctor --timing-only --json",
                "script": "bash gpu-check.sh",
            },
            "remarks": {
                "pytorch_operations": "PyTorch at the same shapes, cold L2, between CUDA events, the faster of calls and CUDA graph replay; medians.",
                "pytorch_pipeline": "transformers GIT-large and the PyTorch vocoder, random weights, as many units and as much sound as im2sp, pixels already on the device; medians.",
            },
            "conformance": {
                "cases": sum("skipped" not in case for case in outcomes),
                "failed": sum(not case.get("passed") for case in outcomes),
                "operations": len({case["op"] for case in outcomes}),
            },
            "peaks": timed_head.get("peaks"),
            "bench": benches,
            "bulk": bulk,
            "ends": ends,
            "operations": [operation(case) for case in timed],
            "pytorch_operations": [],
            "pytorch_pipeline": [],
            "problems": [],
        }
        if arguments.tiny:
            self.all["tiny"] = True
        sources = [("doctor", arguments.doctor, outcomes), ("timing", arguments.timing, timed), ("bench", arguments.bench, benches)]
        sources.append(("bulk", arguments.bulk, bulk))
        for what, paths, read in sources:
            for path in paths:
                if not cases.read(path):
                    self.all["problems"].append(f"{what}: {path} is empty or cannot be read")
            if paths and not read:
                self.all["problems"].append(f"{what}: nothing was measured")
        self.write()

    def add(self, section, row):
        self.all[section].append(row)
        self.write()

    def write(self):
        write(self.path, self.all)


def operation(case):
    names = {"op": "op", "dtype": "dtype", "case": "case", "microseconds": "us", "flops": "flops", "bytes": "bytes", "share": "share"}
    return {short: case.get(name) for name, short in names.items()}


def machine(facts):
    """The GPU in words: from doctor, and from nvidia-smi where it answers."""
    said = facts.get("name", "unknown GPU")
    if facts.get("multiprocessors"):
        said += f" ({facts['multiprocessors']} SMs, {facts.get('l2', 0) / 2**20:.0f} MB L2)"
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
        driver, clock = answer.split(", ")
        return f"{said}, driver {driver}, at most {clock}"
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return said


class Clock:
    """Median microseconds of a function, with a cold L2, without the time of dispatch."""

    def __init__(self, torch, device):
        self.torch, self.device = torch, device
        if device == "cuda":
            l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 128 << 20
            # Overwriting it leaves nothing else in the L2, and takes so long that the launches are waiting when it ends.
            self.flush = torch.empty(2 * l2 // 4, device=device)

    def behind_flush(self, run):
        event = lambda: self.torch.cuda.Event(enable_timing=True)
        times = []
        for _ in range(REPEATS):
            start, end = event(), event()
            self.flush.zero_()
            start.record()
            run()
            end.record()
            times.append((start, end))
        self.torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in times) * 1e3

    def median(self, run):
        """(microseconds, how): the faster of plain calls and a CUDA graph."""
        run()
        if self.device != "cuda":
            times = []
            for _ in range(3):
                clock = time.perf_counter()
                run()
                times.append((time.perf_counter() - clock) * 1e6)
            return statistics.median(times), "calls"
        import cuda_graph

        found = [(self.behind_flush(run), "calls")]
        try:
            found.append((self.behind_flush(cuda_graph.recorded(run, self.device)), "CUDA graph"))
        except RuntimeError:  # an operation that cannot be recorded
            self.torch.cuda.synchronize()
        return min(found)


def peer(torch, op, shape, dtype, device):
    """PyTorch's counterpart of a case, as a function without arguments."""
    from torch.nn import functional as F

    rand = lambda *size: torch.rand(size, device=device, dtype=torch.float32).mul_(2).sub_(1).to(dtype)
    s = shape
    if op in ("linear", "linear_step", "linear_decode"):
        x, weight, bias = rand(s["rows"], s["depth"]), rand(s["columns"], s["depth"]), rand(s["columns"])
        return lambda: F.linear(x, weight, bias)
    if op == "layer_norm":
        x, weight, bias = rand(s["rows"], s["channels"]), rand(s["channels"]), rand(s["channels"])
        return lambda: F.layer_norm(x, (s["channels"],), weight, bias)
    if op == "attention":
        q, k, v = (rand(s["batch"], s["heads"], s["tokens"], s["head"]) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v)
    if op == "conv1d":
        x, weight, bias = rand(1, s["inputs"], s["frames"]), rand(s["outputs"], s["inputs"], s["taps"]), rand(s["outputs"])
        padding = (s["taps"] - 1) * s["dilation"] // 2
        return lambda: F.conv1d(x, weight, bias, padding=padding, dilation=s["dilation"])
    if op == "conv_transpose1d":
        x, weight, bias = rand(1, s["inputs"], s["frames"]), rand(s["inputs"], s["outputs"], s["taps"]), rand(s["outputs"])
        padding = (s["taps"] - s["stride"]) // 2
        return lambda: F.conv_transpose1d(x, weight, bias, stride=s["stride"], padding=padding)
    if op == "patch_embed":
        x, weight = rand(s["batch"], 3, s["side"], s["side"]), rand(s["channels"], 3, s["patch"], s["patch"])
        return lambda: F.conv2d(x, weight, stride=s["patch"])
    return None


def operations(results, arguments, deadline):
    """PyTorch's time of every shape that im2sp timed."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    clock, seen = Clock(torch, arguments.device), set()
    timed = [case for case in results.cases if case.get("microseconds") and (case.get("flops") or 0) >= (0 if arguments.tiny else 1e6)]
    for case in sorted(timed, key=lambda case: (case["dtype"] != "bf16", -case["flops"])):
        shape = cases.shape(case["op"], case["case"])
        key = (case["op"], case["dtype"], *(shape or {}).items())
        if not shape or key in seen:
            continue
        seen.add(key)
        if time.monotonic() > deadline:
            results.add("problems", "operations: out of time, the smaller ones were not measured")
            return
        small = {name: min(size, 16) for name, size in shape.items()} if arguments.tiny else shape
        row = {"op": case["op"], "dtype": case["dtype"], "shape": shape}
        try:
            with torch.inference_mode():
                run = peer(torch, case["op"], small, torch.bfloat16 if case["dtype"] == "bf16" else torch.float32, arguments.device)
                row["us"], row["how"] = clock.median(run)
        except Exception as error:
            row["problem"] = first_line(error)
        results.add("pytorch_operations", row)
        if "illegal" in row.get("problem", "") or "device-side assert" in row.get("problem", ""):
            raise RuntimeError(f"the GPU is lost: {row['problem']}")


class Side:
    """The process of torch_side.py, started again where it ended or hangs."""

    def __init__(self, arguments, units, frames):
        size = "tiny" if arguments.tiny else "random"
        self.command = [sys.executable, str(HERE / "torch_side.py"), size, "--device", arguments.device]
        self.command += ["--units", str(units), "--frames", str(frames)]
        self.process = None

    def ask(self, request, limit):
        """The answer to a request, within `limit` seconds."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.process.stdin.write(f"{request}\n".encode())
            self.process.stdin.flush()
        except OSError:
            self.end()
            return {"problem": "PyTorch's process ended"}
        line, end = b"", time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0, end - time.monotonic())):
                    self.end()
                    return {"problem": f"no answer within {limit:.0f} s"}
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    self.end()
                    return {"problem": "PyTorch's process ended"}
                line += part
        try:
            return json.loads(line)
        except ValueError:
            return {"problem": f"not understood: {line[:100]!r}"}

    def end(self):
        if self.process:
            self.process.kill()
            self.process.stdout.close()
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.wait()
            self.process = None


def pipeline(results, arguments, deadline):
    """One caption and batches of them, by transformers and the PyTorch vocoder."""
    report = next((report for report in results.all["bench"] if report["dtype"] == "bf16"), None)
    report = report or next(iter(results.all["bench"]), {"units": 100, "seconds": 2.5})
    units, frames = (8, 12) if arguments.tiny else (report["units"], cases.frames(report))
    side = Side(arguments, units, frames)
    try:
        for request in TINY_REQUESTS if arguments.tiny else REQUESTS:
            left = deadline - time.monotonic()
            if left < 1:
                results.add("problems", f"pipeline: out of time, not measured from {' '.join(map(str, request))} on")
                return
            stage, form, repeat = request
            stage, _, batch = stage.partition(":")
            row = {"stage": stage, "form": form, "batch": int(batch or 1), "units": units}
            if stage in ("vocoder", "whole"):
                row["seconds"] = frames * 320 / 16000
            answer = side.ask(" ".join(map(str, request)), min(left, 90))
            if "ms" in answer:
                row["ms"] = [round(ms, 4) for ms in answer["ms"]]
            else:
                row["problem"] = str(answer.get("problem"))
            results.add("pytorch_pipeline", row)
    finally:
        side.end()


def versions():
    import torch

    found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        import transformers

        found["transformers"] = transformers.__version__
    except ImportError:
        found["transformers"] = None
    return found


def finish(steps, out):
    """Adds what gpu-check.sh did after the comparison, the sanitizers above all."""
    path = Path(out) / "results.json"
    everything = next(iter(cases.read(path)), {})
    everything["steps"] = cases.read(steps)
    found = {}
    for step in everything["steps"]:
        tool, _, op = str(step.get("step")).partition("-")
        if tool in ("memcheck", "initcheck", "synccheck", "racecheck"):
            status = "no errors" if step["status"] == "passed" else step["status"]
            found.setdefault(tool, {}).setdefault(status, []).append(op)
    said = lambda by: ", ".join(f"{status} ({len(ops)} operations)" if all(ops) else status for status, ops in by.items())
    everything.setdefault("conformance", {})["sanitizers"] = {tool: said(by) for tool, by in found.items()}
    write(path, everything)


def write(path, everything):
    """Writes a result whole, or not at all."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(everything, indent=1) + "\n")
    os.replace(fresh, path)


def first_line(error):
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def table(everything):
    """Both sides, for people."""
    lines = [f"{'operation':<17} {'type':<5} {'case':<44} {'im2sp us':>9} {'PyTorch us':>11} {'PyTorch/im2sp':>13}"]
    theirs = {(row["op"], row["dtype"], *row["shape"].items()): row for row in everything["pytorch_operations"] if row.get("us")}
    for case in everything["operations"]:
        shape = cases.shape(case["op"], case["case"])
        row = theirs.get((case["op"], case["dtype"], *(shape or {"": 0}).items()))
        if row:
            lines.append(f"{case['op']:<17} {case['dtype']:<5} {case['case']:<44} {case['us']:>9.1f} {row['us']:>11.1f} {row['us'] / case['us']:>13.2f}")
    for report in everything["bench"]:
        rows = {row["stage"]: row["median"] for row in report["rows"]}
        lines.append(f"\nim2sp {report['dtype']}, {report['units']} units, {report['seconds']:.2f} s of sound, milliseconds")
        lines += [f"  {stage:<10} {sum(rows[part] for part in parts):>9.3f}" for stage, parts in cases.STAGES.items()]
    lines.append("\nPyTorch, milliseconds")
    for row in everything["pytorch_pipeline"]:
        said = f"{statistics.median(row['ms']):>9.3f}" if "ms" in row else row["problem"]
        lines.append(f"  {row['stage'] + (':' + str(row['batch']) if row['batch'] > 1 else ''):<10} {row['form']:<28} {said}")
    return "\n".join(lines + ["", *everything["problems"]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--doctor", nargs="*", default=[], help="reports of `im2sp doctor --no-timing --json`")
    parser.add_argument("--timing", nargs="*", default=[], help="reports of `im2sp doctor --timing-only --json`")
    parser.add_argument("--bench", nargs="*", default=[], help="reports of `im2sp bench --json`")
    parser.add_argument("--bulk", nargs="*", default=[], help="reports of `im2sp bench --in-flight N --json`")
    parser.add_argument("--ends", nargs="*", default=[], help="reports of `ends.py recordings`, `tokenize` and `evaluate`")
    parser.add_argument("--out", required=True, help="folder for results.json")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--finish", metavar="STEPS", help="steps.jsonl of gpu-check.sh")
    arguments = parser.parse_args()
    if arguments.finish:
        finish(arguments.finish, arguments.out)
        return
    start = time.monotonic()
    # Whoever ends this process wants the table of what there is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    results = Results(arguments.out, arguments)
    sections = [(operations, 0.4), (pipeline, 1.0)]
    try:
        results.all["versions"] = versions()
        for section, share in sections:
            try:
                section(results, arguments, start + share * arguments.seconds)
            except Exception as error:
                results.add("problems", f"{section.__name__}: {first_line(error)}")
    except ImportError as error:
        results.add("problems", f"not compared: PyTorch is not installed ({error})")
    finally:
        results.write()
        print(table(results.all))


if __name__ == "__main__":
    main()
