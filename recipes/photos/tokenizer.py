"""Make an image tokenizer out of a captioner of photographs, and the captioner of its units to begin with.

    python tokenizer.py --model MODEL --pictures DIR --list TRAIN.txt --out DIR

MODEL is a directory of im2sp whose captioner sees through an EfficientNet-lite (run.sh makes one). What its projection
lets through of a token is turned to principal axes, which are dealt to as many vectors as the token gets units, so that
each vector has its share of large ones and small ones; with a constant at the end their directions are as near as the
vectors are. All have one codebook, by k-means on the sphere. Nothing is trained by gradients, and no caption is used
but those that the projection was trained with. Only pictures named in the list are opened; the last of them
(--held-out) are measured, not used. In the folder of the result:

  tokenizer/   EfficientNet-lite, projection and codebook, for im2sp tokenize
  begin/       a captioner of units: a stem that makes tokens of codes by least squares, a transformer that passes them
               on until it is trained, and the decoder of MODEL, for im2sp train
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file


class EfficientNet:
    """The encoder of a model directory, batch norms folded."""

    def __init__(self, config, weights):
        self.config = config["vision"]["efficient_net"]
        self.weights = weights

    def convolution(self, x, name, taps, stride=1, depthwise=False, relu=True):
        weight, bias = (self.weights[f"vision.{name}.{kind}"] for kind in ("weight", "bias"))
        weight = weight.view(len(weight), -1, taps, taps)
        # Zeros around, so that the result has a place for every stride; one that is left over goes behind.
        spare = [max((-(-side // stride) - 1) * stride + taps - side, 0) for side in (x.shape[3], x.shape[2])]
        x = F.pad(x, [part for sum in spare for part in (sum // 2, sum - sum // 2)])
        x = F.conv2d(x, weight, bias, stride, groups=len(weight) if depthwise else 1)
        return F.relu6(x) if relu else x

    def __call__(self, x):
        """Normalised pixels (B, 3, side, side) to tokens (B, T, C)."""
        x = self.convolution(x, "stem", 3, 2)
        number = 0
        for stage in self.config["stages"]:
            for block in range(stage["blocks"]):
                before, name, stride = x, f"blocks.{number}", 1 if block else stage["stride"]
                if stage["expansion"] != 1:
                    x = self.convolution(x, f"{name}.expand", 1)
                x = self.convolution(x, f"{name}.depthwise", stage["taps"], stride, depthwise=True)
                x = self.convolution(x, f"{name}.project", 1, relu=False)
                if stride == 1 and before.shape == x.shape:
                    x = x + before
                number += 1
        return self.convolution(x, "head", 1).flatten(2).transpose(1, 2)


@torch.inference_mode()
def projected(args, config, weights):
    """What the projection makes of the listed pictures, before its norm: (N, T, W)."""
    image = config["image"]
    mean, std = (torch.tensor(image[kind]).view(3, 1, 1) for kind in ("mean", "std"))
    names = args.list.read_text().split()

    def read(name):
        picture = Image.open(args.pictures / name).convert("RGB")
        pixels = np.asarray(picture.resize((image["size"], image["size"]), Image.BICUBIC))
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std

    weights = {name: value.to(args.device) for name, value in weights.items()}
    net, parts = EfficientNet(config, weights), []
    matrix, bias = (weights[f"projection.linear.{kind}"] for kind in ("weight", "bias"))
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(names), 32):
            pixels = torch.stack(list(pool.map(read, names[start : start + 32]))).to(args.device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            parts.append(F.linear(net(pixels), matrix, bias).cpu())
            if start % 640 == 0:
                print(f"pictures {start} of {len(names)}", flush=True)
    return torch.cat(parts)


class Quantizer:
    """Principal axes of tokens (N, W), dealt to vectors, and the codes of the vectors."""

    def __init__(self, tokens, vectors, axes, constant, codes):
        self.mean = tokens.mean(0)
        centred = tokens - self.mean
        spread, turn = torch.linalg.eigh(centred.T @ centred / len(tokens))
        # The largest axis first; forth and back, so that no vector has the larger axis of every round.
        order = spread.argsort(descending=True)[: vectors * axes].view(axes, vectors)
        order[1::2] = order[1::2].flip(1)
        self.axes = turn[:, order.T.flatten()] / spread.max().sqrt()  # (W, vectors * axes)
        self.constant, self.vectors = constant, vectors
        seen = self.directions(tokens).flatten(0, 1)
        self.codes = k_means(seen[torch.randperm(len(seen))[:400_000]], codes)
        # What the codes of a token have to be multiplied with to give the token.
        chosen = self.chosen(tokens)
        middle = chosen.mean(0)
        spread = (chosen - middle).T @ (chosen - middle) / len(chosen)
        common = (chosen - middle).T @ centred / len(chosen)
        self.back = torch.linalg.solve(spread + 1e-4 * torch.eye(len(spread)), common)  # (vectors * values, W)
        self.bias = self.mean - middle @ self.back

    def directions(self, tokens):
        """Tokens (N, W) to vectors of length one (N, vectors, values)."""
        vectors = ((tokens - self.mean) @ self.axes).unflatten(1, (self.vectors, -1))
        return F.normalize(F.pad(vectors, (0, 1), value=self.constant), dim=-1)

    def chosen(self, tokens):
        """The nearest codes of tokens (N, W), one after the other: (N, vectors * values)."""
        vectors = self.directions(tokens)
        nearest = [(part @ self.codes.T).argmax(-1) for part in vectors.split(8192)]
        return self.codes[torch.cat(nearest)].flatten(1)

    def explained(self, tokens):
        """Share of the variance of tokens (N, W) that is in their codes."""
        error = self.chosen(tokens) @ self.back + self.bias - tokens
        return 1 - (error.square().mean() / (tokens - self.mean).square().mean()).item()

    def projection(self):
        """Weight and bias of the layer from tokens (W) to all vectors."""
        weight = F.pad(self.axes.T.unflatten(0, (self.vectors, -1)), (0, 0, 0, 1))
        bias = F.pad(-(self.mean @ self.axes).unflatten(0, (self.vectors, -1)), (0, 1), value=self.constant)
        return weight.flatten(0, 1), bias.flatten()


def k_means(x, count, rounds=25):
    """Centres of the directions x (N, W): (count, W), of length one."""
    centres = x[:count].clone()
    for _ in range(rounds):
        nearest = torch.cat([(part @ centres.T).argmax(-1) for part in x.split(65536)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        empty = sums.norm(dim=1) == 0
        centres = F.normalize(sums, dim=1)
        centres[empty] = x[torch.randint(len(x), (int(empty.sum()),))]
    return centres


def write(folder, name, config, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / f"{name}.safetensors")
    file = "config.json" if name == "captioner" else f"{name}.json"
    (folder / file).write_text(json.dumps(config, indent=2) + "\n")


def write_tokenizer(folder, config, stored, quantizer, side):
    weight, bias = quantizer.projection()
    before, before_bias = (stored[f"projection.linear.{kind}"].float() for kind in ("weight", "bias"))
    tensors = {name: value for name, value in stored.items() if name.startswith("vision.")}
    tensors |= {"projection.weight": weight @ before, "projection.bias": weight @ before_bias + bias,
                "codebook": quantizer.codes}
    codes, values = quantizer.codes.shape
    vision = config["vision"]
    write(folder, "tokenizer", {
        "format": config["format"], "image": config["image"], "width": vision["width"],
        "efficient_net": vision["efficient_net"], "token_units": side, "codes": codes, "code_width": values}, tensors)


def write_captioner(folder, config, stored, quantizer, side, tokens, layers):
    """A captioner that begins with the tokens that the codes give, by the names of a model directory."""
    (codes, values), width = quantizer.codes.shape, config["decoder"]["width"]
    mlp = 4 * width
    stem = quantizer.back.view(side * side, values, width).permute(2, 1, 0)
    tensors = {name: value.float() for name, value in stored.items() if name.startswith(("decoder.", "projection.norm"))}
    tensors |= {
        "vision.codebook": quantizer.codes, "vision.class_embedding": quantizer.mean,
        "vision.position_embedding": torch.zeros(tokens * tokens + 1, width),
        "vision.patch_embedding.weight": stem.flatten(1), "vision.patch_embedding.bias": quantizer.bias,
        "projection.linear.weight": torch.eye(width), "projection.linear.bias": torch.zeros(width)}
    for n in range(layers):
        for name, rows, columns, scale in [("qkv", 3 * width, width, 0.02), ("attention_out", width, width, 0),
                                           ("fc1", mlp, width, 0.02), ("fc2", width, mlp, 0)]:
            tensors[f"vision.layers.{n}.{name}.weight"] = torch.randn(rows, columns) * scale
            tensors[f"vision.layers.{n}.{name}.bias"] = torch.zeros(rows)
        for name in ("attention_norm", "mlp_norm"):
            tensors[f"vision.layers.{n}.{name}.weight"] = torch.ones(width)
            tensors[f"vision.layers.{n}.{name}.bias"] = torch.zeros(width)
    units = {"grid": tokens * side, "crop": tokens * side, "codes": codes, "code_width": values, "stride": side,
             "padding": 0, "projection_eps": config["vision"]["eps"], "token_units": side}
    vision = {"patch": side, "width": width, "layers": layers, "heads": width // 64, "mlp": mlp, "eps": 1e-6,
              "units": units}
    kept = {name: config[name] for name in ("format", "image", "decoder")}
    write(folder, "captioner", kept | {"vision": vision}, tensors)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, required=True)
    ap.add_argument("--pictures", type=Path, required=True)
    ap.add_argument("--list", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--side", type=int, default=4, help="units of a token along each side")
    ap.add_argument("--codes", type=int, default=391)
    ap.add_argument("--axes", type=int, default=6, help="principal axes in a vector")
    ap.add_argument("--constant", type=float, default=3.0, help="at the end of a vector, in deviations of the first axis")
    ap.add_argument("--layers", type=int, default=2, help="of the transformer over units")
    ap.add_argument("--held-out", type=int, default=200)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--threads", type=int)
    args = ap.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    config = json.loads((args.model / "config.json").read_text())
    if not config["vision"].get("efficient_net"):
        raise SystemExit(f"{args.model}/config.json: the captioner does not see through an EfficientNet-lite")
    if config["decoder"]["width"] % 64:
        raise SystemExit(f"{args.model}: a decoder of {config['decoder']['width']} channels, expected a multiple of 64")
    if args.side**2 * args.axes > config["decoder"]["width"]:
        raise SystemExit(f"{args.side**2} vectors of {args.axes} axes are more than a token of {args.model} has")
    stored = load_file(args.model / "captioner.safetensors")
    tokens = projected(args, config, {name: value.float() for name, value in stored.items()})
    split = len(tokens) - args.held_out
    if args.held_out < 1 or split * tokens.shape[1] * args.side**2 < args.codes:
        raise SystemExit(f"{len(tokens)} pictures are too few for {args.codes} codes and {args.held_out} held out")
    used, held_out = tokens[:split].flatten(0, 1), tokens[split:].flatten(0, 1)
    quantizer = Quantizer(used, args.side**2, args.axes, args.constant, args.codes)
    print(f"explained of {len(used)} tokens: {quantizer.explained(used):.3f}, "
          f"of {len(held_out)} others: {quantizer.explained(held_out):.3f}")
    write_captioner(args.out / "begin", config, stored, quantizer, args.side, int(tokens.shape[1]**0.5), args.layers)
    write_tokenizer(args.out / "tokenizer", config, stored, quantizer, args.side)


if __name__ == "__main__":
    main()
