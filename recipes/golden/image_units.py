"""A tiny image-unit model: ViT-VQGAN tokenizer and codebook as pickled modules, the captioner as the reference saves it,
and what plain PyTorch makes of them.

    python recipes/golden/image_units.py tests/golden/image_units

tokenizer.ckpt            nn.Sequential(encoder, linear), a whole module of the ViT-VQGAN code's classes
codebook.ckpt             391 codes as a tensor; codebook_parameter.ckpt the same as a parameter
captioner.ckpt            {"state_dict"} of the unit-input captioner, the tokenizer's tensors among it
expected.safetensors      pixels, features, ids, code vectors, tower, image tokens and greedy tokens; a scene of noise,
                          Pillow's resize of it without its aspect, and its ids; loss and gradients of a training batch
tokens.data.bin.gz, tokens.index.npy.gz, tokens-label.txt   ids of three images of 32x32 in the layout of token files

Classes have the names and the attributes of the ViT-VQGAN code and of timm's vision transformer; the arithmetic is
written here. Made with PyTorch 2.15, transformers 5.23, einops 0.8, numpy 2.4, Pillow 13.0.
"""

import gzip
import io
import sys
import types
from pathlib import Path

import numpy as np
import torch
from einops.layers.torch import Rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

import captioners

GRID, PATCH, WIDTH, DEPTH, HEADS, MLP, CODES, CODE = 8, 4, 32, 2, 2, 48, 391, 32
CROP, TOWER, TOWER_LAYERS, TOWER_MLP = 6, 64, 2, 72


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        inner = 64 * heads
        self.heads, self.scale = heads, 64**-0.5
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, self.heads, 64).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1))
        attended = self.attend(q @ k.transpose(-1, -2) * self.scale) @ v
        return self.to_out(attended.transpose(1, 2).reshape(b, n, -1))


class Transformer(nn.Module):
    def __init__(self, dim, depth, heads, hidden):
        super().__init__()
        layer = lambda: nn.ModuleList([PreNorm(dim, Attention(dim, heads)), PreNorm(dim, FeedForward(dim, hidden))])
        self.layers = nn.ModuleList([layer() for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        for attention, mlp in self.layers:
            x = attention(x) + x
            x = mlp(x) + x
        return self.norm(x)


class ViTEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(3, WIDTH, PATCH, PATCH), Rearrange("b c h w -> b (h w) c"))
        self.en_pos_embedding = nn.Parameter(positions(WIDTH, GRID), requires_grad=False)
        self.transformer = Transformer(WIDTH, DEPTH, HEADS, MLP)

    def forward(self, x):
        return self.transformer(self.to_patch_embedding(x) + self.en_pos_embedding)


def positions(width, grid):
    def half(at):
        omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
        angles = at.reshape(-1, 1) * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], 1)

    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    table = np.concatenate([half(columns), half(rows)], 1)
    return torch.from_numpy(table.astype(np.float32))[None]


def as_published():
    """Puts the classes where the published pickle has them."""
    names = ["enhancing", "enhancing.modules", "enhancing.modules.stage1", "enhancing.modules.stage1.layers"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for kind in [PreNorm, FeedForward, Attention, Transformer, ViTEncoder]:
        kind.__module__ = names[-1]
        setattr(sys.modules[names[-1]], kind.__name__, kind)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(TOWER, eps=1e-6), nn.LayerNorm(TOWER, eps=1e-6)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(TOWER, 3 * TOWER), nn.Linear(TOWER, TOWER)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(TOWER, TOWER_MLP), nn.Linear(TOWER_MLP, TOWER)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).view(b, n, 3, c // 64, 64).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-1, -2) * 64**-0.5).softmax(-1) @ v
        x = x + self.attn.proj(attended.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Tower(nn.Module):
    """timm's vision transformer over code vectors, without its last norm and its head."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, TOWER))
        self.pos_embed = nn.Parameter(torch.zeros(1, (CROP // 2) ** 2 + 1, TOWER))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(CODE, TOWER, 4, 2, 1)
        self.blocks = nn.ModuleList([Block() for _ in range(TOWER_LAYERS)])
        self.norm, self.head = nn.LayerNorm(TOWER, eps=1e-6), nn.Linear(TOWER, 10)

    def forward(self, codes, **_):
        x = self.patch_embed.proj(codes).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class Vision(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.vision_model = tower

    def forward(self, pixel_values, **_):
        return BaseModelOutput(last_hidden_state=self.vision_model(pixel_values))


@torch.no_grad()
def randomise(module, generator, gain=1.0):
    for name, parameter in module.named_parameters():
        if "en_pos" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1 and not name.endswith(("cls_token", "pos_embed")):
            noise *= gain / parameter[0].numel() ** 0.5
        else:
            noise *= 0.2
        scale = "norm" in name and name.endswith("weight")
        # Values that bf16 holds, so that a model stored in it is the same.
        parameter.copy_((noise + scale).bfloat16())


@torch.no_grad()
def assign(features, codes):
    z, c = F.normalize(features, dim=-1), F.normalize(codes, dim=-1)
    distance = z.square().sum(-1, keepdim=True) + c.square().sum(-1) - 2 * z @ c.T
    two = distance.topk(2, -1, largest=False).values
    assert (two[..., 1] - two[..., 0]).min() > 1e-5, "a near tie: choose another seed"
    return distance.argmin(-1)


@torch.no_grad()
def greedy(model, codes, limit):
    rows = []
    for image in codes:
        ids = [captioners.BOS]
        while len(ids) < limit and (len(ids) == 1 or ids[-1] != captioners.EOS):
            out = model(input_ids=torch.tensor([ids]), pixel_values=image[None], use_cache=False)
            ids.append(int(out.logits[0, -1].argmax()))
        rows.append(ids + [0] * (limit - len(ids)))
    return torch.tensor(rows)


@torch.enable_grad()
def gradients(model, codes, expected):
    """The mean loss of two images with a row of tokens each, and gradients by the names of captioner.safetensors."""
    ids = torch.tensor([[101, 5, 9, 150, 9, 102], [101, 77, 5, 102, 0, 0]])
    model.zero_grad()
    logits = model(pixel_values=codes[:2], input_ids=ids[:, :-1], use_cache=False).logits[:, -ids.shape[1] + 1 :]
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    loss.backward()
    tower, block = model.git.image_encoder.vision_model, model.git.image_encoder.vision_model.blocks[0]
    parts = {"patch_embedding": tower.patch_embed.proj, "layers.0.attention_norm": block.norm1}
    parts |= {"layers.0.qkv": block.attn.qkv, "layers.0.attention_out": block.attn.proj}
    parts |= {"layers.0.mlp_norm": block.norm2, "layers.0.fc1": block.mlp.fc1, "layers.0.fc2": block.mlp.fc2}
    values = [(part, *named) for part, module in parts.items() for named in module.named_parameters()]
    named = {f"vision.{part}.{name}": value for part, name, value in values}
    named |= {"vision.class_embedding": tower.cls_token, "vision.position_embedding": tower.pos_embed}
    del named["vision.patch_embedding.bias"]  # trained as part of the positions
    expected |= {"gradient." + name: value.grad.flatten() for name, value in named.items()}
    expected |= {"train_ids": ids, "train_loss": loss.detach().reshape(1)}


def token_files(folder, ids):
    data, offsets = b"", [0]
    for image in ids.tolist():
        data += b"".join(bytes([255, i - 255] if i >= 255 else [i]) for i in image)
        offsets.append(len(data))
    index = io.BytesIO()
    np.save(index, np.array(offsets, dtype=np.int64))
    (folder / "tokens.data.bin.gz").write_bytes(gzip.compress(data, mtime=0))
    (folder / "tokens.index.npy.gz").write_bytes(gzip.compress(index.getvalue(), mtime=0))
    (folder / "tokens-label.txt").write_text("".join(f"{7 * i}\n" for i in range(len(ids))))


@torch.no_grad()
def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    as_published()
    generator = torch.Generator().manual_seed(5)
    tokenizer = nn.Sequential(ViTEncoder(), nn.Linear(WIDTH, CODE)).eval()
    randomise(tokenizer, generator, gain=1.5)
    codebook = torch.randn(CODES, CODE, generator=generator).bfloat16().float() * 0.5
    # Areas of colours, and features around zero, so that many codes are used.
    pixels = torch.rand(4, 3, GRID, GRID, generator=generator).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    pixels = (0.8 * pixels + 0.2 * torch.rand(pixels.shape, generator=generator)).contiguous()
    tokenizer[1].bias.sub_(tokenizer(pixels).mean((0, 1))).copy_(tokenizer[1].bias.bfloat16())
    features = tokenizer(pixels)
    ids = assign(features, codebook)
    torch.save(tokenizer, folder / "tokenizer.ckpt")
    torch.save(codebook, folder / "codebook.ckpt")
    torch.save(nn.Parameter(codebook), folder / "codebook_parameter.ckpt")

    parts = captioners.dimensions(CROP // 2 * 4, (4, TOWER, 1, 64), (64, 2, 96, 203, 48))
    model = captioners.build(parts)
    captioners.randomise(model, 11, gain=1.5, logits=2.0)
    tower = Tower()
    randomise(tower, generator, gain=1.2)
    model.git.image_encoder = Vision(tower)
    codes = codebook[ids].view(-1, GRID, GRID, CODE).permute(0, 3, 1, 2)
    first = (GRID - CROP) // 2
    codes = codes[:, :, first : first + CROP, first : first + CROP]
    state = {"tokenizer." + name: tensor for name, tensor in tokenizer.state_dict().items()}
    torch.save({"state_dict": state | captioners.reference_state(model)}, folder / "captioner.ckpt")

    seen = tower(codes)
    expected = {
        "pixels": pixels,
        "features": features,
        "ids": ids,
        "codes": codes.contiguous(),
        "vision": seen,
        "image_tokens": model.git.visual_projection(seen),
        "tokens": greedy(model, codes, 24),
    }
    gradients(model, codes, expected)
    scene = np.random.default_rng(3).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    side = GRID * PATCH
    resized = np.asarray(Image.fromarray(scene).resize((side, side), Image.BICUBIC))
    expected["scene"] = torch.from_numpy(scene.astype(np.int64))
    resized = torch.from_numpy(resized.astype(np.float32) / np.float32(255))
    expected["scene_pixels"] = resized.permute(2, 0, 1).contiguous()
    expected["scene_ids"] = assign(tokenizer(expected["scene_pixels"][None]), codebook)
    expected["token_ids"] = torch.randint(0, CODES, (3, 1024), generator=generator)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    token_files(folder, expected["token_ids"])
    print(expected["tokens"], ids.unique().numel(), "different codes")


main(Path(sys.argv[1]))
