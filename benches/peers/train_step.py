"""Training steps of im2sp beside PyTorch's, on one CPU, in f32: one run, both sides in turns.

    cargo build --release --example train_step
    python benches/peers/train_step.py --ours target/release/examples/train_step [--rounds N] [--json FILE]

Two models without dropout: `scenes`, the dimensions of the model in tests/scenes, trained from pixels (4 + 6 layers of
width 192), and `decoder`, the published decoder (6 layers of 768) on features of 257 image tokens. PyTorch's side is the
plain module of recipes/demo/captioner.py, which runs image rows by themselves and leaves out the last layer's; every form of it
is measured, and the fastest counts: attention as plain operations or as scaled_dot_product_attention, eager or compiled.
Every measurement is a process of its own, which also gives the peak of its resident memory.

    python train_step.py --device cuda --ours ./train_step [--json FILE]

On a GPU, in bf16: `decoder` and two more, `frozen`, the published size with its frozen encoder, and `full`, all of it trained, at
batch 16 and 150 units. PyTorch's side has f32 weights under autocast, a frozen encoder in bf16, scaled_dot_product_attention
and the fused AdamW, eager or compiled, its batch on the device already.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = {
    "cpu": {"scenes": (8, 60), "decoder": (8, 150)},
    "cuda": {"decoder": (16, 150), "frozen": (16, 150), "full": (16, 150)},
}
FORMS = {
    "cpu": ("plain", "sdpa", "plain+compile", "sdpa+compile"),
    "cuda": ("sdpa+compile", "sdpa"),
}
WARM_UP = 3


def torch_side(name, form, batch, units, updates, device):
    """One process of PyTorch's side: prints the same JSON as ours."""
    recipes = HERE.parents[1] / "recipes" / "demo" if len(HERE.parents) > 1 else HERE
    sys.path[:0] = [str(HERE), str(recipes)]
    import captioner
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(1)
    if "sdpa" in form:
        def attend(q, k, v, hidden=None):
            return F.scaled_dot_product_attention(q, k, v, None if hidden is None else ~hidden)
        captioner.attend = attend
    published = {"width": 768, "positions": 1024, "image": 224, "vision_width": 1024, "vision_layers": 24}
    size = {"scenes": {}, "decoder": published | {"vision_layers": 0}}.get(name, published)
    model = captioner.Captioner(captioner.Config(**size)).to(device)
    git, config = model.git, model.config
    ids = torch.randint(1, 101, (batch, units + 2), device=device)
    ids[:, 0], ids[:, -1] = captioner.BOS, captioner.EOS
    decoder = [p for part in (git.embeddings, git.encoder, model.output) for p in part.parameters()]
    parameters = decoder if name in ("decoder", "frozen") else list(model.parameters())
    if name == "decoder":
        x = torch.randn(batch, 257, config.width, device=device)
    else:
        x = torch.randn(batch, 3, config.image, config.image, device=device)
    frozen = torch.nn.Sequential(model.vision, git.visual_projection.visual_projection).requires_grad_(name != "frozen")
    if name == "frozen" and device == "cuda":
        frozen.bfloat16()

    def loss_of(x, ids):
        if name != "decoder":
            x = frozen(x)
        text = git.embeddings(ids[:, :-1])
        t = text.shape[1]
        hidden = torch.ones(t, x.shape[1] + t, dtype=torch.bool, device=x.device).triu(x.shape[1] + 1)
        for number, layer in enumerate(git.encoder.layer):
            a = layer.attention.self
            if number + 1 < len(git.encoder.layer):
                image, k, v = layer(x)
            else:  # nobody sees the last image rows
                k, v = captioner.split_heads(a.key(x)), captioner.split_heads(a.value(x))
            text, _, _ = layer(text, k, v, hidden)
            x = image
        return F.cross_entropy(model.output(text).flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=captioner.PAD)

    if "compile" in form:
        loss_of = torch.compile(loss_of, mode="reduce-overhead" if "graph" in form else None)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=1e-5, fused=True)
    times = []
    for step in range(WARM_UP + updates):
        clock = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(x.bfloat16() if name == "frozen" and device == "cuda" else x, ids)
        loss.backward()
        optimizer.step()
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        if step >= WARM_UP:
            times.append((time.perf_counter() - clock) * 1e3)
    report = {"ms": times, "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device == "cuda":
        report["peak_device"] = torch.cuda.max_memory_allocated()
    print(json.dumps(report))


def run(command, environment, limit):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        answer = subprocess.run(command, env=environment, **pipes, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"problem": "out of time"}
    if answer.returncode:
        return {"problem": answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else "no word"}
    return json.loads(answer.stdout)


def machine(device):
    cpu = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    found = {"name": f"{os.cpu_count()} cores of {cpu[0]}", "system": platform.release(), "load": os.getloadavg()}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip()
    return found


def commit():
    """That of the checkout, or of the archive that this file was packed into."""
    packed = HERE / "commit"
    if packed.exists():
        return packed.read_text().strip()
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ours", type=Path, help="the example train_step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3600, help="after which nothing more is measured")
    parser.add_argument("--updates", type=int, default=10, help="timed updates of a process")
    parser.add_argument("--forms", help="of PyTorch's side, with commas")
    parser.add_argument("--models", help="with commas")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--torch", nargs=5, metavar=("MODEL", "FORM", "BATCH", "UNITS", "UPDATES"))
    arguments = parser.parse_args()
    if arguments.torch:
        name, form, *numbers = arguments.torch
        return torch_side(name, form, *map(int, numbers), arguments.device)
    threads, device = arguments.threads, arguments.device
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    version = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benches/peers/train_step.py " + " ".join(sys.argv[1:]),
        "machine": machine(device),
        "torch": subprocess.run(version, stdout=subprocess.PIPE, text=True).stdout.strip(),
        "commit": commit(),
        "threads": int(threads),
        "models": {},
    }
    deadline = time.monotonic() + arguments.seconds
    for name in arguments.models.split(",") if arguments.models else MODELS[device]:
        batch, units = MODELS[device][name]
        numbers = [str(batch), str(units), str(arguments.updates)]
        sides = {"im2sp": [str(arguments.ours.resolve()), name, *numbers, *(["cuda", "bf16"] if device == "cuda" else [])]}
        for form in arguments.forms.split(",") if arguments.forms else FORMS[device]:
            sides[f"PyTorch {form}"] = [sys.executable, __file__, "--device", device, "--torch", name, form, *numbers]
        rows = report["models"][name] = {side: {"ms": [], "peak_rss": []} for side in sides}
        for number in range(arguments.rounds):
            for side in list(sides) if number % 2 == 0 else reversed(sides):
                measure(rows[side], sides[side], environment, deadline)
                if arguments.json:
                    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
        show(name, rows)


def measure(row, command, environment, deadline):
    """Adds what one process measures to `row`."""
    answer = run(command, environment, max(1, deadline - time.monotonic()))
    if "problem" in answer:
        row["problem"] = answer["problem"]
        return
    row["ms"] += answer["ms"]
    row["peak_rss"].append(answer["peak_rss"])
    if "peak_device" in answer:
        row["peak_device"] = answer["peak_device"]


def show(name, rows):
    """Prints the medians of a model."""
    medians = {side: statistics.median(row["ms"]) for side, row in rows.items() if row["ms"]}
    best = min((side for side in medians if side != "im2sp"), key=medians.get, default=None)
    for side, row in rows.items():
        if row["ms"]:
            memory = statistics.median(row["peak_rss"]) / 1e6
            print(f"{name:10} {side:24} {medians[side]:8.1f} ms ({min(row['ms']):.1f}-{max(row['ms']):.1f}), {memory:.0f} MB")
        else:
            print(f"{name:10} {side:24} {row.get('problem')}")
    if best and "im2sp" in medians:
        print(f"{name:10} {medians[best] / medians['im2sp']:.2f} times the speed of {best}", flush=True)


if __name__ == "__main__":
    main()
