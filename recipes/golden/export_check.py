"""What `im2sp export` makes, loaded by PyTorch and transformers: equal weights, equal logits, or exit code 1.

    python recipes/golden/export_check.py --im2sp target/release/im2sp [--full DIR]

Exports the golden models in both forms, from f32 and bf16 directories. Every form has to give the same logits, bit for
bit, and those of the golden data within a tolerance; transformers' generate has to give the golden captions, and its
image processor the pixels of the configuration. DIR is made by full_size.py: its captioner.ckpt is converted and
exported, and both forms have to give its own logits. The golden models have to be the ones in tests/golden/models.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, GitForCausalLM, utils

import captioners
from captioners import BOS, EOS

GOLDEN = Path(__file__).parents[2] / "tests/golden/models"


class Reference(nn.Module):
    """As the reference holds its model, loaded strictly."""

    def __init__(self, dimensions, checkpoint):
        super().__init__()
        self.model = captioners.build(dimensions)
        for mapped in (False, True):
            loaded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=mapped)
            state = loaded["state_dict"]
            self.load_state_dict(state)
        words, output = state["model.git.embeddings.word_embeddings.weight"], state["model.output.weight"]
        assert words.data_ptr() == output.data_ptr(), "the tied matrix is stored twice"


def run(*arguments):
    subprocess.run([str(argument) for argument in arguments], check=True, stdout=subprocess.DEVNULL)


def load_both(im2sp, source, dimensions, folder):
    """The models that the two exports of a model directory give."""
    hf, checkpoint = folder / "hf", folder / "reference.ckpt"
    run(im2sp, "export", source, "--format", "hf", "-o", hf, "--force")
    run(im2sp, "export", source, "--format", "reference", "-o", checkpoint, "--force")
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    model, said = GitForCausalLM.from_pretrained(hf, output_loading_info=True)
    assert not any(said.values()), said
    assert model.dtype == torch.float32 and model.output.weight is model.git.embeddings.word_embeddings.weight
    assert type(AutoModelForCausalLM.from_pretrained(hf)) is GitForCausalLM
    assert AutoConfig.from_pretrained(hf).vocab_size == dimensions["decoder"]["vocabulary"]
    reference = Reference(dimensions, checkpoint).eval()
    assert model.config.vision_config.layer_norm_eps == dimensions["vision"]["eps"]
    assert model.config.layer_norm_eps == dimensions["decoder"]["eps"]
    return model.eval(), reference.model, hf


def check_processor(hf, dimensions):
    """A large picture, resized, cropped and scaled, against the same by hand."""
    size = dimensions["image"]["size"]
    processor = AutoImageProcessor.from_pretrained(hf, backend="pil")
    picture = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    mean, std = (np.float32(dimensions["image"][name]) for name in ("mean", "std"))
    expected = ((np.float32(picture) / 255 - mean) / std).transpose(2, 0, 1)
    assert pixels.shape == expected.shape and np.abs(pixels - expected).max() < 1e-5


@torch.inference_mode()
def logits(model, pixels, text):
    return model(pixel_values=pixels, input_ids=text, use_cache=False).logits[:, -text.shape[1] :]


def check_same(models, pixels, text):
    """Equal parameters and equal logits, bit for bit. Returns the logits."""
    states = [dict(model.named_parameters()) for model in models]
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)
    all_logits = [logits(model, pixels, text) for model in models]
    assert all(torch.equal(one, all_logits[0]) for one in all_logits)
    return all_logits[0]


def check_golden(im2sp, source, folder):
    dimensions = json.loads((source / "config.json").read_text())
    expected = load_file(source / "expected.safetensors")
    runs = json.loads((source / "tokens.json").read_text())
    for dtype in ("f32", "bf16"):
        stored = folder / f"{source.name}-{dtype}"
        run(im2sp, "convert", source, "--dtype", dtype, "-o", stored, "--force")
        model, reference, hf = load_both(im2sp, stored, dimensions, folder)
        found = check_same([model, reference], expected["pixels"][: len(expected["text"])], expected["text"])
        difference = (found - expected["logits"]).abs().max().item()
        assert difference < 1e-4 * expected["logits"].abs().max().item(), difference
        check_processor(hf, dimensions)
        for setting in runs:
            if setting["num_beams"] == 1:
                pixels, limit = expected["pixels"][: len(setting["tokens"])], setting["max_length"]
                rows = model.generate(pixel_values=pixels, do_sample=False, max_length=limit)[:, 1:].tolist()
                rows = [row[: row.index(EOS)] if EOS in row else row for row in rows]
                assert rows == setting["tokens"], (rows, setting["tokens"])
        print(f"{source.name}, {dtype}: equal logits; off from the golden ones by {difference:.1e}")


def check_full(im2sp, full, folder):
    stored = folder / "full"
    run(im2sp, "convert", full / "captioner.ckpt", "-o", stored)
    original = captioners.build(captioners.GIT_LARGE)
    wrapped = nn.Module()
    wrapped.model = original
    wrapped.load_state_dict(torch.load(full / "captioner.ckpt", weights_only=True)["state_dict"])
    model, reference, hf = load_both(im2sp, stored, captioners.GIT_LARGE, folder)
    check_processor(hf, captioners.GIT_LARGE)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 203, (1, 20), generator=generator)
    text[:, 0] = BOS
    check_same([original, model, reference], torch.randn(1, 3, 224, 224, generator=generator), text)
    print(f"{full}: equal logits")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--im2sp", type=Path, required=True)
    parser.add_argument("--full", type=Path, help="a folder made by full_size.py")
    arguments = parser.parse_args()
    utils.logging.disable_progress_bar()
    # The same threads for all: sums are split by their number.
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("small", "wide_vision", "wide_decoder"):
            check_golden(arguments.im2sp, GOLDEN / name, Path(folder))
        if arguments.full:
            check_full(arguments.im2sp, arguments.full, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
