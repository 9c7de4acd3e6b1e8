"""PyTorch's side of the comparison: a warm process that measures on request.

    python benches/peers/torch_side.py DIR THREADS

Reads lines `STAGE DTYPE REPEAT`, answers each with one JSON list of milliseconds. Stages:
  vision  the image encoder at batch 1
  decode  the projection, the prefix and 128 greedy units by GitForCausalLM.generate, the encoder's result given
  vocoder 200 units of one frame each: 4 s
DIR is made by recipes/golden/full_size.py. Nothing is compiled; every call is the library's own.
"""
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "golden"))

import torch

import pipeline

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
UNITS, FRAMES = 128, 200


class Side:
    def __init__(self, folder):
        self.folder = folder
        self.pixels = pipeline.preprocess(Path(folder) / "photo.png")
        self.captioners, self.vocoders, self.seen = {}, {}, {}

    def captioner(self, dtype):
        if dtype not in self.captioners:
            self.captioners[dtype] = pipeline.load_captioner(self.folder).to(DTYPES[dtype])
        return self.captioners[dtype]

    @torch.inference_mode()
    def vision(self, dtype):
        pixels = self.pixels.to(DTYPES[dtype])
        encoder = self.captioner(dtype).git.image_encoder
        return lambda: encoder(pixels)

    @torch.inference_mode()
    def decode(self, dtype):
        model, pixels = self.captioner(dtype), self.pixels.to(DTYPES[dtype])
        if dtype not in self.seen:
            self.seen[dtype] = model.git.image_encoder(pixels)
        encoder, seen = model.git.image_encoder, self.seen[dtype]

        def run():
            encoder.forward = lambda *_, **__: seen
            try:
                tokens = pipeline.greedy(model, pixels, UNITS)
            finally:
                del encoder.forward
            assert len(tokens) == UNITS, "a caption ended early: make the checkpoint without EOS"

        return run

    @torch.inference_mode()
    def vocoder(self, dtype):
        if dtype not in self.vocoders:
            self.vocoders[dtype] = pipeline.load_vocoder(self.folder).to(DTYPES[dtype])
        vocoder = self.vocoders[dtype]
        units = torch.arange(FRAMES) % 200
        return lambda: vocoder(units)


def main():
    folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    side = Side(folder)
    warm = set()
    for line in sys.stdin:
        stage, dtype, repeat = line.split()
        run = getattr(side, stage)(dtype)
        times = []
        with torch.inference_mode():
            if (stage, dtype) not in warm:
                run()
                warm.add((stage, dtype))
            for _ in range(int(repeat)):
                clock = time.perf_counter()
                run()
                times.append((time.perf_counter() - clock) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
