"""Drawn scenes and their captions: the whole data set of the demo model.

A scene holds one to three shapes with a colour and a size, on a coloured, noisy background. Every scene
has exactly one caption:

  one object     "a large red circle"
  two objects    the larger one first; of two equally large ones, the upper or left one
  three objects  first the one object that stands in the same relation to both others, then the others
                 from left to right (relation above/below) or from top to bottom (left of/right of)

Positions and radii are fractions of the central square of the picture, so a scene can be drawn at any
size and shape. `parse` and `agrees` judge a heard sentence, `grammar_jsgf` lists everything one may say.

    python scenes.py --seed 7 --count 10 --out DIR [--size 256 | --size 640x480] [--kind jpg]
"""
import argparse
import json
import os
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "heart", "cross", "moon")
COLOURS = {
    "red": (208, 32, 36), "green": (36, 150, 56), "blue": (36, 72, 208), "yellow": (246, 216, 40),
    "purple": (128, 44, 160), "orange": (250, 128, 24), "white": (246, 246, 246), "black": (20, 20, 22),
}
SIZES = {"small": (0.1, 0.12), "large": (0.155, 0.185)}  # range of the radius
RELATIONS = ("above", "below", "left of", "right of")
NUMBER_WEIGHTS = (0.2, 0.45, 0.35)  # share of scenes with one, two, three objects
DOMINANCE = 1.6  # the distance along a relation's axis must exceed this times the other one
GAP = 0.03  # least free space between two objects and to the border


@dataclass(frozen=True)
class Object:
    shape: str
    colour: str
    size: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.1
    angle: float = 0.0  # degrees

    def phrase(self):
        return f"a {self.size} {self.colour} {self.shape}"

    def key(self):
        return (self.size, self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    objects: tuple


# ---------------------------------------------------------------- scene -> caption

def _relation(a, b):
    """How a stands to b (by the dominant axis), and how clearly (ratio of the two distances)."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return ("left of" if dx < 0 else "right of"), abs(dx) / max(abs(dy), 1e-9)
    return ("above" if dy < 0 else "below"), abs(dy) / max(abs(dx), 1e-9)


def describe(scene):
    """(objects in the order of the caption, relation or None); ValueError for an ambiguous scene."""
    objs = scene.objects
    if len(objs) == 1:
        return objs, None
    if len(objs) == 2:
        a, b = objs
        rel, clear = _relation(a, b)
        if clear < DOMINANCE:
            raise ValueError("ambiguous relation")
        if (a.size == b.size and rel in ("below", "right of")) or (a.size, b.size) == ("small", "large"):
            a, b = b, a
        return (a, b), _relation(a, b)[0]
    found = []
    for i, a in enumerate(objs):
        others = [o for j, o in enumerate(objs) if j != i]
        (r1, c1), (r2, c2) = (_relation(a, o) for o in others)
        if r1 == r2:
            found.append((a, others, r1, min(c1, c2)))
    if len(found) != 1 or found[0][3] < DOMINANCE:
        raise ValueError("ambiguous relation")
    a, others, rel, _ = found[0]
    others.sort(key=lambda o: o.x if rel in ("above", "below") else o.y)
    return (a, *others), rel


def caption(scene):
    objs, rel = describe(scene)
    return sentence([o.key() for o in objs], rel)


def sentence(keys, rel):
    text = [f"a {s} {c} {sh}" for s, c, sh in keys]
    return text[0] if rel is None else f"{text[0]} {rel} {' and '.join(text[1:])}"


# ---------------------------------------------------------------- caption -> scene

def place(keys, rel, rng):
    """A random scene whose caption is `sentence(keys, rel)`."""
    while True:
        n = len(keys)
        radii = [rng.uniform(*SIZES[k[0]]) for k in keys]
        # Draw as if the relation were "above", then turn the picture.
        pts = [[rng.uniform(r + GAP, 1 - r - GAP) for r in radii] for _ in range(2)]
        x, y = np.array(pts)
        if n > 1:
            y[0], y[1:] = 0.55 * (y[0] - radii[0]) + radii[0] * 0.9, 1 - 0.55 * (1 - y[1:])
            turn = {"above": (x, y), "below": (x, 1 - y), "left of": (y, x), "right of": (1 - y, x)}
            x, y = turn[rel]
        if any(not (r + GAP <= v <= 1 - r - GAP) for v, r in (*zip(x, radii), *zip(y, radii))):
            continue
        if any(np.hypot(x[i] - x[j], y[i] - y[j]) < (radii[i] + radii[j]) * 1.06 + GAP
               for i in range(n) for j in range(i)):
            continue
        objs = tuple(Object(sh, c, s, float(x[i]), float(y[i]), float(radii[i]), float(rng.uniform(-14, 14)))
                     for i, (s, c, sh) in enumerate(keys))
        try:
            if caption(Scene(objs)) == sentence(keys, rel):
                return Scene(tuple(objs[i] for i in rng.permutation(n)))
        except ValueError:
            pass


def sample_scene(rng):
    """A random scene; no two of its objects share both shape and colour."""
    n = 1 + int(rng.choice(3, p=NUMBER_WEIGHTS))
    sizes, colours = tuple(SIZES), tuple(COLOURS)
    kinds = rng.choice(len(SHAPES) * len(colours), n, replace=False)
    keys = [(sizes[rng.integers(2)], colours[k % len(colours)], SHAPES[k // len(colours)]) for k in kinds]
    rel = None if n == 1 else RELATIONS[rng.integers(4)]
    if n == 2:
        if keys[0][0] == keys[1][0]:
            rel = {"below": "above", "right of": "left of"}.get(rel, rel)
        elif keys[0][0] == "small":
            keys.reverse()
    return place(keys, rel, rng)


def scene_for(text, rng):
    """A random scene having this caption."""
    return place(*parse(text), rng)


# ---------------------------------------------------------------- judging a heard sentence

_PHRASE = re.compile(rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_RELATION = re.compile("|".join(RELATIONS))


def parse(text):
    """(list of (size, colour, shape), relation or None); ValueError if the text is no caption."""
    keys, rel = _PHRASE.findall(text), _RELATION.search(text)
    rel = rel.group() if rel else None
    if not keys or sentence(keys, rel) != text or len(keys) > 3 or (rel is None) != (len(keys) == 1):
        raise ValueError(f"not a caption: {text!r}")
    return keys, rel


def agrees(scene, text):
    """Which parts of the sentence are right; `right` is objects, colours, and relation (without sizes)."""
    want, want_rel = parse(caption(scene))
    try:
        keys, rel = parse(text)
    except ValueError:
        keys, rel = [], "?"

    def column(rows, i):
        return [r[i] for r in rows]

    out = {
        "objects": column(keys, 2) == column(want, 2),
        "colours": column(keys, 1) == column(want, 1),
        "sizes": column(keys, 0) == column(want, 0),
        "relation": rel == want_rel,
    }
    out["right"] = out["objects"] and out["colours"] and out["relation"]
    out["exact"] = out["right"] and out["sizes"]
    return out


def grammar_jsgf():
    """Every valid caption, for a recogniser."""
    return "\n".join([
        "#JSGF V1.0;", "grammar scenes;",
        f"<size> = {' | '.join(SIZES)};",
        f"<colour> = {' | '.join(COLOURS)};",
        f"<shape> = {' | '.join(SHAPES)};",
        f"<relation> = {' | '.join(RELATIONS)};",
        "<object> = a <size> <colour> <shape>;",
        "public <scene> = <object> [ <relation> <object> [ and <object> ] ];", ""])


# ---------------------------------------------------------------- drawing

def _polygon(shape):
    """Outline in the unit disc, y downwards."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    if shape == "circle":
        return np.stack([0.95 * np.cos(t), 0.95 * np.sin(t)], 1)
    if shape == "square":
        return 0.80 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    if shape == "triangle":
        a = np.radians([-90, 30, 150])
        return np.stack([np.cos(a), np.sin(a)], 1) + [0, 0.1]
    if shape == "heart":
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 2.0], 1) / 16.5
    if shape == "cross":
        w = 0.3
        return 0.95 * np.array([[-w, -1], [w, -1], [w, -w], [1, -w], [1, w], [w, w],
                                [w, 1], [-w, 1], [-w, w], [-1, w], [-1, -w], [-w, -w]])
    if shape == "moon":  # a disc without a shifted smaller disc; horns to the right
        outer = np.linspace(np.radians(52), np.radians(308), 44)
        cx = 0.55
        rad = np.hypot(np.cos(outer[0]) - cx, np.sin(outer[0]))
        a0 = np.arctan2(np.sin(outer[0]), np.cos(outer[0]) - cx)
        inner = np.linspace(2 * np.pi - a0, a0, 36)
        pts = np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1),
                              np.stack([cx + rad * np.cos(inner), rad * np.sin(inner)], 1)[1:-1]])
        return pts * 0.97 + [0.12, 0]
    raise ValueError(shape)


_OUTLINES = {s: _polygon(s) for s in SHAPES}


def outline(o):
    """Corners of an object, in fractions of the picture's side."""
    a = np.radians(o.angle)
    pts = _OUTLINES[o.shape] @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return pts * o.radius + (o.x, o.y)


def mask(scene, size):
    """(size, size) bool: which pixels belong to an object."""
    img = Image.new("L", (size * 4, size * 4))
    for o in scene.objects:
        ImageDraw.Draw(img).polygon([(float(x), float(y)) for x, y in outline(o) * size * 4], fill=255)
    return np.asarray(img.reduce(4)) > 127


def _background(colours, rng):
    """A colour that stands out against all object colours (the best of the draws if none is good)."""
    best, best_distance = None, -1.0
    for _ in range(40):
        rgb = rng.uniform(25, 235, 3)
        grey = rgb.mean()
        rgb = grey + (rgb - grey) * 0.75
        d = min(np.sqrt(np.dot((rgb - c) ** 2, (0.9, 1.4, 0.7))) for c in colours)
        if d > best_distance:
            best, best_distance = rgb, d
        if d > 115:
            break
    return best


def render(scene, rng, size=256):
    """Draw the scene; `size` is a side length or (width, height). Returns a PIL image."""
    width, height = (size, size) if isinstance(size, int) else size
    side, factor = min(width, height), 2
    left, top = (width - side) / 2, (height - side) / 2
    colours = [np.clip(np.array(COLOURS[o.colour]) + rng.uniform(-12, 12, 3), 0, 255) for o in scene.objects]
    ground = _background(colours, rng)
    img = Image.new("RGB", (width * factor, height * factor), tuple(int(v) for v in ground))
    draw = ImageDraw.Draw(img)
    for o, c in zip(scene.objects, colours):
        pts = (outline(o) * side + (left, top)) * factor
        draw.polygon([(float(px), float(py)) for px, py in pts], fill=tuple(int(v) for v in c))
    pix = np.asarray(img.reduce(factor), np.float32)
    gx, gy = rng.uniform(-0.1, 0.1, 2)  # light falls off to one side
    light = (1 + gx * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
             + gy * np.linspace(-1, 1, height, dtype=np.float32)[:, None])
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(2, 12))
    return Image.fromarray(np.clip(pix * light[..., None] + noise, 0, 255).astype(np.uint8))


def save(folder, seed, count, size=256, kind="png"):
    """Write `count` pictures and captions.json; returns [(file name, scene, caption)]."""
    os.makedirs(folder, exist_ok=True)
    rows = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scene = sample_scene(rng)
        name = f"scene_{i:04d}.{kind}"
        render(scene, rng, size).save(os.path.join(folder, name))
        rows.append((name, scene, caption(scene)))
    with open(os.path.join(folder, "captions.json"), "w") as f:
        json.dump({name: text for name, _, text in rows}, f, indent=1)
    return rows


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--count", type=int, default=10)
    ap.add_argument("--out", required=True)
    ap.add_argument("--size", default="256", help="side length, or WIDTHxHEIGHT")
    ap.add_argument("--kind", choices=("png", "jpg"), default="png")
    args = ap.parse_args()
    wh = [int(v) for v in args.size.split("x")]
    for name, _, text in save(args.out, args.seed, args.count, wh[0] if len(wh) == 1 else tuple(wh), args.kind):
        print(name, text)
