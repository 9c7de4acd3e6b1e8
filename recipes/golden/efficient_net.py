"""A tiny captioner that sees through an EfficientNet-lite, as PyTorch saves it, and what PyTorch makes of it.

    python recipes/golden/efficient_net.py tests/golden/efficient_net

captioner.ckpt             {"state_dict"}: the network of the package efficientnet-lite-pytorch under `git.image_encoder.`,
                           batch norms and classifier included, before the decoder of a GIT captioner
preprocessor_config.json   the squares of 40 pixels that it takes
expected.safetensors       pixels, features, image tokens and greedy tokens; loss of a training batch and the gradients of
                           the projection

The network is built by the package, with fewer channels than a published one. Made with PyTorch 2.15, transformers 5.23,
efficientnet-lite-pytorch 0.1.0.
"""
import json
import sys
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import BlockDecoder, efficientnet_lite
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

import captioners

SIZE, WIDTH = 40, 72
STAGES = [
    "r1_k3_s11_e1_i32_o8",
    "r2_k3_s22_e6_i8_o12",
    "r2_k5_s22_e6_i12_o16",
    "r2_k3_s22_e4_i16_o20",
    "r2_k5_s11_e3_i20_o24",
    "r3_k5_s22_e2_i24_o28",
    "r1_k3_s11_e2_i28_o36",
]


class Encoder(EfficientNet):
    """The network as the image encoder of GIT: the pixels of its last map are the tokens."""

    def forward(self, pixel_values, **_):
        return BaseModelOutput(last_hidden_state=self.extract_features(pixel_values).flatten(2).transpose(1, 2))


@torch.no_grad()
def network(generator):
    _, parameters = efficientnet_lite(image_size=SIZE)
    encoder = Encoder(BlockDecoder.decode(STAGES), parameters).eval()
    encoder._conv_head = nn.Conv2d(36, WIDTH, 1, bias=False)
    encoder._bn1 = nn.BatchNorm2d(WIDTH, eps=encoder._bn1.eps).eval()
    encoder._fc = nn.Linear(WIDTH, 5)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.copy_(noise * (2 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, mean, deviation in [(module.weight, 1, 0.2), (module.bias, 0.3, 0.4), (module.running_mean, 0, 0.3)]:
                tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(0.5 + 2 * torch.rand(module.running_var.shape, generator=generator))
            module.num_batches_tracked.fill_(7)
    return encoder


@torch.no_grad()
def greedy(model, pixels, limit):
    rows = []
    for image in pixels:
        ids = [captioners.BOS]
        while len(ids) < limit and (len(ids) == 1 or ids[-1] != captioners.EOS):
            logits = model(input_ids=torch.tensor([ids]), pixel_values=image[None], use_cache=False).logits[0, -1]
            two = logits.topk(2).values
            assert two[0] - two[1] > 1e-3, "a near tie: choose another seed"
            ids.append(int(logits.argmax()))
        rows.append(ids + [0] * (limit - len(ids)))
    return torch.tensor(rows)


def training(model, pixels):
    """The mean loss of two images with a row of tokens each, and gradients of the projection."""
    ids = torch.tensor([[101, 5, 9, 150, 9, 102], [101, 77, 5, 102, 0, 0]])
    model.zero_grad()
    logits = model(pixel_values=pixels, input_ids=ids[:, :-1], use_cache=False).logits[:, -ids.shape[1] + 1 :]
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    loss.backward()
    linear, norm = model.git.visual_projection.visual_projection
    values = {"linear.weight": linear.weight, "linear.bias": linear.bias, "norm.weight": norm.weight, "norm.bias": norm.bias}
    gradients = {f"gradient.projection.{name}": value.grad.flatten() for name, value in values.items()}
    return gradients | {"train_ids": ids, "train_loss": loss.detach().reshape(1)}


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    model = captioners.build(captioners.dimensions(SIZE, (20, WIDTH, 1, 64), (64, 1, 96, 203, 48)))
    captioners.randomise(model, 11, gain=1.5, logits=2.0)
    model.git.image_encoder = network(generator)
    pixels = torch.rand(2, 3, 8, 8, generator=generator).repeat_interleave(5, 2).repeat_interleave(5, 3)
    pixels = (2 * (0.7 * pixels + 0.3 * torch.rand(pixels.shape, generator=generator)) - 1).contiguous()
    torch.save({"state_dict": captioners.reference_state(model)}, folder / "captioner.ckpt")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    with torch.no_grad():
        features = model.git.image_encoder(pixels).last_hidden_state
        image_tokens = model.git.visual_projection(features)
    expected = {
        "pixels": pixels,
        "features": features,
        "image_tokens": image_tokens,
        "tokens": greedy(model, pixels, 24),
    } | training(model, pixels)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    print(expected["tokens"], features.std(), (features == 0).float().mean(), (features == 6).float().mean())


main(Path(sys.argv[1]))
