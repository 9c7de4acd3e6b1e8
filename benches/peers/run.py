"""im2sp beside PyTorch and transformers on one CPU, at the published size: one run, one table.

    python recipes/golden/full_size.py --out DIR        (then `im2sp convert`, once per dtype, as printed there)
    python benches/peers/run.py --full DIR --ours DIR/im2sp [--ours-bf16 DIR/im2sp-bf16] \
        [--ours-int8 DIR/im2sp-int8] --im2sp target/release/im2sp --stages PATH/TO/stages --json peers.json

Both sides take turns: in every round PyTorch's warm process measures each stage, then the stages binary does, and in
every other round the other way round. Run it on an idle machine: load falls on the two sides unequally. The table gives
medians over all rounds, and in parentheses the minimum and the maximum. The last rows start a cold process per measurement, with weights in the page cache; memory is the peak resident
set of that process, mapped file pages included. Without --stages or --im2sp the columns of im2sp stay empty.
Nothing but the standard library is imported here, so that this process adds nothing to its children's peaks.
"""
import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNITS = 128
# Stage: what it is, keys of the stages binary whose sum it is.
STAGES = {
    "vision": ("vision encoder, batch 1", ("vision_ms",)),
    "decode": (f"prefix and {UNITS} units, greedy", ("prefill_ms", "decode_128_ms")),
    "vocoder": ("vocoder, 4 s of speech", ("vocoder_4s_ms",)),
}
FORMS = ("f32", "bf16", "f32+compile", "bf16+compile")
COLUMNS = ("im2sp f32", "im2sp bf16", "im2sp int8", *(f"PyTorch {form}" for form in FORMS))


class Torch:
    """The warm PyTorch process."""

    def __init__(self, arguments, environment):
        command = [sys.executable, HERE / "torch_side.py", arguments.full]
        command += ["--threads", str(arguments.threads), "--units", str(UNITS)]
        self.problems = {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def measure(self, stage, form, repeat):
        """Milliseconds, none if it does not work, which is said once."""
        self.process.stdin.write(f"{stage} {form} {repeat}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the PyTorch side ended")
        answer = json.loads(line)
        if "problem" in answer and (stage, form) not in self.problems:
            self.problems[stage, form] = answer["problem"]
            print(f"PyTorch {form}, {stage}: {answer['problem']}", file=sys.stderr)
        return answer.get("ms", [])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def our_stages(binary, folder, repeat, environment):
    """{stage: [ms]} from one process of ours; it warms up by itself."""
    answer = subprocess.run(
        [binary, folder, str(repeat)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    report = json.loads(answer.stdout)
    return {stage: [sum(parts) for parts in zip(*(report[key] for key in keys))] for stage, (_, keys) in STAGES.items()}


def cold(command, environment):
    """(seconds, peak resident bytes) of one process."""
    clock = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - clock
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024


def machine():
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    name = f"{os.cpu_count()} cores of {cpu}"
    return {"name": name, "cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.release()}


def output(*command):
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(arguments):
    code = "import json, torch, transformers, numpy; print(json.dumps({m.__name__: m.__version__ for m in (torch, transformers, numpy)}))"
    return json.loads(output(sys.executable, "-c", code)) | {
        "python": platform.python_version(),
        "im2sp": output(arguments.im2sp, "--version") if arguments.im2sp else None,
        "commit": output("git", "describe", "--always", "--dirty"),
    }


def cell(values, unit):
    if not values:
        return "-"
    shape = "{:.0f} ({:.0f}-{:.0f})" if unit == "ms" else "{:.2f} ({:.2f}-{:.2f})"
    return shape.format(statistics.median(values), min(values), max(values))


def ratio(theirs, ours):
    return f"{statistics.median(theirs) / statistics.median(ours):.2f}x" if theirs and ours else "-"


def tables(report):
    """The Markdown of a report: the stages, and the processes from image to WAV."""
    lines = [
        "| stage | " + " | ".join(COLUMNS) + " | f32: PyTorch / im2sp |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for stage, (title, _) in STAGES.items():
        row = report["stages"][stage]
        cells = [cell(row.get(column), "ms") for column in COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio(row.get('PyTorch f32'), row.get('im2sp f32'))} |")
    cold_lines = ["| side | s | peak RSS, MB |", "|---|---|---|"]
    for side, runs in report["cold"].items():
        seconds = cell([run[0] for run in runs], "s")
        memory = statistics.median(run[1] for run in runs) / 1e6 if runs else 0
        cold_lines.append(f"| {side} | {seconds} | {memory:.0f} |")
    return "\n".join(lines), "\n".join(cold_lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", required=True, help="folder of recipes/golden/full_size.py, made without EOS")
    parser.add_argument("--ours", help="the same converted")
    parser.add_argument("--ours-bf16", help="the same converted with --dtype bf16")
    parser.add_argument("--ours-int8", help="the same converted with --quantize int8")
    parser.add_argument("--im2sp", help="the release binary")
    parser.add_argument("--stages", help="the binary that prints the times of our stages")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3, help="measurements of every stage in a round")
    parser.add_argument("--cold", type=int, default=3, help="cold processes of every kind; 0 for none")
    parser.add_argument("--forms", default=",".join(FORMS), help="what PyTorch measures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where the whole report goes")
    arguments = parser.parse_args()
    for name in ("im2sp", "stages"):  # this process changes no directory, but makes paths of programs unmistakable
        if path := getattr(arguments, name):
            setattr(arguments, name, str(Path(path).resolve()))
    threads = str(arguments.threads)
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}

    models = {"im2sp f32": arguments.ours, "im2sp bf16": arguments.ours_bf16, "im2sp int8": arguments.ours_int8}
    models = {column: folder for column, folder in models.items() if folder}
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "benches/peers/run.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(arguments),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "repeat": arguments.repeat,
        "stages": {stage: {} for stage in STAGES},
        "cold": {},
    }

    if report["machine"]["load"][0] > 0.5:
        print("other work is running: threads that wait for each other, PyTorch's above all, suffer", file=sys.stderr)

    def note(stage, column, times):
        report["stages"][stage].setdefault(column, []).extend(times)

    peer = Torch(arguments, environment)

    def theirs():
        for stage in STAGES:
            for form in filter(None, arguments.forms.split(",")):
                note(stage, f"PyTorch {form}", peer.measure(stage, form, arguments.repeat))

    def ours():
        for column, folder in models.items() if arguments.stages else ():
            for stage, times in our_stages(arguments.stages, folder, arguments.repeat, environment).items():
                note(stage, column, times)

    for number in range(arguments.rounds):
        for side in (theirs, ours) if number % 2 == 0 else (ours, theirs):
            side()
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    peer.close()
    report["problems"] = {f"{form}, {stage}": problem for (stage, form), problem in peer.problems.items()}

    photo = str(Path(arguments.full) / "photo.png")
    with tempfile.TemporaryDirectory() as folder:
        wav = str(Path(folder) / "out.wav")
        commands = {}
        for column, weights in models.items() if arguments.im2sp else ():
            options = ["--weights", weights, "--max-units", str(UNITS), "--device", "cpu", "-o", wav]
            commands[column] = [arguments.im2sp, "caption", photo, *options]
        for how in ("best", "plain"):
            script = str(HERE / "oneshot.py")
            commands[f"PyTorch f32, {how}"] = [sys.executable, script, how, photo, arguments.full, str(UNITS), wav]
        report["cold"] = {side: [] for side in commands}
        # The first turn fills the page cache and is not counted.
        for number in range(arguments.cold + 1 if arguments.cold else 0):
            for side, command in commands.items():
                result = cold(command, environment)
                if number:
                    report["cold"][side].append(result)
            print(f"cold {number} of {arguments.cold}", file=sys.stderr)

    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n\n".join(tables(report)))


if __name__ == "__main__":
    main()
