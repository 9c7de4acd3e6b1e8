"""PyTorch's side of the comparison: a warm process that measures on request.

    python benches/peers/torch_side.py DIR|random|tiny [--threads N] [--device cpu|cuda] [--units N] [--frames N]

Reads lines `STAGE[:BATCH] FORM REPEAT`, answers each with one JSON object: {"ms": [...]}, or {"problem": "..."}. Stages:
  vision   pixels to the image encoder's result
  decode   the projection, the prefix and the units, greedily, the encoder's result given
  units    pixels to units: vision and decode
  vocoder  `frames` units of one frame each
  whole    pixels to samples in host memory: units, and as many units spoken in `frames` frames
Forms: f32 or bf16 (weights and activations) and what is added with `+`, or f32 or bf16 alone: the library's own calls as
the reference makes them, with eager attention and a growing cache.
  autocast  weights in f32 under torch.autocast (bf16+autocast)
  sdpa      scaled_dot_product_attention in the image encoder
  compile   sdpa, and torch.compile of the encoder, the decoder's layers and the vocoder
  graph     encoder and vocoder as CUDA graphs of fixed shapes; with static, a decode step too
  static    a decoding loop with a cache of fixed size (static_decoder.py) instead of generate
  nocache   generate without a cache: the whole image again for every unit, as the reference does
  library   generate with transformers' own static cache, which answers with an error
DIR is made by recipes/golden/full_size.py; `random` is the same model without its file, `tiny` a small one for tests.
"""
import argparse
import contextlib
import copy
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Beside this file where they were packed together.
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "recipes" / "golden") if len(HERE.parents) > 1 else str(HERE)]

import torch

import captioners
import cuda_graph
import full_size
import pipeline
import static_decoder
import vocoder_reference

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PARTS = {"autocast", "sdpa", "compile", "graph", "static", "nocache", "library"}


@torch.no_grad()
def tiny():
    """A captioner and a vocoder of the published layout, small enough for a test."""
    captioner = captioners.build(captioners.dimensions(56, (14, 128, 2, 256), (128, 2, 256, 203, 128)))
    captioners.randomise(captioner, 1, logits=2.0, positions=30.0, eos_bias=-1e4, decoder=0.4, bf16=False)
    captioner.output.bias[captioners.PAD] = -1e4
    small = {"upsample_initial_channel": 32, "embedding_dim": 16, "model_in_dim": 16}
    vocoder = vocoder_reference.Vocoder(pipeline.published_to_ours(full_size.PUBLISHED | small))
    return captioner, vocoder_reference.randomise(vocoder, 1)


def load(folder):
    if folder in ("random", "tiny"):
        return full_size.models() if folder == "random" else tiny()
    return pipeline.load_captioner(folder), pipeline.load_vocoder(folder)


class Form:
    """The models in one form, and the stages."""

    def __init__(self, models, name, side):
        dtype, *parts = name.split("+")
        if dtype not in DTYPES or not PARTS.issuperset(parts):
            raise ValueError(f"no form {name}")
        self.parts, self.side = frozenset(parts), side
        self.dtype = DTYPES["f32" if "autocast" in parts else dtype]
        self.captioner, self.vocoder = (copy.deepcopy(model).to(side.device, self.dtype) for model in models)
        git = self.captioner.git
        self.encode, self.speak = git.image_encoder, self.vocoder
        if {"sdpa", "compile"} & self.parts:
            # What set_attn_implementation refuses for this class, its layers do.
            git.image_encoder.config._attn_implementation = "sdpa"
        if "compile" in parts:
            git.image_encoder.forward = torch.compile(git.image_encoder.forward)
            git.encoder.forward = torch.compile(git.encoder.forward, dynamic=True)
            self.vocoder.generate = torch.compile(self.vocoder.generate, dynamic="graph" not in parts)
        self.loops = {}

    def context(self):
        """Whatever the form runs under."""
        if "autocast" in self.parts:
            return torch.autocast(torch.device(self.side.device).type, torch.bfloat16)
        return contextlib.nullcontext()

    def pixels(self, batch):
        return self.side.pixels.to(self.side.device, self.dtype).expand(batch, -1, -1, -1).contiguous()

    def vision(self, batch):
        """A function that gives the encoder's result, (B, P, C)."""
        pixels = self.pixels(batch)
        encode = lambda x: self.captioner.git.image_encoder(x).last_hidden_state
        if "graph" not in self.parts:
            return lambda: encode(pixels)
        held = pixels.clone()
        replay = cuda_graph.recorded(lambda: encode(held), self.side.device)

        def run():
            held.copy_(pixels)
            return replay()

        return run

    def loop(self, batch):
        if batch not in self.loops:
            if self.parts & {"autocast"}:
                raise ValueError("the static loop has no autocast: use bf16")
            how = {"compiled": "compile" in self.parts, "graph": "graph" in self.parts}
            self.loops[batch] = static_decoder.StaticGreedy(self.captioner, self.side.units, batch, **how)
        return self.loops[batch]

    def generate(self, pixels):
        """Tokens of the library's loop, (B, units)."""
        options = {"max_length": self.side.units + 1, "num_beams": 1, "do_sample": False}
        if "nocache" in self.parts:
            options["use_cache"] = False
        if "library" in self.parts:
            options["cache_implementation"] = "static"
        tokens = self.captioner.generate(pixel_values=pixels, **options)[:, 1:]
        if tokens.shape[1] != self.side.units:
            raise ValueError("a caption ended early: make the checkpoint without EOS")
        return tokens

    def decode(self, batch):
        seen = self.vision(batch)().clone()
        if "static" in self.parts:
            loop = self.loop(batch)
            return lambda: loop(seen)
        pixels, encoder = self.pixels(batch), self.captioner.git.image_encoder
        answer, forward = encoder(pixels), encoder.forward

        def run():
            encoder.forward = lambda *_, **__: answer
            try:
                return self.generate(pixels)
            finally:
                encoder.forward = forward

        return run

    def units(self, batch):
        if "static" in self.parts:
            vision, loop = self.vision(batch), self.loop(batch)
            return lambda: loop(vision())
        pixels = self.pixels(batch)
        return lambda: self.generate(pixels)

    def sound(self, units, durations):
        """A function that gives the samples of `units` with `durations`, both on the device."""
        run = lambda: self.vocoder(units, durations)
        return cuda_graph.recorded(run, self.side.device) if "graph" in self.parts and durations is None else run

    def vocoder_stage(self, batch):
        if batch != 1:
            raise ValueError("the vocoder takes one caption at a time")
        known = self.vocoder.config["num_embeddings"]
        return self.sound(torch.arange(self.side.frames, device=self.side.device) % known, None)

    def whole(self, batch):
        if batch != 1:
            raise ValueError("the vocoder takes one caption at a time")
        units, side, known = self.units(1), self.side, self.vocoder.config["num_embeddings"]
        # As many units as were decoded, in just so many frames: a random model's own would last differently each time.
        count = min(side.units, side.frames)
        spoken = torch.arange(count, device=side.device) * 7 % known
        durations = [side.frames // count + (n < side.frames % count) for n in range(count)]
        # Stretched before the vocoder, which then has a fixed shape.
        speak = self.sound(spoken.repeat_interleave(torch.tensor(durations, device=side.device)), None)

        def run():
            units()
            self.vocoder.durations(spoken)
            return speak().float().cpu()

        return run

    def stage(self, name, batch):
        stages = {"vision": self.vision, "decode": self.decode, "units": self.units, "vocoder": self.vocoder_stage, "whole": self.whole}
        if name not in stages:
            raise ValueError(f"no stage {name}")
        return stages[name](batch)


class Side:
    def __init__(self, folder, device, units, frames):
        self.folder, self.device, self.units, self.frames = folder, device, units, frames
        self.models, self.forms, self.runs = None, {}, {}

    def form(self, name):
        """The models in a form."""
        if self.models is None:
            self.models = load(self.folder)
            size = self.models[0].config.vision_config.image_size
            photo = Path(self.folder) / "photo.png"
            torch.manual_seed(1)
            self.pixels = pipeline.preprocess(photo) if photo.exists() else torch.rand(1, 3, size, size) * 4 - 2
        if name not in self.forms:
            self.forms[name] = Form(self.models, name, self)
        return self.forms[name]

    @torch.inference_mode()
    def measure(self, stage, name, repeat):
        form = self.form(name)
        what, _, batch = stage.partition(":")
        with form.context():
            if (stage, name) not in self.runs:
                self.runs[stage, name] = form.stage(what, int(batch or 1))
                for _ in range(2):
                    self.runs[stage, name]()
            run, times = self.runs[stage, name], []
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
    parser.add_argument("--frames", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # True f32, as im2sp's; and cuDNN's fastest algorithm for each shape.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    side = Side(arguments.folder, arguments.device, arguments.units, arguments.frames)
    for line in sys.stdin:
        try:
            stage, form, repeat = line.split()
            answer = {"ms": side.measure(stage, form, int(repeat))}
        except Exception as error:  # the library's answer is part of the comparison
            answer = {"problem": f"{type(error).__name__}: {error}".partition("\n")[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
