"""Last step of the demo captioner's training: it learns its own captions by heart, in f32 and in eight bits.

Where two ways to go on are about as good, the least rounding decides which of them is said, and captions that differ
in storage alone differ in many units. Here the trained captioner says once what it sees in new pictures, each of a
caption of its own, and its decoder learns to say just that again (sequence-level distillation into itself: Kim and Rush,
"Sequence-Level Knowledge Distillation", 2016). Every other step multiplies with weights as `im2sp convert --quantize
fp8` rounds them, and gradients pass the rounding as if it were not there. The vision tower stays as it is.

    python settle.py --work DIR [--from CKPT] [--minutes M] [--pictures N] [--threads N]

reads DIR/captioner.ckpt (or CKPT), writes DIR/settled.ckpt, and prints how many captions of pictures that are not
trained on keep all their units.
"""
import argparse
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

import captioner
import scenes
from captioner import BOS, EOS, PAD, Config

SEED = 8
SIZES, SHARES = (112, 160, 224, 256, 320), (0.1, 0.2, 0.3, 0.3, 0.1)  # of the pictures, in pixels
VALID = 400  # pictures at the end, for validation only
LABEL_BATCH = 200
BATCH = 48
RATE = 2e-4
SHAKEN = 0.01  # noise on the vision tokens, next to their root mean square: a GPU's are rounded to bf16


def draw(first, last):
    """Pictures of random scenes, as the network sees them."""
    pictures = []
    for i in range(first, last):
        rng = np.random.default_rng([SEED, i])
        picture = scenes.render(scenes.sample_scene(rng), rng, int(rng.choice(SIZES, p=SHARES)))
        pictures.append(captioner.preprocess(picture, Config().image))
    return np.stack(pictures)


def matrices(model):
    """Weights that a decode step multiplies, which are those that are stored in eight bits."""
    for layer in model.git.encoder.layer:
        a = layer.attention
        yield from (part.weight for part in (a.self.query, a.self.key, a.self.value, a.output.dense,
                                             layer.intermediate.dense, layer.output.dense))


def rounded(weight):
    """e4m3 with a power of two for each row, as src/tensor/fp8.rs has it."""
    most = weight.abs().amax(1, keepdim=True).clamp(min=2.0 ** -100)
    scale = torch.exp2(torch.floor(torch.log2(most)) - 8)
    scale = torch.where(most <= 448 * scale, scale, 2 * scale)
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


@contextmanager
def in_eight_bits(model, wanted=True):
    """Inside, the decoder's matrices are rounded; gradients are those of the rounded ones."""
    kept = [(w, w.data) for w in matrices(model)] if wanted else []
    for w, data in kept:
        w.data = rounded(data)
    try:
        yield
    finally:
        for w, data in kept:
            w.data = data


def see(model, pixels):
    """Vision tokens, in bf16: half the memory."""
    with torch.no_grad():
        return model.vision(captioner.normalise(pixels)).bfloat16()


def say(model, tokens):
    return [row for part in tokens.split(LABEL_BATCH) for row in model.greedy(part.float())]


def same(a, b):
    return sum(np.array_equal(x, y) for x, y in zip(a, b))


def labelled(path, teacher, count):
    """Vision tokens of new pictures and what the teacher says of them; kept in a file."""
    if not os.path.exists(path):
        tokens, said = [], []
        with ProcessPoolExecutor(2) as pool:
            firsts = range(0, count, LABEL_BATCH)
            for pixels in pool.map(draw, firsts, [min(first + LABEL_BATCH, count) for first in firsts]):
                tokens.append(see(teacher, pixels))
                said += say(teacher, tokens[-1])
                if len(tokens) % 10 == 0:
                    print("captioned", len(said), flush=True)
        torch.save({"tokens": torch.cat(tokens), "said": [torch.from_numpy(row) for row in said]}, path + ".part")
        os.replace(path + ".part", path)
    labels = torch.load(path, weights_only=True)
    return labels["tokens"], [row.numpy() for row in labels["said"]]


def batches(said, rng):
    """Pictures whose captions are of similar length, so that little is padded."""
    lengths = np.array([len(row) for row in said])
    while True:
        for chunk in np.array_split(rng.permutation(len(said)), max(1, len(said) // (16 * BATCH))):
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")][:len(chunk) // BATCH * BATCH]
            yield from rng.permutation(chunk.reshape(-1, BATCH))


def loss_of(model, tokens, said):
    words = np.full((len(said), max(map(len, said)) + 2), PAD, np.int64)
    for row, units in zip(words, said):
        row[:len(units) + 2] = [BOS, *captioner.units_to_ids(units), EOS]
    words = torch.from_numpy(words)
    tokens = tokens.float()
    tokens = tokens + SHAKEN * tokens.square().mean().sqrt() * torch.randn_like(tokens)
    logits = model(tokens, words[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=PAD)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--from", dest="start", help="checkpoint to start from; DIR/captioner.ckpt unless given")
    ap.add_argument("--minutes", type=float, default=20, help="training time")
    ap.add_argument("--pictures", type=int, default=24000, help="pictures that are drawn and captioned")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(6)

    start = args.start or os.path.join(args.work, "captioner.ckpt")
    model = captioner.load(start)
    tokens, said = labelled(os.path.join(args.work, "said.pt"), model, args.pictures)
    held, said = said[-VALID:], said[:-VALID]
    seen, tokens = tokens[-VALID:], tokens[:-VALID]

    def validate():
        plain = say(model, seen)
        with in_eight_bits(model):
            coded = say(model, seen)
        return f"of {VALID} captions {same(plain, held)} as before, {same(plain, coded)} the same in eight bits"

    print("before:", validate(), flush=True)
    parameters = [p for name, p in model.named_parameters() if "image_encoder" not in name]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    began = report = time.monotonic()
    losses = []
    for step, rows in enumerate(batches(said, np.random.default_rng(7))):
        done = (time.monotonic() - began) / (60 * args.minutes)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)
        optimiser.zero_grad(set_to_none=True)
        with in_eight_bits(model, step % 2 == 1):
            loss = loss_of(model, tokens[rows], [said[i] for i in rows])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if time.monotonic() - report > 120:
            report = time.monotonic()
            print(f"{(report - began) / 60:5.1f} min step {step} loss {np.mean(losses):.4f}; {validate()}", flush=True)
            losses = []
    captioner.save(model, os.path.join(args.work, "settled.part"))
    os.replace(os.path.join(args.work, "settled.part"), os.path.join(args.work, "settled.ckpt"))
    print("after:", validate(), flush=True)


if __name__ == "__main__":
    main()
