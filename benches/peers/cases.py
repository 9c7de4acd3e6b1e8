"""What im2sp prints, as the comparison with PyTorch needs it: case names of `im2sp doctor` and files that may be cut short.

Standard library only: read by gpu.py, report.py and the tests, on machines without PyTorch too.
"""
import json
import re

# Rows of `im2sp bench` whose sum is a stage of torch_side.py.
STAGES = {
    "vision": ("vision",),
    "decode": ("prefill", "all units"),
    "units": ("vision", "prefill", "all units"),
    "vocoder": ("vocoder",),
    "whole": ("image to samples",),
}

# Names of `im2sp bench` up to commit 449c6ab.
OLD = {"least": "min", "most": "max"}

# Operation: its case's name and what its numbers are. A product's case is rows x depth x columns.
NAMES = {
    "linear": (r"(\d+)x(\d+)x(\d+)\b", ("rows", "depth", "columns")),
    "layer_norm": (r"(\d+)x(\d+)\b", ("rows", "channels")),
    "attention": (r"(\d+)x(\d+)x(\d+)x(\d+) after (\d+)\b", ("batch", "tokens", "heads", "head", "prefix")),
    "conv1d": (r"(\d+)x(\d+)x(\d+) over (\d+), dilation (\d+), slope 1\b(?!\.)", ("inputs", "outputs", "taps", "frames", "dilation")),
    "conv_transpose1d": (r"(\d+)x(\d+)x(\d+) stride (\d+) over (\d+), slope 1\b(?!\.)", ("inputs", "outputs", "taps", "stride", "frames")),
    "patch_embed": (r"(\d+) of (\d+)x\2 in (\d+)x\3, (\d+) channels$", ("batch", "side", "patch", "channels")),
}
for also in ("linear_step", "linear_decode"):
    NAMES[also] = NAMES["linear"]


def shape(op, case):
    """{dimension: size} of a case that PyTorch has a counterpart of, else None."""
    pattern, names = NAMES.get(op, (None, None))
    match = pattern and re.match(pattern, case)
    if not match:
        return None
    found = dict(zip(names, map(int, match.groups())))
    if op == "attention":
        # Every token sees every other one only if all of them are prefix.
        if found.pop("prefix") != found["tokens"]:
            return None
    return found


def objects(text):
    """The JSON objects in a text: one, or one a line. What is broken or cut short is left out."""
    try:
        whole = json.loads(text)
        return [whole] if isinstance(whole, dict) else [part for part in whole if isinstance(part, dict)]
    except (ValueError, TypeError):
        pass
    found = []
    for line in text.splitlines():
        try:
            part = json.loads(line)
        except ValueError:
            continue
        if isinstance(part, dict):
            found.append(part)
    return found


def read(path):
    """The objects of a file; none if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return objects(file.read())
    except OSError:
        return []


def doctor(paths):
    """({"device", "peaks"}, cases) of the reports of `im2sp doctor --json`."""
    device, found = {}, []
    for path in paths:
        for part in read(path):
            device = device or {name: part[name] for name in ("device", "peaks") if part.get(name)}
            for case in part.get("cases", [part]):
                if isinstance(case, dict) and isinstance(case.get("op"), str) and isinstance(case.get("case"), str):
                    found.append(case)
    return device, found


def bench(paths):
    """The reports of `im2sp bench --json` that are whole, in today's words."""
    reports = []
    for path in paths:
        for report in read(path):
            rows = [row for row in report.get("rows", ()) if isinstance(row, dict) and row.get("stage")]
            report["rows"] = [{OLD.get(name, name): value for name, value in row.items()} for row in rows]
            for row in report["rows"]:
                row["stage"] = row["stage"].replace("picture", "image")
            if report.get("dtype") and {part for parts in STAGES.values() for part in parts} <= {row["stage"] for row in report["rows"]}:
                reports.append(report)
    return reports


def bulk(paths):
    """The runs of the reports of `im2sp bench --in-flight N --json`, as results.json has them."""
    rows = []
    for path in paths:
        for report in read(path):
            for run in report.get("runs", ()):
                if isinstance(run, dict) and run.get("images_per_second"):
                    row = {"model": report.get("model"), "dtype": report.get("dtype"), "in_flight": report.get("in_flight")}
                    row |= {"images": report["images"], "audio": run.get("kind") == "with sound"}
                    rows.append(row | {"seconds": report["images"] / run["images_per_second"], "stages": run.get("stages")})
    return rows


def ends(paths):
    """The measurements of ends.py."""
    found = [part for path in paths for part in read(path)]
    return [part for part in found if part.get("step") and part.get("seconds") and not part.get("tiny")]


def frames(report, hop=320, rate=16000):
    """Frames of the vocoder in a report of `im2sp bench`."""
    return round(report["seconds"] * rate / hop)
