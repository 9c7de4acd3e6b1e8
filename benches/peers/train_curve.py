"""The loss curve of `im2sp train` beside PyTorch's: the same initial weights, batches and learning rates, in f32, on one CPU.

    cargo run --release --example scenes -- scenes 400
    im2sp caption scenes/Images --weights tests/scenes --no-audio --json > scenes.jsonl
    python benches/peers/train_curve.py --manifest scenes.jsonl --runs runs/beside --drawing docs/training-beside-pytorch.svg

A fresh decoder learns over the frozen image encoder of tests/scenes, without dropout. `im2sp train` makes RUNS/im2sp. A run of
one update, whose learning rate is zero, gives the initial weights, which `im2sp export` hands to transformers'
GitForCausalLM. PyTorch's side reads images, computes their features and takes the recipe from RUNS/im2sp/config.toml; the
order of the samples is that of src/data/order.rs, in Python below; torch.optim.AdamW makes the updates. Its losses, in the form of
`im2sp train`'s log.jsonl, are in RUNS/pytorch; `im2sp plot` draws both. Prints the largest relative differences of loss and
gradient norm, and ends with exit code 1 if losses of the first 50 updates differ by more than 1e-4. With --f64, PyTorch trains
in f64 too, which shows how far f32 itself is off.
"""
import argparse
import copy
import itertools
import json
import math
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, GitForCausalLM, utils

ROOT = Path(__file__).resolve().parents[2]
PAD, BOS, EOS = 0, 101, 102
EARLY, TOLERANCE = 50, 1e-4


def philox(seed, stream, index):
    """Philox4x32-10: the four words of a block."""
    low, mask = lambda value: value & mask, (1 << 32) - 1
    a, b, c, d = low(index), index >> 32, low(stream), stream >> 32
    key, other = low(seed), seed >> 32
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second >> 32 ^ b ^ key, low(second), first >> 32 ^ d ^ other, low(first)
        key, other = low(key + 0x9E3779B9), low(other + 0xBB67AE85)
    return a, b, c, d


def epoch_order(count, seed, epoch):
    """Fisher and Yates, as in src/data/order.rs."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        a, b, *_ = philox(seed, (1 << 62) + epoch, last)
        other = ((a << 32 | b) * (last + 1)) >> 64
        order[last], order[other] = order[other], order[last]
    return order


def batches(count, recipe):
    """Epoch and sample numbers of every update."""
    update, epoch = 0, 0
    while True:
        order = epoch_order(count, recipe["seed"], epoch)
        for first in range(0, count, recipe["batch"]):
            if update == recipe["iterations"]:
                return
            update += 1
            yield epoch, order[first : first + recipe["batch"]]
        epoch += 1


def learning_rate(k, schedule, total):
    """Of the update after k others: linear warm-up, then half a cosine to zero."""
    peak, warmup = schedule["rate"], schedule["warmup"]
    if k <= warmup:
        return peak * k / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (k - warmup) / (total - warmup)))


def tokens(units):
    """BOS, the units without repetitions, EOS."""
    units = [unit for unit, _ in itertools.groupby(units)]
    return torch.tensor([BOS, *(unit + 1 if unit <= 100 else unit + 3 for unit in units), EOS])


@torch.no_grad()
def features(model, images, processor):
    """(N, T, width) of the frozen encoder and projection, rounded to bf16 as `--cache-features` does."""
    found = []
    for path in images:
        pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        found.append(model.git.visual_projection(model.git.image_encoder(pixels).last_hidden_state).bfloat16())
    return torch.cat(found).float()


class Given(nn.Module):
    """Stands for the frozen encoder: takes features as if they were pixels, (B, 1, T, width)."""

    def forward(self, x, **_):
        return argparse.Namespace(last_hidden_state=x[:, 0])


def initial(folder, samples):
    """The model with which the run begins, its frozen encoder replaced by the features of all samples, (N, T, width)."""
    model = GitForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    images = features(model, [image for image, _ in samples], processor)
    model.git.image_encoder, model.git.visual_projection = Given(), nn.Identity()
    return model, images


def train(model, images, samples, recipe):
    """Records of all updates, in the form of log.jsonl."""
    parameters = list(model.parameters())
    options = {"betas": tuple(recipe["betas"]), "eps": recipe["eps"], "weight_decay": recipe["weight_decay"]}
    optimizer = torch.optim.AdamW(parameters, **options)
    records, clock = [], time.perf_counter()
    for k, (epoch, numbers) in enumerate(batches(len(samples), recipe)):
        ids = nn.utils.rnn.pad_sequence([samples[n][1] for n in numbers], batch_first=True, padding_value=PAD)
        inputs, targets = ids[:, :-1], ids[:, 1:]
        logits = model(pixel_values=images[numbers][:, None], input_ids=inputs, use_cache=False).logits
        logits = logits[:, -inputs.shape[1] :]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
        rate = learning_rate(k, recipe["schedule"], recipe["iterations"])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        optimizer.step()
        valid = targets != PAD
        wrong = (logits.argmax(-1) != targets)[valid].double().mean()
        values = {"loss": loss.item(), "error": wrong.item(), "gradient_norm": norm.item(), "rate": rate}
        counts = {"images": len(numbers), "tokens": int(valid.sum()), "seconds": time.perf_counter() - clock}
        records.append({"kind": "update", "update": k + 1, "epoch": epoch} | values | counts)
        clock = time.perf_counter()
    return records


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def write_log(run, records):
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def largest(ours, theirs, field):
    """The largest relative difference of a field."""
    return max(abs(a[field] - b[field]) / abs(b[field]) for a, b in zip(ours, theirs))


def check(ours, theirs):
    """Both runs had as many tokens in every batch, and the same learning rates."""
    for a, b in zip(ours, theirs, strict=True):
        assert all(a[field] == b[field] for field in ("update", "epoch", "images", "tokens")), (a, b)
        assert math.isclose(a["rate"], b["rate"], rel_tol=1e-12), (a, b)


def report(runs):
    """Prints the differences between runs; the largest one of the first losses of im2sp and PyTorch."""
    (_, ours), (_, theirs), *_ = runs
    print(f"largest relative difference over the first {EARLY} updates and over all {len(ours)}:")
    for (one, a), (other, b) in itertools.combinations(runs, 2):
        for field in ("loss", "gradient_norm"):
            print(f"  {one + ', ' + other:26} {field:14} {largest(a[:EARLY], b, field):.1e} {largest(a, b, field):.1e}")
    for name, records in runs:
        print(f"  {name}: loss {records[0]['loss']:.4f} to {records[-1]['loss']:.6f}")
    return largest(ours[:EARLY], theirs, "loss")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--im2sp", type=Path, default=ROOT / "target/release/im2sp")
    parser.add_argument("--manifest", type=Path, required=True, help='JSON lines {"image": "a.jpg", "units": [71, 12]}')
    parser.add_argument("--runs", type=Path, required=True, help="folder to make")
    parser.add_argument("--drawing", type=Path, default=Path("training-beside-pytorch.svg"))
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--f64", action="store_true", help="train in f64 too")
    arguments = parser.parse_args()
    runs, manifest = arguments.runs, arguments.manifest
    torch.set_num_threads(arguments.threads)
    utils.logging.disable_progress_bar()

    def im2sp(*words):
        subprocess.run([arguments.im2sp, *map(str, words)], check=True)

    options = ["--init", ROOT / "tests/scenes", "--fresh-decoder", "--manifest", manifest, "--batch", 8]
    options += ["--rate", 1e-3, "--warmup", 50, "--dropout", 0, "--device", "cpu"]
    im2sp("train", runs / "im2sp", *options, "--iterations", arguments.updates, "--cache-features")
    im2sp("train", runs / "start", *options, "--iterations", 1)
    im2sp("export", runs / "start/step-00000001", "--format", "hf", "-o", runs / "initial")

    recipe = tomllib.loads((runs / "im2sp/config.toml").read_text())
    lines = map(json.loads, manifest.read_text().splitlines())
    samples = [(manifest.parent / line["image"], tokens(line["units"])) for line in lines]
    model, images = initial(runs / "initial", samples)
    sides = [("im2sp", read_log(runs / "im2sp"))]
    for name, dtype in [("pytorch", torch.float32), ("pytorch-f64", torch.float64)][: 1 + arguments.f64]:
        sides.append((name, train(copy.deepcopy(model).to(dtype), images.to(dtype), samples, recipe)))
        write_log(runs / name, sides[-1][1])
        check(sides[0][1], sides[-1][1])
    im2sp("plot", runs / "im2sp", runs / "pytorch", "-o", arguments.drawing)
    return int(report(sides) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
