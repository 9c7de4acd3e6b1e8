"""Picture to wav in PyTorch, at the full size: the pieces the comparisons share, each done as the reference does it.

Pictures are resized by Pillow as transformers 4.33's processor did. Checkpoints have the reference's layout. Loading
comes in two forms: `plain` as a researcher would write it, `best` with memory mapping and no wasted initialisation.
"""
import json
import wave
from pathlib import Path

import numpy as np
import torch

import vocoder_reference
from captioners import BOS, EOS, GIT_LARGE, MEAN, STD, build

CAPTIONER, VOCODER, CONFIG = "captioner.ckpt", "g_00950000", "config.json"


def preprocess(path, side=224):
    """(1, 3, side, side): bicubic resize of the short side, centre crop, normalisation."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    short = min(image.size)
    image = image.resize([int(side * n / short) for n in image.size], Image.Resampling.BICUBIC)
    left, top = ((n - side) // 2 for n in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    pixels = (pixels * (1 / 255)).astype(np.float32)
    pixels = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


def load_captioner(folder, best=False):
    path = Path(folder) / CAPTIONER
    if not best:
        state = torch.load(path, map_location="cpu")["state_dict"]
        model = build(GIT_LARGE)
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        return model
    state = torch.load(path, map_location="cpu", mmap=True)["state_dict"]
    with torch.device("meta"):
        model = build(GIT_LARGE)
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()}, assign=True)
    model.output.weight = model.git.embeddings.word_embeddings.weight
    for module in model.modules():
        if "position_ids" in module._buffers:  # not in the file, hence still without values
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    return model


def load_vocoder(folder, best=False):
    state = torch.load(Path(folder) / VOCODER, map_location="cpu", mmap=best)["generator"]
    config = published_to_ours(json.loads((Path(folder) / CONFIG).read_text()))
    if not best:
        vocoder = vocoder_reference.Vocoder(config)
        vocoder.load_state_dict(vocoder_reference.fold(state))
        return vocoder.eval()
    with torch.device("meta"):
        vocoder = vocoder_reference.Vocoder(config)
    vocoder.load_state_dict(vocoder_reference.fold(state), assign=True)
    return vocoder.eval()


def published_to_ours(config):
    """The published vocoder configuration -> the keys Vocoder reads."""
    keys = ("upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel", "resblock_kernel_sizes")
    keys += ("resblock_dilation_sizes", "num_embeddings", "embedding_dim", "model_in_dim", "sampling_rate")
    duration = config["dur_predictor_params"]
    return {key: config[key] for key in keys} | {
        "duration": {"hidden": duration["var_pred_hidden_dim"], "kernel": duration["var_pred_kernel_size"]}
    }


def greedy(model, pixels, units):
    """Tokens after BOS, by transformers' cached generate, at most `units`."""
    return generate(model, pixels, units, 1)


@torch.inference_mode()
def generate(model, pixels, units, beams, **options):
    """Tokens after BOS, cut before the first EOS."""
    options |= {"max_length": units + 1, "num_beams": beams, "do_sample": False, "early_stopping": beams > 1}
    row = model.generate(pixel_values=pixels, **options)[0].tolist()
    assert row[0] == BOS
    return row[1 : row.index(EOS)] if EOS in row else row[1:]


def spoken_units(tokens):
    """Tokens -> units, repetitions removed, those without a unit dropped."""
    units = [token - 1 if token <= BOS else token - 3 for token in tokens if token > 0]
    return [unit for i, unit in enumerate(units) if i == 0 or unit != units[i - 1]]


@torch.inference_mode()
def speak(vocoder, units, device="cpu"):
    units = torch.tensor(units, device=device)
    return vocoder(units, vocoder.durations(units))


def write_wav(path, samples, rate=16000):
    """16-bit PCM, floor(32768 x) as libsndfile does."""
    values = (samples.double() * 32768).floor().clamp(-32768, 32767).short().numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.astype("<i2").tobytes())


def read_wav(path):
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64) / 32768
