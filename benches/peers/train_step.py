"""Training steps of im2sp beside PyTorch's, on one CPU, in f32: one run, both sides in turns.

    cargo build --release --example train_step
    python benches/peers/train_step.py --ours target/release/examples/train_step [--rounds N] [--json FILE]

Two models without dropout: `embedded`, the dimensions of the embedded captioner, trained from pixels (4 + 6 layers of
width 192), and `decoder`, the published decoder (6 layers of 768) on features of 257 image tokens. PyTorch's side is the
plain module of recipes/demo/captioner.py, which runs image rows by themselves and leaves out the last layer's; every form of it
is measured, and the fastest counts: attention as plain operations or as scaled_dot_product_attention, eager or compiled.
Every measurement is a process of its own, which also gives the peak of its resident memory.
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
MODELS = {"embedded": (8, 60), "decoder": (8, 150)}
FORMS = ("plain", "sdpa", "plain+compile", "sdpa+compile")
WARM_UP = 3


def torch_side(name, form, batch, units, updates):
    """One process of PyTorch's side: prints the same JSON as ours."""
    sys.path.insert(0, str(HERE.parents[1] / "recipes" / "demo"))
    import captioner
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(1)
    if "sdpa" in form:
        def attend(q, k, v, hidden=None):
            return F.scaled_dot_product_attention(q, k, v, None if hidden is None else ~hidden)
        captioner.attend = attend
    size = {} if name == "embedded" else {"width": 768, "positions": 1024, "image": 224, "vision_layers": 0}
    model = captioner.Captioner(captioner.Config(**size))
    git, width = model.git, model.config.width
    ids = torch.randint(1, 101, (batch, units + 2))
    ids[:, 0], ids[:, -1] = captioner.BOS, captioner.EOS
    if name == "embedded":
        x = torch.randn(batch, 3, 112, 112)
        parameters = list(model.parameters())
    else:
        x = torch.randn(batch, 257, width)
        parameters = [p for part in (git.embeddings, git.encoder, model.output) for p in part.parameters()]

    def loss_of(x, ids):
        if name == "embedded":
            x = git.visual_projection.visual_projection(model.vision(x))
        text = git.embeddings(ids[:, :-1])
        t = text.shape[1]
        hidden = torch.ones(t, x.shape[1] + t, dtype=torch.bool).triu(x.shape[1] + 1)
        for number, layer in enumerate(git.encoder.layer):
            a = layer.attention.self
            if number + 1 < len(git.encoder.layer):
                image, k, v = layer(x)
            else:  # nobody sees the last image rows
                k, v = captioner.split_heads(a.key(x)), captioner.split_heads(a.value(x))
            text, _, _ = layer(text, k, v, hidden)
            x = image
        return F.cross_entropy(model.output(text).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=captioner.PAD)

    if "compile" in form:
        loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=1e-5, fused=True)
    times = []
    for step in range(WARM_UP + updates):
        clock = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, ids)
        loss.backward()
        optimizer.step()
        loss.item()
        if step >= WARM_UP:
            times.append((time.perf_counter() - clock) * 1e3)
    print(json.dumps({"ms": times, "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run(command, environment):
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if answer.returncode:
        return {"problem": answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else "no word"}
    return json.loads(answer.stdout)


def machine():
    cpu = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {"name": f"{os.cpu_count()} cores of {cpu[0]}", "system": platform.release(), "load": os.getloadavg()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ours", type=Path, help="the example train_step")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--updates", type=int, default=10, help="timed updates of a process")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", default="2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--torch", nargs=5, metavar=("MODEL", "FORM", "BATCH", "UNITS", "UPDATES"))
    arguments = parser.parse_args()
    if arguments.torch:
        name, form, *numbers = arguments.torch
        return torch_side(name, form, *map(int, numbers))
    threads = arguments.threads
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    version = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benches/peers/train_step.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "torch": subprocess.run(version, stdout=subprocess.PIPE, text=True).stdout.strip(),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=HERE, stdout=subprocess.PIPE, text=True
        ).stdout.strip(),
        "threads": int(threads),
        "models": {},
    }
    for name in arguments.models.split(","):
        batch, units = MODELS[name]
        numbers = [str(batch), str(units), str(arguments.updates)]
        sides = {"im2sp": [str(arguments.ours.resolve()), name, *numbers]}
        for form in arguments.forms.split(","):
            sides[f"PyTorch {form}"] = [sys.executable, __file__, "--torch", name, form, *numbers]
        rows = report["models"][name] = {side: {"ms": [], "peak_rss": []} for side in sides}
        for number in range(arguments.rounds):
            for side in list(sides) if number % 2 == 0 else reversed(sides):
                answer = run(sides[side], environment)
                if "problem" in answer:
                    rows[side]["problem"] = answer["problem"]
                    continue
                rows[side]["ms"] += answer["ms"]
                rows[side]["peak_rss"].append(answer["peak_rss"])
        medians = {side: statistics.median(row["ms"]) for side, row in rows.items() if row["ms"]}
        best = min((side for side in medians if side != "im2sp"), key=medians.get, default=None)
        for side, row in rows.items():
            if row["ms"]:
                memory = statistics.median(row["peak_rss"]) / 1e6
                print(f"{name:10} {side:24} {medians[side]:8.1f} ms ({min(row['ms']):.1f}-{max(row['ms']):.1f}), {memory:.0f} MB")
            else:
                print(f"{name:10} {side:24} {row.get('problem')}")
        if best and "im2sp" in medians:
            print(f"{name:10} {medians[best] / medians['im2sp']:.2f} times the speed of {best}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
