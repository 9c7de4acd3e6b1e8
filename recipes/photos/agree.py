"""Do im2sp and PyTorch say the same of photographs? Units of greedy captions, in f32.

    python agree.py --im2sp PATH --weights MODEL PICTURE...

PyTorch's side is the network of the package efficientnet-lite-pytorch before the GIT of transformers, with the weights
that `im2sp export --format reference` writes, and Pillow's pixels. Needs transformers, too.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from transformers import GitConfig, GitForCausalLM
from transformers.modeling_outputs import BaseModelOutput

BOS, EOS = 101, 102


class Encoder(EfficientNet):
    """The network as the image encoder of GIT: the places of its last map are the tokens."""

    def forward(self, pixel_values, **_):
        return BaseModelOutput(last_hidden_state=self.extract_features(pixel_values).flatten(2).transpose(1, 2))


class Fixed(nn.Module):
    """An encoder that has seen its picture."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *_, **__):
        return self.output


def folded(network):
    """The network without batch norms: its convolutions have biases."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                child.bias = nn.Parameter(torch.zeros(child.out_channels))
    return network


def load(checkpoint):
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("model."): value for name, value in state.items()}
    words = state["git.embeddings.word_embeddings.weight"]
    positions = state["git.embeddings.position_embeddings.weight"]
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("git.encoder.layer."))
    config = GitConfig(
        vision_config=dict(hidden_size=1280, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
                           image_size=224, patch_size=32),
        vocab_size=words.shape[0], hidden_size=words.shape[1], num_hidden_layers=layers,
        num_attention_heads=words.shape[1] // 64, max_position_embeddings=positions.shape[0],
        intermediate_size=state["git.encoder.layer.0.intermediate.dense.weight"].shape[0])
    model = GitForCausalLM(config)
    model.git.image_encoder = folded(Encoder.from_name("efficientnet-lite2", image_size=224))
    state.setdefault("output.weight", words)
    missing, left = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if "_fc" not in name and "position_ids" not in name]
    if missing or left:
        raise SystemExit(f"missing {missing[:5]}, left over {left[:5]}")
    return model.eval()


@torch.no_grad()
def greedy(model, path, limit):
    image = Image.open(path).convert("RGB").resize((224, 224), Image.BICUBIC)
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() - 127) / 128
    encoder = model.git.image_encoder
    # The picture's tokens, once.
    model.git.image_encoder = Fixed(encoder(pixels[None]))
    ids = [BOS]
    while len(ids) < limit and (len(ids) == 1 or ids[-1] != EOS):
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels[None], use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    model.git.image_encoder = encoder
    return ids


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--im2sp", default="im2sp")
    ap.add_argument("--weights", required=True)
    ap.add_argument("pictures", nargs="+")
    args = ap.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = os.path.join(folder, "model.ckpt")
        subprocess.run([args.im2sp, "export", args.weights, "--format", "reference", "-o", checkpoint], check=True,
                       stdout=subprocess.DEVNULL)
        model = load(checkpoint)
    options = ["--weights", args.weights, "--dtype", "f32", "--device", "cpu", "--no-audio", "--json"]
    done = subprocess.run([args.im2sp, "caption", *args.pictures, *options], check=True, text=True,
                          stdout=subprocess.PIPE)
    same = 0
    for path, line in zip(args.pictures, done.stdout.splitlines(), strict=True):
        ours = json.loads(line)["tokens"]
        theirs = greedy(model, path, 192)
        same += ours == theirs
        if ours != theirs:
            print(f"{path}: {ours} is not {theirs}", file=sys.stderr)
    print(f"{same} of {len(args.pictures)} captions are the same to the last unit")
    sys.exit(same < len(args.pictures))


if __name__ == "__main__":
    main()
