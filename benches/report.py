"""BENCHMARKS.md and the results table of README.md, made from benches/results/*.json.

    python benches/report.py            writes BENCHMARKS.md, and README's table if its two markers are there
    python benches/report.py --check    exit status 1 if either file is not what the results give
    python benches/report.py --readme   prints README's table

Result files are named DATE-QUESTION[-N].json; of each question the newest file counts, and older ones stay as history.
A file with `columns` and `rows` is one table. `cpu-peers` is written by peers/run.py, `gpu` by scripts/gpu-check.sh
(peers/gpu.py). Every file holds `date`, `commit`, `machine` and `command`. Standard library only.
"""
import argparse
import json
import re
import statistics
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
sys.path.insert(0, str(HERE / "peers"))

import cases
import run as peers

BEGIN, END = "<!-- results: begin (python benches/report.py) -->", "<!-- results: end -->"
INTRODUCTION = """# Benchmarks

Made by `python benches/report.py` from the files in [benches/results](benches/results); edit those, not this page. Each
table shows the newest result with its command, machine, commit and date. Machines are virtual and noisy: tables give
medians, in parentheses the minimum and the maximum. Earlier results and what changed between them:
[benches/results/HISTORY.md](benches/results/HISTORY.md).

The *published size* is a 24 x 1024 image encoder at 224 pixels, a 6 x 768 decoder with 203 tokens and a 512-channel
vocoder, with random weights: the published checkpoints were not available. The *embedded model* is the one in the
binary; where a table does not say otherwise, its figures are those of the model of drawn scenes that was in it until
2026-11-27 (now `tests/scenes`, then `weights/demo`).
"""


class Results:
    """The newest file of each question."""

    def __init__(self, folder=RESULTS):
        self.files = {}
        for path in folder.glob("*.json"):
            named = re.fullmatch(r"(\d{4}-\d\d-\d\d)-(.+?)(?:-(\d+))?\.json", path.name)
            if not named:
                raise SystemExit(f"{path}: not named DATE-QUESTION[-N].json")
            date, question, number = named.groups()
            self.files.setdefault(question, []).append((date, int(number or 1), path))

    def newest(self, question, *needed):
        """The newest result of a question that has the `needed` parts, with its file's name as `file`; None if there is none."""
        for _, _, path in sorted(self.files.get(question, []), reverse=True):
            result = json.loads(path.read_text())
            # gpu.py --tiny is a test of the script.
            # Of a GPU the page quotes bf16 everywhere; a step of gpu-check.sh may have run out of time.
            quoted = "bench" not in needed or any(report["dtype"] == "bf16" for report in result.get("bench", ()))
            if quoted and all(result.get(part) for part in needed) and not result.get("tiny"):
                return result | {"file": path.name}
        return None


def link(name):
    return f"[{name}](benches/results/{name})"


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def source(result, part=None):
    """Command, machine, commit, date and file of a table; `part` names one of several commands of a result."""
    command = result.get("commands", {}).get(part) if part else result.get("command")
    where = f"{result['machine']}; commit {result['commit'][:7]}, {result['date']}; {link(result['file'])}."
    said = f"`{command}` on {where}" if command else f"On {where}"
    remark = result.get("remarks", {}).get(part) if part else result.get("remark")
    return f"{said} {remark}" if remark else said


def plain(result):
    """A result that is a table already."""
    return "\n\n".join([table(result["columns"], result["rows"]), source(result), *result.get("notes", ())])


# One caption on a CPU.


def cpu_peers(result):
    used, facts = result["versions"], result["machine"]
    head = (
        f"Both sides take turns in one run, {result['threads']} threads each; {result['rounds']} rounds of {result['repeat']}, "
        f"load {facts['load'][0]:.1f} at the start; torch {used['torch']}, transformers {used['transformers']}. `compile` is "
        "torch.compile on the encoder (with scaled_dot_product_attention), the decoder's layers and the vocoder. transformers' "
        "own static cache does not work with this model (`torch_side.py`, form `f32+library`)."
    )
    stages, cold = peers.tables(result)
    sum_up = "Milliseconds:"
    processes = f"Image to WAV, {peers.UNITS} units, a new process each time, weights in the page cache:"
    facts = result | {"machine": facts["name"], "commit": used["commit"]}
    note = (
        "`best` maps the checkpoint into memory and assigns the weights; `plain` loads it as the reference implementation "
        "does. PyTorch's bf16 forms are slow on this processor because it lacks bf16 instructions; on one that has them "
        "PyTorch's bf16 encoder is faster than im2sp's (HISTORY.md, 2026-11-23)."
    )
    return "\n\n".join([head, sum_up, stages, processes, cold, note, source(facts), MAKE_MODELS])


MAKE_MODELS = """The model directories:

```sh
python recipes/golden/full_size.py --out DIR
im2sp convert DIR/captioner.ckpt --vocoder DIR/g_00950000 -o DIR/im2sp
im2sp convert DIR/captioner.ckpt --vocoder DIR/g_00950000 --dtype bf16 -o DIR/im2sp-bf16
im2sp convert DIR/captioner.ckpt --vocoder DIR/g_00950000 --quantize int8 -o DIR/im2sp-int8
cargo build --release --example stages
```"""


# One caption on a GPU.


def number(ms):
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def ours(gpu, dtype):
    """{stage of PyTorch's side: milliseconds} and the report of `im2sp bench` in a dtype."""
    report = next((report for report in gpu["bench"] if report["dtype"] == dtype), None)
    if not report:
        return {}, None
    rows = {row["stage"].replace("picture", "image"): row["median"] for row in report["rows"]}
    return {stage: sum(rows[part] for part in parts) for stage, parts in cases.STAGES.items()}, report


def milliseconds(row):
    return statistics.median(row["ms"]) if isinstance(row["ms"], list) else row["ms"]


def theirs(gpu, stage, dtype, form=None, batch=1):
    """PyTorch's row of a stage in a dtype: that of `form`, or the fastest that gives the same result as the others."""
    rows = [row for row in gpu["pytorch_pipeline"] if (row["stage"], row.get("batch", 1)) == (stage, batch) and "ms" in row]
    if form:
        rows = [row for row in rows if row["form"] == form]
    else:
        rows = [row for row in rows if row["form"].partition("+")[0] == dtype and "nocache" not in row["form"]]
    return min(rows, key=milliseconds, default=None)


def peer_cell(row):
    if not row:
        return "-"
    how = row["form"].partition("+")[2].replace("+", ", ")
    seconds = f"{row['seconds']:g} s" if row["stage"] == "vocoder" and "seconds" in row else ""
    remark = ", ".join(filter(None, [how, seconds]))
    return number(milliseconds(row)) + (f" ({remark})" if remark else "")


GPU_STAGES = {
    "vision": "image encoder",
    "units": "image to {units} units",
    "vocoder": "vocoder",
    "whole": "image to samples, {units} units",
}


def gpu_caption(gpu):
    columns = ["milliseconds", "im2sp bf16", "PyTorch bf16, fastest", "PyTorch bf16", "im2sp f32", "PyTorch f32, fastest"]
    times = {dtype: ours(gpu, dtype) for dtype in ("bf16", "f32")}
    units = next(report["units"] for _, report in times.values() if report)
    rows = []
    for stage, title in GPU_STAGES.items():
        row = [title.format(units=units)]
        for dtype in ("bf16", "f32"):
            found, report = times[dtype]
            sound = f" ({report['seconds']:g} s)" if report and stage == "vocoder" else ""
            row.append(number(found[stage]) + sound if stage in found else "-")
            row.append(peer_cell(theirs(gpu, stage, dtype)))
            if dtype == "bf16":
                row.append(peer_cell(theirs(gpu, stage, dtype, "bf16")))
        rows.append(row)
    text = [table(columns, rows)]
    nocache = theirs(gpu, "units", "f32", "f32+nocache")
    if nocache:
        text.append(
            f"The reference implementation has no cache over the image (transformers 4.33 runs it again for each unit): "
            f"{number(milliseconds(nocache))} ms for {units} units in f32."
        )
    stages = [[row["stage"], f"{number(row['median'])} ({number(row['min'])}-{number(row['max'])})" + at_fault(row.get("share"))] for row in bench_rows(gpu)]
    text += ["Stages of im2sp in bf16:", table(["stage", "ms, median (min-max)"], stages)]
    if "unit_us" in gpu:
        text.append(f"One unit: {gpu['unit_us']['bf16']} µs in bf16 and {gpu['unit_us']['fp8']} µs in fp8, model read from files.")
    if "beam" in gpu:
        text.append(f"Beam search with {gpu['beam']['beams']} beams: {gpu['beam']['step_ms']} ms for each step.")
    text += [source(gpu, "bench"), f"PyTorch: {gpu['remarks']['pytorch_pipeline']}"]
    return "\n\n".join(text)


def bench_rows(gpu):
    _, report = ours(gpu, "bf16")
    for row in report["rows"] if report else ():
        yield {
            "stage": row["stage"].replace("picture", "image"),
            "median": row["median"],
            "min": row.get("min", row.get("least")),
            "max": row.get("max", row.get("most")),
        }


# Bulk.


def gpu_bulk(gpu):
    def line(row):
        slots = "-" if row["in_flight"] is None else str(row["in_flight"])
        what = "units and sound" if row["audio"] else "units"
        return [row["model"], slots, what, f"{row['seconds']:.2f}", f"{row['images'] / row['seconds']:.0f}"]

    text = [table(["model", "in flight", "output", "s", "images per second"], [line(row) for row in gpu["bulk"]])]
    batches = [row for row in gpu.get("pytorch_pipeline", ()) if row["stage"] == "units" and row.get("batch", 1) > 1 and "ms" in row]
    if batches:
        best = max(batches, key=lambda row: row["batch"] / milliseconds(row))
        rate = 1e3 * best["batch"] / milliseconds(best)
        text.append(
            f"PyTorch in batches of {best['batch']}, {best['form']}, units only, images already on the device: "
            f"{number(milliseconds(best))} ms for a batch, {rate:.0f} images per second."
        )
    return "\n\n".join([*text, source(gpu, "bulk")])


# Both ends on a GPU.

ENDS = {
    "recordings": lambda row: f"{row['sound']:,} s of sound in {row['recordings']:,} recordings to units",
    "tokenize": lambda row: f"{row['images']:,} images to image units",
    "evaluate": lambda row: f"{row['images']:,} images to units, sound, text and scores",
}


def gpu_ends(gpu):
    rows = [[ENDS[row["step"]](row), row["dtype"], f"{row['seconds']:.2f}", f"{row['one']:.2f}"] for row in gpu["ends"]]
    text = [table(["question", "dtype", "s", "of which one alone takes, s"], rows)]
    text.append(
        "From the start of the command to its end, model and files included; most of what one recording or image takes is the start. "
        "HuBERT Base up to layer 6 with 200 centres, the small ViT-VQGAN encoder, the published captioner and vocoder with 100 units "
        "an image, wav2vec 2.0 large; random weights."
    )
    return "\n\n".join([*text, source(gpu, "ends")])


# Training on a GPU.


def gpu_training(result):
    """Milliseconds of a training step; the median, in parentheses the minimum and the maximum."""
    names = {"decoder": "decoder on cached features", "frozen": "frozen encoder", "full": "all of it"}
    rows = []
    for name, title in names.items():
        for side, row in result["models"].get(name, {}).items():
            if row["ms"]:
                rows.append([title, side, f"{number(statistics.median(row['ms']))} ({number(min(row['ms']))}-{number(max(row['ms']))})"])
    text = [table(["trained", "side", "ms a step"], rows), source(result | {"machine": result["machine"]["gpu"]})]
    text.append(
        "The published size, 16 images of 150 units, bf16 with f32 master weights, without dropout, a process each. PyTorch "
        f"{result['torch']}: autocast, scaled_dot_product_attention, fused AdamW, the encoder in bf16; `compile` is torch.compile. "
        "Its batch is on the device already; im2sp's comes from the host."
    )
    return "\n\n".join(text)


# Operations on a GPU.

# Names of operations up to commit 449c6ab.
RENAMED = {"linear_step": "linear_decode"}
# Cases of `im2sp doctor` that matter most: operation and how the case's name begins.
IMPORTANT = [
    ("layer_norm", "257x1024"),
    ("layer_norm", "16448x1024"),
    ("attention", "1x257x16x64 after 257"),
    ("attention", "64x257x16x64 after 257"),
    ("linear_decode", "1x768x3072"),
    ("linear_decode", "8x768x3072"),
    ("linear_decode", "64x768x3072"),
    ("linear_decode", "1x4096x4096"),
    ("patch_embed", "1 of 224x224 in 14x14"),
    ("patch_embed", "64 of 224x224 in 14x14"),
    ("conv1d", "256x256x11 over 1000, dilation 5, slope 1 "),
    ("conv1d", "64x64x11 over 16000, dilation 5, slope 1 "),
    ("conv_transpose1d", "512x256x11 stride 5 over 200, slope 1"),
    ("transpose", "32000x512"),
    ("argmax", "8x30522"),
    ("top_k", "50 of 8x30522"),
]


def find(gpu, op, start, dtype):
    fits = lambda case: RENAMED.get(case["op"], case["op"]) == op and case["dtype"] == dtype and case["case"].startswith(start)
    return next(filter(fits, gpu["operations"]), None)


def gpu_operations(gpu):
    rows = []
    for op, start in IMPORTANT:
        found = {dtype: find(gpu, op, start, dtype) for dtype in ("bf16", "f32")}
        name = (found["bf16"] or found["f32"] or {"case": start})["case"]
        shape = cases.shape(op, name)
        peer = peer_operation(gpu, op, shape) if shape else None
        cells = []
        for case in found.values():
            cells += [f"{case['us']:.1f}", of_peak(case["share"])] if case and case["us"] else ["-", "-"]
        rows.append([f"`{op}`", name, *cells, f"{peer['us']:.1f}" if peer else "-"])
    columns = ["operation", "case", "bf16, µs", "share", "f32, µs", "share", "PyTorch bf16, µs"]
    known = gpu["conformance"]
    sanitizers = ", ".join(f"{tool}: {found}" for tool, found in known.get("sanitizers", {}).items())
    compared = f"`im2sp doctor` compared {known['cases']:,} cases of {known['operations']} operations with the CPU, in f32 and bf16: {known['failed'] or 'none'} failed."
    text = [
        compared + (f" compute-sanitizer: {sanitizers}." if sanitizers else ""),
        table(columns, rows),
        "Times with a cold L2. The share is that of the peak that binds the operation, bandwidth or bf16 tensor cores, as "
        "doctor measures them; f32 runs on the same scale." + peaks(gpu),
        source(gpu, "operations"),
        f"PyTorch: {gpu['remarks']['pytorch_operations']}",
    ]
    return "\n\n".join(text)


def at_fault(share):
    """A mark for a measurement that is above the device's peak."""
    return " (above the peak: at fault)" if share and share > 1 else ""


def of_peak(share):
    return f"{100 * share:.0f} %" + at_fault(share)


def peaks(gpu):
    found = gpu.get("peaks")
    return f" Peaks: {found['bytes'] / 1e9:,.0f} GB/s, {found['flops'] / 1e12:,.0f} TFLOP/s." if found else ""


def peer_operation(gpu, op, shape, dtype="bf16"):
    return min(
        (row for row in gpu.get("pytorch_operations", ()) if row["shape"] == shape and row["dtype"] == dtype
         and row.get("us") and RENAMED.get(row["op"], row["op"]) == op),
        key=lambda row: row["us"], default=None)


def gemm(gpu, kernels):
    in_model = {}
    for row in kernels["kernels"] if kernels and kernels["machine"] == gpu["machine"] else ():
        if "shape" in row:
            in_model[tuple(row["shape"])] = row["ns"]["median"] / 1e3
    rows = []
    for peer in gpu["pytorch_operations"]:
        if (peer["op"], peer["dtype"]) != ("linear", "bf16") or not peer.get("us"):
            continue
        shape = peer["shape"]
        key = tuple(shape[part] for part in ("rows", "columns", "depth"))
        found = next((c for c in gpu["operations"] if (c["op"], c["dtype"]) == ("linear", peer["dtype"]) and cases.shape(c["op"], c["case"]) == shape), None)
        best = found["us"] if found else in_model.get(key)
        if not best:
            continue
        rate = 2 * key[0] * key[1] * key[2] / 1e6
        cold = f"{found['us']:.1f}" if found else "-"
        warm = f"{in_model[key]:.1f}" if key in in_model else "-"
        rows.append([" x ".join(map(str, key)), cold, warm, f"{peer['us']:.1f}", f"{rate / best:.0f}", f"{rate / peer['us']:.0f}", f"{100 * peer['us'] / best:.0f} %"])
    columns = ["rows x columns x depth", "im2sp, cold L2, µs", "im2sp, in the model, µs", "cuBLAS, µs", "im2sp TFLOP/s", "cuBLAS TFLOP/s", "im2sp / cuBLAS speed"]
    text = [table(columns, rows)]
    text.append("TFLOP/s and the last column are of the cold time where there is one. im2sp's include the bias and, in the model, the activation.")
    text.append(source(gpu, "operations"))
    text.append(f"cuBLAS: {gpu['remarks']['pytorch_operations']}")
    if in_model:
        text.append(f"In the model: `{kernels['command']}`; {link(kernels['file'])}. {kernels.get('remark', '')}".rstrip())
    return "\n\n".join(text)


def targets(gpu):
    """What was aimed at before the first GPU was at hand."""
    times, _ = ours(gpu, "bf16")
    product, cublas = find(gpu, "linear", "4096x4096x4096", "bf16"), {"rows": 4096, "depth": 4096, "columns": 4096}
    peer = peer_operation(gpu, "linear", cublas)
    share = lambda case: of_peak(case["share"]) if case else "-"
    rows = [
        ["4096^3 product, share of cuBLAS's speed", "65 %", f"{100 * peer['us'] / product['us']:.0f} %" if peer and product else "-"],
        ["product of one row, 1x4096x4096, share of the bandwidth", "80 %", share(find(gpu, "linear_decode", "1x4096x4096", "bf16"))],
        ["layer norm of 16448 rows, share of the bandwidth", "85 %", share(find(gpu, "layer_norm", "16448x1024", "bf16"))],
        ["image to samples at the published size, 100 units", "40 ms", f"{number(times['whole'])} ms"],
    ]
    return "\n\n".join([table(["question", "target", "measured, bf16"], rows), source(gpu, "operations")])


# The page.


def short(gpu):
    return gpu["device"].removeprefix("NVIDIA ")


def wrapped(text):
    """Paragraphs in lines of at most 120 characters; tables and code as they are."""
    parts = text.split("\n\n")
    keep = ("|", "```")
    fill = lambda part: textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(part if part.startswith(keep) else fill(part) for part in parts)


def page(results):
    gpu = lambda *needed: results.newest("gpu", *needed)
    caption = gpu("bench", "pytorch_pipeline")
    card = short(caption)
    with_operations = gpu("operations", "pytorch_operations")
    sections = [
        ("One caption on a CPU, im2sp and PyTorch", cpu_peers(results.newest("cpu-peers"))),
        ("Stages on a CPU, as shares of its peak", plain(results.newest("cpu-shares"))),
        ("Stages on a CPU (criterion)", plain(results.newest("cpu-stages"))),
        (f"One caption on an {card}, im2sp and PyTorch", gpu_caption(caption)),
        ("Eight bits", plain(results.newest("eight-bits"))),
        ("Streaming: latency", plain(results.newest("latency"))),
        ("Streaming: its cost", plain(results.newest("stream-cost"))),
        ("Bulk on a CPU", plain(results.newest("bulk"))),
        ("Loading images on a core, im2sp and torchvision", plain(results.newest("data-loading"))),
        ("Training steps on a CPU, im2sp and PyTorch", plain(results.newest("cpu-train-step"))),
        ("Speech models on a CPU, im2sp and transformers", plain(results.newest("cpu-speech"))),
        (f"Bulk on an {short(gpu('bulk'))}", gpu_bulk(gpu("bulk"))),
        (f"Operations on an {short(with_operations)}", gpu_operations(with_operations)),
        (f"Training on an {card}, im2sp and PyTorch", gpu_training(results.newest("gpu-train-step"))),
        ("Operations of training on an H200, im2sp and PyTorch", plain(results.newest("gpu-train-operations"))),
        (f"Targets on an {card}", targets(caption)),
        (f"GEMM on an {short(with_operations)}, im2sp and cuBLAS", gemm(with_operations, results.newest("gpu-kernels"))),
    ]
    if ends := gpu("ends"):
        sections.append((f"Both ends on an {short(ends)}", gpu_ends(ends)))
    return INTRODUCTION + "".join(f"\n## {title}\n\n{wrapped(text)}\n" for title, text in sections)


def readme(results):
    """README's table: im2sp in bf16 against PyTorch in bf16 and in f32."""
    result = results.newest("cpu-peers")
    median = lambda stage, column: statistics.median(result["stages"][stage][column])
    columns = ["", "im2sp bf16", "PyTorch bf16", "PyTorch f32"]
    forms = {dtype: [form for form in peers.FORMS if form.partition("+")[0] == dtype] for dtype in ("bf16", "f32")}
    rows = [[f"**CPU**, {peers.UNITS} units", "", "", ""]]
    for stage, (title, _) in peers.STAGES.items():
        fastest = [min(median(stage, f"PyTorch {form}") for form in forms[dtype]) for dtype in ("bf16", "f32")]
        rows.append([title] + [f"{ms:,.0f} ms" for ms in (median(stage, "im2sp bf16"), *fastest)])
    cold = {side: statistics.median(seconds for seconds, _ in runs) for side, runs in result["cold"].items()}
    rows.append(["image to WAV, new process", f"{cold['im2sp bf16']:.2f} s", "-", f"{cold['PyTorch f32, best']:.2f} s"])
    gpu = results.newest("gpu", "bench", "pytorch_pipeline")
    times, report = ours(gpu, "bf16")
    rows.append([f"**{short(gpu)}**, {report['units']} units", "", "", ""])
    for stage, title in GPU_STAGES.items():
        row = theirs(gpu, stage, "bf16"), theirs(gpu, stage, "f32")
        # Different lengths of sound are not compared here.
        if stage == "vocoder" and any(peer and peer.get("seconds") != report["seconds"] for peer in row):
            continue
        cells = [f"{number(milliseconds(peer))} ms" if peer else "-" for peer in row]
        rows.append([title.format(units=report["units"]), f"{number(times[stage])} ms", *cells])
    text = (
        f"Medians; of PyTorch the fastest form that works (eager, torch.compile, on the GPU CUDA graphs too). CPU: "
        f"{result['machine']['name']}, {result['threads']} threads each, commit {result['versions']['commit']}, {result['date']}; "
        "on a processor with bf16 instructions PyTorch's bf16 is much faster. "
        f"GPU: commit {gpu['commit'][:7]}, {gpu['date']}. Commands, ranges and all other measurements: [BENCHMARKS.md](BENCHMARKS.md)."
    )
    return table(columns, rows) + "\n\n" + wrapped(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    results = Results()
    if arguments.readme:
        print(readme(results))
        return
    root = HERE.parent
    wanted = {root / "BENCHMARKS.md": page(results)}
    text = (root / "README.md").read_text()
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        wanted[root / "README.md"] = f"{before}{BEGIN}\n{readme(results)}\n{END}{rest.partition(END)[2]}"
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments.check:
            print(f"{path.name} is not what benches/results gives: run python benches/report.py", file=sys.stderr)
        else:
            path.write_text(wanted[path])
            print(f"wrote {path.name}")
    sys.exit(bool(stale) and arguments.check)


if __name__ == "__main__":
    main()
