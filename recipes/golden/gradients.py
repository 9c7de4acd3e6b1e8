"""Gradients of the tiny captioners, and a training run: adds to tests/golden/models/<name>/.

    python recipes/golden/gradients.py [--out tests/golden/models]

The weights are those of captioner.safetensors (models.py). One batch: three images, each with a row of tokens. Inputs are
ids[:, :-1], targets ids[:, 1:]; PAD is no target, and the loss is the mean over all other targets. Dropout is off. Computed by
transformers' GitForCausalLM in f64, stored as f32; the names of parameters are those of captioner.safetensors, with query, key
and value packed.

gradients.safetensors:
    pixels (3, 3, side, side), ids (3, L) i64: BOS, units, EOS, then PAD; rows of different lengths
    loss (1)
    gradient.<parameter>    all of it, in the shape of the parameter; in "small" for every one, elsewhere for vectors
    rows.<matrix> (R), columns.<matrix> (C)    elsewhere, for a matrix (R, C): the sums over its columns and over its rows
    pad_inside.ids, pad_inside.loss, pad_inside.gradient.decoder.word_embedding    "small" only: the same images with PADs
        inside of a row. No unit list has one; but they are looked up, and only by them can it be seen that PAD's row takes no
        gradient from lookups, only from the tied output

training.safetensors, "small" only, STEPS steps of AdamW (weight decay 1e-5 on everything, betas 0.9 and 0.999, eps 1e-8) on that
batch, without clipping:
    learning_rates (STEPS)    of update n from 1, k = n - 1: PEAK * k / WARM_UP up to k = WARM_UP, then half a cosine to 0
    losses.full (STEPS)       before each update, everything trained
    losses.frozen (STEPS)     the vision tower and the projection frozen

Needs requirements.txt beside this file. Takes a few seconds.
"""
import argparse
import copy
import json
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

import captioners
import models
from captioners import BOS, EOS, PAD

LENGTHS = (12, 4, 9)  # BOS and EOS counted
STEPS, WARM_UP, PEAK = 50, 5, 1e-3
FROZEN = ("git.image_encoder.", "git.visual_projection.")


def token(unit):
    """As src/units.rs has it."""
    return unit + 1 if unit <= 100 else unit + 3


def rows(vocabulary, seed):
    """(B, L) tokens; few different units, so that some come more than once."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    some = torch.randint(0, vocabulary - 3, (8,), generator=generator).tolist()
    for row, length in zip(ids, LENGTHS):
        units = torch.randint(0, len(some), (length - 2,), generator=generator).tolist()
        row[:length] = torch.tensor([BOS, *(token(some[unit]) for unit in units), EOS])
    return ids


def loss_of(model, pixels, ids):
    """The mean over targets that are not PAD, from the library's own forward pass and masks."""
    logits = model(pixel_values=pixels, input_ids=ids[:, :-1], use_cache=False).logits
    logits = logits[:, -ids[:, 1:].shape[1] :]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


def gradients(model, pixels, ids):
    """The loss, and the gradient of every parameter by its name in captioner.safetensors."""
    model.zero_grad()
    loss = loss_of(model, pixels, ids)
    loss.backward()
    named = {"model." + name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), captioners.canonical_state(named)


@torch.no_grad()
def check_masks(model, pixels, ids):
    """Units see the image and earlier units; image tokens see each other. The library's own loss is the same."""
    before = model(pixel_values=pixels, input_ids=ids, use_cache=False).logits
    image, at = before.shape[1] - ids.shape[1], 5
    other = ids.clone()
    other[:, at:] = token(3)
    after = model(pixel_values=pixels, input_ids=other, use_cache=False).logits
    assert (before[:, : image + at] == after[:, : image + at]).all()
    assert (before[:, image + at :] != after[:, image + at :]).any()
    moved = pixels.clone()
    moved[..., -1] += 1
    moved = model(pixel_values=moved, input_ids=ids, use_cache=False).logits
    assert (moved != before).any(-1).all(), "every token sees the last column of its image"
    # The library shifts by itself, ignores -100 and takes logits as f32.
    labels = ids.masked_fill(ids == PAD, -100)
    theirs = model(pixel_values=pixels, input_ids=ids, labels=labels).loss
    assert abs(theirs - loss_of(model, pixels, ids)) < 1e-6


@torch.no_grad()
def check_slope(model, pixels, ids, step=1e-6):
    """The gradient along a random direction against a central difference."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(17)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    losses = []
    for sign in (1, -1):
        for mine, parameter, direction in zip(model.parameters(), other.parameters(), directions):
            parameter.copy_(mine + sign * step * direction)
        losses.append(loss_of(other, pixels, ids))
    slope = (losses[0] - losses[1]) / (2 * step)
    along = sum((p.grad * d).sum() for p, d in zip(model.parameters(), directions))
    assert abs(slope - along) < 1e-5 * abs(along), (slope, along)


def learning_rate(k):
    """Of the update after k others: linear warm-up, then half a cosine."""
    if k <= WARM_UP:
        return PEAK * k / WARM_UP
    return PEAK * 0.5 * (1 + math.cos(math.pi * (k - WARM_UP) / (STEPS - WARM_UP)))


def train(model, pixels, ids, frozen):
    """The loss before each update."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(FROZEN)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-5)
    losses = []
    for k in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(k)
        optimizer.zero_grad()
        loss = loss_of(model, pixels, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def floats(tensors):
    return models.arrays({n: t if t.dtype == torch.int64 else t.float() for n, t in tensors.items()})


def golden(name, folder):
    """Writes the files of a model."""
    config = json.loads((folder / "config.json").read_text())
    single = captioners.randomise(captioners.build(config), **models.CAPTIONERS[name]["weights"])
    stored = load_file(folder / "captioner.safetensors")
    state = captioners.canonical_state(captioners.reference_state(single))
    assert stored.keys() == state.keys() and all((state[n].numpy() == stored[n]).all() for n in stored)
    model = copy.deepcopy(single).double()
    # The eager form takes the softmax in f32.
    model.config.vision_config._attn_implementation = "sdpa"
    pixels = torch.from_numpy(load_file(folder / "expected.safetensors")["pixels"][: len(LENGTHS)])
    ids = rows(config["decoder"]["vocabulary"], seed=500)
    inputs = pixels.double(), ids

    check_masks(model, *inputs)
    loss, full = gradients(model, *inputs)
    check_slope(model, *inputs)
    assert full.keys() == stored.keys() and all(full[n].shape == stored[n].shape for n in full)
    out = {"pixels": pixels, "ids": ids, "loss": loss[None]}
    for parameter, gradient in full.items():
        if name == "small" or gradient.dim() == 1:
            out["gradient." + parameter] = gradient
        else:
            out["rows." + parameter], out["columns." + parameter] = gradient.sum(1), gradient.sum(0)
    if name == "small":
        inside = ids.clone()
        inside[0, 3], inside[2, 5] = PAD, PAD
        loss, others = gradients(model, inputs[0], inside)
        out["pad_inside.ids"], out["pad_inside.loss"] = inside, loss[None]
        out["pad_inside.gradient.decoder.word_embedding"] = others["decoder.word_embedding"]
        rates = torch.tensor([learning_rate(k) for k in range(STEPS)], dtype=torch.float64)
        run = {"learning_rates": rates}
        for kind in ("full", "frozen"):
            run["losses." + kind] = train(model, *inputs, frozen=kind == "frozen")
            in_f32 = train(single, pixels, ids, frozen=kind == "frozen")
            apart = (in_f32 - run["losses." + kind]).abs()
            first, last = run["losses." + kind][0], run["losses." + kind][-1]
            print(f"{kind}: loss {first:.4f} to {last:.4f}; PyTorch in f32 is at most {apart.max():.1e} away")
        save_file(floats(run), folder / "training.safetensors")
    save_file(floats(out), folder / "gradients.safetensors")
    sizes = [g.abs().max().item() for g in full.values()]
    print(name, "loss %.4f" % out["loss"], "largest gradients of parameters %.2f to %.2f" % (min(sizes), max(sizes)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/golden/models")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for name in models.CAPTIONERS:
        golden(name, out / name)
    files = [f for f in out.rglob("*.safetensors") if f.stem in ("gradients", "training")]
    print("bytes", sum(f.stat().st_size for f in files))


if __name__ == "__main__":
    main()
