"""A random model of the published size in the published layout, to measure and compare with: 1.4 GB, seeded.

    python recipes/golden/full_size.py --out DIR [--eos-bias X]

Writes DIR/captioner.ckpt (GIT-large, 203 tokens), DIR/g_00950000 and DIR/config.json (unit HiFi-GAN, 200 units, weight
norm unfolded) and DIR/photo.png. By default EOS cannot be chosen, so every caption runs to its limit; a bias of about
3 gives captions that end. PAD and token 103, which no unit has, cannot be chosen either. Convert with

    im2sp convert DIR/captioner.ckpt --vocoder DIR/g_00950000 --vocoder-config DIR/config.json -o DIR/im2sp
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch

import captioners
import pipeline
import vocoder_reference

PUBLISHED = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 200,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "segment_size": 8960,
    "code_hop_size": 320,
    "f0": False,
    "num_mels": 80,
    "num_freq": 1025,
    "n_fft": 1024,
    "hop_size": 256,
    "win_size": 1024,
    "dur_prediction_weight": 1.0,
    "dur_predictor_params": {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
    "sampling_rate": 16000,
    "fmin": 0,
    "fmax": 8000,
    "fmax_for_loss": None,
    "batch_size": 16,
    "learning_rate": 0.0002,
    "adam_b1": 0.8,
    "adam_b2": 0.99,
    "lr_decay": 0.999,
    "seed": 1234,
    "num_workers": 4,
    "dist_config": {"dist_backend": "nccl", "dist_url": "env://"},
}


def photo(seed, width=640, height=480):
    """Blurred blobs of light under fine noise: as busy as a photograph, and nobody's."""
    from PIL import Image, ImageFilter

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(3)), np.float64)
    return Image.fromarray(np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8))


@torch.no_grad()
def models(seed=1, eos_bias=-1e4):
    """The captioner and the vocoder."""
    captioner = captioners.build(captioners.GIT_LARGE)
    captioners.randomise(captioner, seed, logits=2.0, positions=30.0, eos_bias=eos_bias, decoder=0.4, bf16=False)
    captioner.output.bias[[captioners.PAD, 103]] = -1e4
    vocoder = vocoder_reference.Vocoder(pipeline.published_to_ours(PUBLISHED))
    vocoder_reference.randomise(vocoder, seed)
    vocoder.dur_predictor.proj.bias.fill_(1.0)  # about two frames a unit
    return captioner, vocoder.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eos-bias", type=float, default=-1e4)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    captioner, vocoder = models(arguments.seed, arguments.eos_bias)
    torch.save({"state_dict": captioners.reference_state(captioner)}, out / pipeline.CAPTIONER)
    state = vocoder_reference.unfold(vocoder.state_dict())
    torch.save({"generator": state}, out / pipeline.VOCODER)
    (out / pipeline.CONFIG).write_text(json.dumps(PUBLISHED, indent=4) + "\n")
    photo(arguments.seed).save(out / "photo.png")
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir() if f.is_file()) / 1e9:.2f} GB, {len(state)} vocoder tensors")


if __name__ == "__main__":
    main()
