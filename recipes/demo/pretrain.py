"""Pre-train the demo captioner's vision encoder on a CPU, in two steps (run them in this order; each can be interrupted):

  pool    draw the training images once, at the network's input size, with labels for every patch
  vision  train the vision encoder to name shape, colour, and size of the object under every patch, and the
          whole scene from the class token; such dense labels make it converge within minutes

`vision` stops after --minutes of training time, follows a cosine over that time, writes a checkpoint every minute, and
continues from it when started again. Its result, DIR/vision.ckpt, is a captioner in the reference's layout whose
decoder is random: the model that `im2sp train` begins with.

    python pretrain.py STEP --work DIR [--minutes M] [--threads N]
"""
import argparse
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import captioner
import scenes
from captioner import Captioner, Config

CAPTION_SEED, POSE_SEED = 1, 2
CAPTIONS = 8000  # image i shows caption i % CAPTIONS, in a pose of its own
HELD_OUT = 50  # every 50th caption is for validation
NAMES = [scenes.SHAPES, tuple(scenes.COLOURS), tuple(scenes.SIZES)]  # the last class of each is "nothing"
CLASSES = [len(n) + 1 for n in NAMES]


# ---------------------------------------------------------------- images

def text_of(i):
    return scenes.caption(scenes.sample_scene(np.random.default_rng([CAPTION_SEED, i % CAPTIONS])))


def draw(i, config=Config()):
    """Image i: pixels, per-patch labels (patches, 3), labels of objects and relation (10), geometry, caption."""
    text = text_of(i)
    rng = np.random.default_rng([POSE_SEED, i])
    scene = scenes.scene_for(text, rng)
    size = int(rng.choice([config.image, 160, 224, 256, 320], p=[0.1, 0.2, 0.3, 0.3, 0.1]))
    pixels = captioner.preprocess(scenes.render(scene, rng, size), config.image)
    g = config.grid
    cy, cx = (np.mgrid[:g, :g] + 0.5) / g
    nothing = np.array([c - 1 for c in CLASSES], np.uint8)
    patches = np.tile(nothing, (g * g, 1))
    slots = np.tile(nothing, (3, 1))
    ordered, rel = scenes.describe(scene)
    for k, o in enumerate(ordered):
        slots[k] = [NAMES[0].index(o.shape), NAMES[1].index(o.colour), NAMES[2].index(o.size)]
        patches[(np.hypot(cx - o.x, cy - o.y) < o.radius).ravel()] = slots[k]
    relation = len(scenes.RELATIONS) if rel is None else scenes.RELATIONS.index(rel)
    return (pixels, patches, np.append(slots.ravel(), relation).astype(np.uint8), *geometry(scene), text)


def geometry(scene, config=Config()):
    """Finer labels: per patch a 7x7 mask of the objects, per object (caption order) x, y, radius."""
    g = config.grid
    mask = scenes.mask(scene, 7 * g).reshape(g, 7, g, 7).swapaxes(1, 2).reshape(g * g, 49)
    places = np.full((3, 3), 9, np.float32)  # objects that do not exist are far away
    for k, o in enumerate(scenes.describe(scene)[0]):
        places[k] = o.x, o.y, o.radius
    return mask.astype(np.uint8), places


def draw_range(first, last):
    rows = [draw(i) for i in range(first, last)]
    *parts, texts = zip(*rows)
    return first, *(np.stack(c) for c in parts), list(texts)


def make_pool(work, count, workers):
    c = Config()
    folder = os.path.join(work, "pool")
    os.makedirs(folder, exist_ok=True)
    shapes = {"pixels": (c.image, c.image, 3), "patches": (c.grid ** 2, 3), "slots": (10,),
              "masks": (c.grid ** 2, 49), "places": (3, 3)}
    arrays = [np.lib.format.open_memmap(os.path.join(folder, n + ".npy"), "w+",
                                        np.float32 if n == "places" else np.uint8, (count, *s))
              for n, s in shapes.items()]
    texts = [None] * count
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(draw_range, a, min(a + 250, count)) for a in range(0, count, 250)]
        for n, job in enumerate(jobs):
            first, *parts, names = job.result()
            for array, part in zip(arrays, parts):
                array[first:first + len(part)] = part
            texts[first:first + len(names)] = names
            if n % 16 == 15:
                print("drawn", first + len(names), flush=True)
    with open(os.path.join(folder, "captions.json"), "w") as f:
        json.dump(texts, f)


def load_pool(work):
    folder = os.path.join(work, "pool")
    names = ("pixels", "patches", "slots", "masks", "places")
    return [np.load(os.path.join(folder, n + ".npy"), mmap_mode="r") for n in names]


def held_out(i):
    return (np.asarray(i) % CAPTIONS) % HELD_OUT == 0


# ---------------------------------------------------------------- training loop

class Run:
    """Optimiser, learning rate over the wall-clock budget, moving average of the weights, checkpoints."""

    def __init__(self, path, modules, rates, minutes, decay):
        self.path, self.modules, self.rates, self.budget = path, modules, rates, minutes * 60
        self.average = [[p.detach().clone() for p in m.parameters()] for m in modules]
        self.decay, self.step, self.used = decay, 0, 0.0
        groups = []
        for m, rate in zip(modules, rates):
            for decayed in (True, False):
                ps = [p for p in m.parameters() if (p.ndim > 1) == decayed]
                groups.append({"params": ps, "weight_decay": 0.02 if decayed else 0.0, "rate": rate})
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        if os.path.exists(path):
            state = torch.load(path, weights_only=True)
            for m, s in zip(modules, state["modules"]):
                m.load_state_dict(s)
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.step, self.used = state["average"], state["step"], state["used"]
            print(f"going on at step {self.step}, {self.used / 60:.1f} min used", flush=True)
        self.mark = time.monotonic()

    def seconds(self):
        return self.used + time.monotonic() - self.mark

    def over(self):
        return self.seconds() >= self.budget

    def update(self, loss, warmup=150):
        done = min(self.seconds() / self.budget, 1.0)
        scale = min(1.0, (self.step + 1) / warmup) * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)
        for g in self.optimiser.param_groups:
            g["lr"] = g["rate"] * scale
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for m in self.modules:
            nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.decay, self.step / (self.step + 10))
        with torch.no_grad():
            for m, average in zip(self.modules, self.average):
                torch._foreach_lerp_(average, list(m.parameters()), 1 - decay)

    def swap(self):
        """Exchange weights and their average (call twice to get back)."""
        with torch.no_grad():
            for m, average in zip(self.modules, self.average):
                for p, a in zip(m.parameters(), average):
                    old = p.clone()
                    p.copy_(a)
                    a.copy_(old)

    def save(self):
        torch.save({"modules": [m.state_dict() for m in self.modules], "optimiser": self.optimiser.state_dict(),
                    "average": self.average, "step": self.step, "used": self.seconds()}, self.path + ".part")
        os.replace(self.path + ".part", self.path)


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


# ---------------------------------------------------------------- vision

class Heads(nn.Module):
    """Readers for training only: one for patches, one for the class token."""

    def __init__(self, width):
        super().__init__()
        # Classes, mask, way to the centre and radius, place of the object in the caption, relation of the scene,
        # way from the object to the middle of the other objects.
        self.parts = [*CLASSES, 49, 3, 3, len(scenes.RELATIONS) + 1, 2]
        self.patch = nn.Linear(width, sum(self.parts))
        self.scene = nn.Linear(width, 3 * sum(CLASSES) + len(scenes.RELATIONS) + 1)

    def forward(self, tokens):
        """Float logits: per patch `parts`, per scene [3 x (shape, colour, size), relation]."""
        return ([x.float() for x in self.patch(tokens[:, 1:]).split(self.parts, -1)],
                [x.float() for x in self.scene(tokens[:, 0]).split(CLASSES * 3 + [len(scenes.RELATIONS) + 1], -1)])


class Labels:
    """What is known about every image of the pool, and how well `Heads` reads it from vision tokens."""

    def __init__(self, work, config=Config()):
        _, self.patches, self.slots, self.masks, self.places = load_pool(work)
        g = config.grid
        self.centres = torch.cartesian_prod(torch.arange(g), torch.arange(g)).flip(1) / g + 0.5 / g
        self.weights = [torch.tensor([1.0] * (c - 1) + [0.25]) for c in CLASSES]

    def of(self, rows):
        patches, slots = (torch.from_numpy(x[rows].astype(np.int64)) for x in (self.patches, self.slots))
        return patches, slots, patches[..., 0] < CLASSES[0] - 1

    def geometry(self, rows):
        """Per patch: which object is nearest (B, P), the way to its centre and its radius (B, P, 3), and the way
        from it to the middle of the other objects (B, P, 2), zero if there are none."""
        at = torch.from_numpy(self.places[rows])
        there = (at[..., 2:] < 1).float()
        others = there.sum(1, keepdim=True) - there
        middle = ((at * there).sum(1, keepdim=True) - at * there)[..., :2] / others.clamp(min=1)
        apart = (middle - at[..., :2]) * (others > 0)
        nearest = (at[:, None, :, :2] - self.centres[:, None]).square().sum(-1).argmin(-1)
        row = torch.arange(len(rows))[:, None]
        mine = at[row, nearest]
        way = torch.cat([mine[..., :2] - self.centres, mine[..., 2:]], -1)
        return nearest, 10 * way, 5 * apart[row, nearest]

    def loss(self, heads, tokens, rows):
        (*named, mask, way, place, relation, apart), scene = heads(tokens)
        patches, slots, covered = self.of(rows)
        nearest, true_way, true_apart = self.geometry(rows)
        # Names of what is under each patch; shapes are hardest.
        loss = sum(share * F.cross_entropy(d.flatten(0, 1), patches[..., k].flatten(), w)
                   for k, (share, d, w) in enumerate(zip((3, 1, 1), named, self.weights)))
        # Where exactly the objects are: what shapes are made of, and learned long before their names.
        loss = loss + 2 * F.binary_cross_entropy_with_logits(mask, torch.from_numpy(self.masks[rows]).float())
        loss = loss + 2 * F.smooth_l1_loss(way[covered], true_way[covered])
        # How the objects stand to each other, and which of them to name first.
        loss = loss + 2 * F.smooth_l1_loss(apart[covered], true_apart[covered])
        loss = loss + F.cross_entropy(place[covered], nearest[covered])
        loss = loss + F.cross_entropy(relation[covered], slots[:, 9:].expand(-1, relation.shape[1])[covered])
        # The whole scene, from the class token.
        return loss + 0.5 * sum(F.cross_entropy(s, slots[:, k]) for k, s in enumerate(scene))

    def score(self, heads, tokens, rows):
        (*named, _, _, place, relation, _), scene = heads(tokens)
        patches, slots, covered = self.of(rows)
        truth = [*patches.unbind(-1), slots[:, 9:].expand(-1, relation.shape[1]), self.geometry(rows)[0]]
        right = [(guess.argmax(-1) == true)[covered].float().mean()
                 for guess, true in zip([*named, relation, place], truth)]
        items = torch.stack([s.argmax(-1) == slots[:, k] for k, s in enumerate(scene)], 1)
        return ("shape %.3f colour %.3f size %.3f relation %.3f place %.3f of covered patches, " % tuple(right)
                + f"scene items {items.float().mean():.3f}, whole scenes {items.all(1).float().mean():.3f}")


def train_vision(work, minutes, batch=32):
    torch.manual_seed(0)
    model = Captioner()
    heads = Heads(model.config.vision_width)
    run = Run(os.path.join(work, "vision.run"), [model.vision, heads], [1e-3, 1e-3], minutes, 0.998)
    pixels, labels = load_pool(work)[0], Labels(work)
    rng = np.random.default_rng([4, run.step])

    def validate():
        rows = np.flatnonzero(held_out(np.arange(len(pixels))))[:400]
        run.swap()
        with torch.no_grad(), autocast():
            text = labels.score(heads, model.vision(captioner.normalise(pixels[rows])), rows)
        run.swap()
        return text

    report, losses = run.seconds(), []
    while not run.over():
        rows = rng.integers(0, len(pixels), batch)
        rows = rows[~held_out(rows)]
        with autocast():
            tokens = model.vision(captioner.normalise(pixels[rows]))
            loss = labels.loss(heads, tokens, rows)
        run.update(loss)
        losses.append(loss.item())
        if run.seconds() - report > 60:
            report = run.seconds()
            print(f"{report / 60:5.1f} min step {run.step} loss {np.mean(losses):.3f} {validate()}", flush=True)
            losses = []
            run.save()
    run.save()
    print("vision:", validate(), flush=True)
    run.swap()
    captioner.save(model, os.path.join(work, "vision.part"))
    os.replace(os.path.join(work, "vision.part"), os.path.join(work, "vision.ckpt"))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("step", choices=["pool", "vision"])
    ap.add_argument("--work", required=True)
    ap.add_argument("--minutes", type=float, default=25, help="training time, for vision")
    ap.add_argument("--count", type=int, default=48000, help="images in the pool")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if args.step == "pool":
        make_pool(args.work, args.count, args.threads)
    else:
        train_vision(args.work, args.minutes)
