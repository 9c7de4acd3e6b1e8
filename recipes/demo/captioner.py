"""The captioner of the demo model: a small PyTorch twin of GIT whose words are speech units.

A CLIP-style vision tower (pre-LN, class token, quick GELU), a projection, and a post-LN decoder that sees
all image tokens and the units said so far. Parameter names follow the reference checkpoint
(`model.git. ...`, `model.output. ...`), so that `save` writes a file any reader of that layout can load.
Head size is 64 everywhere. Everything here is inference or plain model code; see pretrain.py.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

PAD, BOS, EOS, VOCABULARY = 0, 101, 102, 203
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Config:
    image: int = 112
    patch: int = 14
    vision_width: int = 192
    vision_layers: int = 4
    width: int = 192
    layers: int = 6
    positions: int = 128

    @property
    def grid(self):
        return self.image // self.patch


def units_to_ids(units):
    """Units 0..199 to token ids (unit 100 shares id 101 with BOS)."""
    units = np.asarray(units, np.int64)
    return np.where(units <= 100, units + 1, units + 3)


def ids_to_units(ids):
    ids = np.asarray(ids, np.int64)
    return np.where(ids <= 101, ids - 1, ids - 3)


def preprocess(image, side):
    """PIL image -> (side, side, 3) uint8: bicubic resize of the short side, centre crop."""
    w, h = image.size
    short = min(w, h)
    if short != side:
        w, h = (side, side * h // w) if w <= h else (side * w // h, side)
        image = image.resize((w, h), Image.BICUBIC)
    left, top = (w - side) // 2, (h - side) // 2
    return np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)))


def normalise(pixels):
    """(batch, side, side, 3) uint8 -> (batch, 3, side, side) float tensor."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float().mul_(1 / 255)
    return x.sub_(torch.from_numpy(MEAN)).div_(torch.from_numpy(STD)).permute(0, 3, 1, 2)


def split_heads(x):
    return x.unflatten(-1, (-1, 64)).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


def attend(q, k, v, hidden=None):
    """Plain attention; `hidden` marks pairs that must not see each other. Faster here than the fused one, whose
    backward pass is slow for short sequences on a CPU."""
    scores = (q * 0.125) @ k.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


# ---------------------------------------------------------------- vision

class VisionAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (split_heads(f(x)) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attend(q, k, v)))


class VisionMlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class VisionLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(width), VisionMlp(width)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(c.vision_width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, c.vision_width, c.patch, c.patch, bias=False)
        self.position_embedding = nn.Embedding(c.grid ** 2 + 1, c.vision_width)

    def forward(self, pixels):
        # A patch kernel is one product over (channel, row, column); faster here than a convolution.
        p = self.patch_embedding.kernel_size[0]
        x = pixels.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = F.linear(x, self.patch_embedding.weight.flatten(1))
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        return x + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = VisionEmbeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.vision_width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(c.vision_width) for _ in range(c.vision_layers))
        self.post_layernorm = nn.LayerNorm(c.vision_width)

    def forward(self, pixels):
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


# ---------------------------------------------------------------- decoder

class Part(nn.Module):
    """`dense` followed, where asked for, by a residual and `LayerNorm`."""

    def __init__(self, inputs, outputs, norm):
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        if norm:
            self.LayerNorm = nn.LayerNorm(outputs, eps=1e-12)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class DecoderLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = nn.Module()
        for name in ("query", "key", "value"):
            setattr(self.attention.self, name, nn.Linear(width, width))
        self.attention.output = Part(width, width, True)
        self.intermediate = Part(width, 4 * width, False)
        self.output = Part(4 * width, width, True)

    def forward(self, x, keys=None, values=None, hidden=None):
        """x: new rows; keys, values: those of earlier rows. Returns rows, keys, values."""
        a = self.attention.self
        q, k, v = split_heads(a.query(x)), split_heads(a.key(x)), split_heads(a.value(x))
        if keys is not None:
            k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        y = merge_heads(attend(q, k, v, hidden))
        y = self.attention.output(y, x)
        return self.output(F.gelu(self.intermediate.dense(y)), y), k, v


class Embeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, c.width)
        self.position_embeddings = nn.Embedding(c.positions, c.width)
        self.LayerNorm = nn.LayerNorm(c.width, eps=1e-12)

    def forward(self, ids, first=0):
        pos = self.position_embeddings.weight[first:first + ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + pos)


class Git(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = Embeddings(c)
        self.image_encoder = nn.Module()
        self.image_encoder.vision_model = VisionModel(c)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(DecoderLayer(c.width) for _ in range(c.layers))
        self.visual_projection = nn.Module()
        self.visual_projection.visual_projection = nn.Sequential(
            nn.Linear(c.vision_width, c.width), nn.LayerNorm(c.width))


class Captioner(nn.Module):
    def __init__(self, config=Config()):
        super().__init__()
        self.config = config
        self.git = Git(config)
        self.output = nn.Linear(config.width, VOCABULARY)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02 if isinstance(m, nn.Embedding) else m.weight.shape[1] ** -0.5)
                if isinstance(m, nn.Linear):
                    nn.init.zeros_(m.bias)
        self.output.weight = self.git.embeddings.word_embeddings.weight
        with torch.no_grad():  # positions as strong as the content from the start: else objects are hardly compared
            at = torch.arange(config.grid) / config.grid * torch.pi
            waves = torch.cat([f(at[:, None] * k) for k in range(1, config.vision_width // 4 // 4 + 1)
                               for f in (torch.sin, torch.cos)], 1)
            w, g = waves.shape[1], config.grid
            grid = self.vision.embeddings.position_embedding.weight[1:].view(g, g, -1)
            grid[..., :w] += 1.5 * waves[:, None]
            grid[..., w:2 * w] += 1.5 * waves[None]

    @property
    def vision(self):
        return self.git.image_encoder.vision_model

    def forward(self, tokens, ids):
        """Teacher forcing on vision tokens: logits for every text row."""
        image = self.git.visual_projection.visual_projection(tokens)
        text = self.git.embeddings(ids)
        t = ids.shape[1]
        hidden = torch.ones(t, image.shape[1] + t, dtype=torch.bool).triu(image.shape[1] + 1)
        # Image rows never see text, so they run by themselves and lend their keys and values.
        for layer in self.git.encoder.layer:
            new_image, k, v = layer(image)
            text, _, _ = layer(text, k, v, hidden)
            image = new_image
        return self.output(text)

    @torch.no_grad()
    def greedy(self, tokens, limit=None):
        """Vision tokens -> a list of unit arrays, one per picture."""
        limit = limit or self.config.positions
        x, cache = self.git.visual_projection.visual_projection(tokens), []
        for layer in self.git.encoder.layer:
            x, k, v = layer(x)
            cache.append((k, v))
        ids = torch.full((len(tokens), 1), BOS)
        done = torch.zeros(len(tokens), dtype=torch.bool)
        while ids.shape[1] < limit and not done.all():
            x = self.git.embeddings(ids[:, -1:], ids.shape[1] - 1)
            for i, layer in enumerate(self.git.encoder.layer):
                x, *cache[i] = layer(x, *cache[i])
            nxt = self.output(x[:, -1]).float().argmax(-1).masked_fill(done, PAD)
            ids = torch.cat([ids, nxt[:, None]], 1)
            done |= nxt == EOS
        rows = []
        for row in ids[:, 1:].numpy():
            end = np.flatnonzero((row == EOS) | (row == PAD))
            rows.append(ids_to_units(row[:end[0]] if len(end) else row))
        return rows


def save(model, path):
    """float32, reference layout; the tied matrix appears under two names and is stored once."""
    state = {"model." + k: v.detach().float().clone() for k, v in model.state_dict().items()}
    state["model.output.weight"] = state["model.git.embeddings.word_embeddings.weight"]
    torch.save({"state_dict": state}, path)


def load(path):
    """A captioner in evaluation mode; its dimensions are read from the shapes."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {k.removeprefix("model."): v for k, v in state.items()}
    tower = "git.image_encoder.vision_model."
    kernel = state[tower + "embeddings.patch_embedding.weight"]
    grid = round((len(state[tower + "embeddings.position_embedding.weight"]) - 1) ** 0.5)

    def count(prefix):
        return 1 + max(int(k[len(prefix):].split(".")[0]) for k in state if k.startswith(prefix))

    positions = state["git.embeddings.position_embeddings.weight"]
    model = Captioner(Config(grid * kernel.shape[-1], kernel.shape[-1], len(kernel), count(tower + "encoder.layers."),
                             positions.shape[1], count("git.encoder.layer."), len(positions)))
    model.load_state_dict(state)
    return model.eval()


if __name__ == "__main__":
    m = Captioner()
    print(m.config, sum(p.numel() for p in m.parameters()), "parameters")
