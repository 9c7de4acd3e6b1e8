"""PyTorch's side of the comparison: a warm process that measures on request.

    python benches/peers/torch_side.py DIR|random [--threads N] [--device cpu|cuda] [--units N]

Reads lines `STAGE FORM REPEAT`, answers each with one JSON object: {"ms": [...]}, or {"problem": "..."}. Stages:
  vision   the image encoder at batch 1
  decode   the projection, the prefix and the units, greedily, by GitForCausalLM.generate, the encoder's result given
  vocoder  200 units of one frame each: 4 s
  whole    pixels to samples: all of these, with the predicted durations
Forms: f32 and bf16, the library's own calls as the reference makes them (eager attention, a growing cache); f32+compile
and bf16+compile, what makes them faster and works: torch.compile on the image encoder (with scaled_dot_product_attention),
the decoder's layers and the vocoder. A static cache does not: GIT appends its image tokens to a text of one, which
transformers' cache is not sized for; "static" asks for it and answers with the library's own error.
DIR is made by recipes/golden/full_size.py; `random` is the same model without its file.
"""
import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Beside this file where they were packed together.
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "recipes" / "golden") if len(HERE.parents) > 1 else str(HERE)]

import torch

import full_size
import pipeline

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
FRAMES = 200


class Models:
    """The models in one form."""

    def __init__(self, folder, dtype, device, compiled):
        if folder == "random":
            self.captioner, self.vocoder = full_size.models()
        else:
            self.captioner, self.vocoder = pipeline.load_captioner(folder), pipeline.load_vocoder(folder)
        for model in (self.captioner, self.vocoder):
            model.to(device, DTYPES[dtype])
        if not compiled:
            return
        git = self.captioner.git
        # What set_attn_implementation refuses for this class, its layers do.
        git.image_encoder.config._attn_implementation = "sdpa"
        git.image_encoder.forward = torch.compile(git.image_encoder.forward)
        git.encoder.forward = torch.compile(git.encoder.forward, dynamic=True)
        self.vocoder.generate = torch.compile(self.vocoder.generate, dynamic=True)


class Side:
    def __init__(self, folder, device, units):
        self.folder, self.device, self.units = folder, device, units
        photo = Path(folder) / "photo.png"
        self.pixels = pipeline.preprocess(photo) if photo.exists() else torch.rand(1, 3, 224, 224) * 4 - 2
        self.known = {}

    def models(self, form):
        if form not in self.known:
            dtype, _, how = form.partition("+")
            self.known[form] = Models(self.folder, dtype, self.device, how == "compile")
        models = self.known[form]
        return models, self.pixels.to(self.device, next(models.captioner.parameters()).dtype)

    def vision(self, form):
        models, pixels = self.models(form)
        return lambda: models.captioner.git.image_encoder(pixels)

    def tokens(self, model, pixels, **options):
        tokens = pipeline.generate(model, pixels, self.units, 1, **options)
        assert len(tokens) == self.units, "a caption ended early: make the checkpoint without EOS"
        return tokens

    def decode(self, form):
        models, pixels = self.models(form)
        model, encoder = models.captioner, models.captioner.git.image_encoder
        seen, forward = encoder(pixels), encoder.forward

        def run():
            encoder.forward = lambda *_, **__: seen
            try:
                self.tokens(model, pixels)
            finally:
                encoder.forward = forward

        return run

    def static(self, form):
        models, pixels = self.models(form)
        return lambda: self.tokens(models.captioner, pixels, cache_implementation="static")

    def vocoder(self, form):
        models, _ = self.models(form)
        units = torch.arange(FRAMES, device=self.device) % 200
        return lambda: models.vocoder(units)

    def whole(self, form):
        models, pixels = self.models(form)

        def run():
            tokens = self.tokens(models.captioner, pixels)
            pipeline.speak(models.vocoder, pipeline.spoken_units(tokens), self.device).float().cpu()

        return run

    @torch.inference_mode()
    def measure(self, stage, form, repeat, warm):
        run = getattr(self, stage)(form)
        for _ in range(0 if (stage, form) in warm else 2):
            run()
        warm.add((stage, form))
        times = []
        for _ in range(repeat):
            self.wait()
            clock = time.perf_counter()
            run()
            self.wait()
            times.append((time.perf_counter() - clock) * 1e3)
        return times

    def wait(self):
        if self.device != "cpu":
            torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--units", type=int, default=128)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    side = Side(arguments.folder, arguments.device, arguments.units)
    warm = set()
    for line in sys.stdin:
        stage, form, repeat = line.split()
        try:
            answer = {"ms": side.measure(stage, form, int(repeat), warm)}
        except Exception as error:  # the library's answer is part of the comparison
            answer = {"problem": f"{type(error).__name__}: {error}".partition("\n")[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
