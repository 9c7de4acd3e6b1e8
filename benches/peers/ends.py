"""Both ends at the published sizes with random weights: recordings to units, images to image units, images to scores.

    python ends.py prepare FOLDER                      writes models, recordings, images and captions
    python ends.py recordings FOLDER --im2sp ./im2sp   10,000 s of sound to units: HuBERT Base, layer 6, 200 centres
    python ends.py tokenize FOLDER --im2sp ./im2sp     1,000 images to image units
    python ends.py evaluate FOLDER --im2sp ./im2sp     5,000 images to units, sound, text (wav2vec 2.0 large), scores

Without torch and transformers `prepare` makes nothing; FOLDER/ready says that it is done. Each step but the first
prints one JSON object: seconds of the whole command, from its start to its end, and of the same command for one
recording or image, which is mostly the start and the model. Models are written in their publishers' layouts by torch and
transformers and converted by im2sp. `--tiny` makes small models and few files, to try the script without a GPU.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import wave
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "recipes/golden")]

RATE = 16_000
SYMBOLS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
CODES, CODE_WIDTH, CENTRES = 391, 32, 200
# Distinct pictures; other files are links to these.
DISTINCT = 64
SIZES = {
    False: {"seconds": 10_000, "images": 1_000, "evaluated": 5_000, "units": 100},
    True: {"seconds": 40, "images": 3, "evaluated": 2, "units": 10},
}
TINY = dict(hidden_size=64, num_hidden_layers=6, num_attention_heads=1, intermediate_size=72, conv_dim=[8] * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_feat_extract_layers=7)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
STABLE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, vocab_size=len(SYMBOLS))
# Channels, layers, heads and hidden channels of the ViT-VQGAN encoder, its grid and the side of a patch.
TOKENIZER = {False: (512, 8, 8, 2048, 32, 8), True: (32, 2, 2, 48, 8, 4)}


def run(command, **options):
    """Seconds of a command; what it printed."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True, **options)
    return time.perf_counter() - start, done.stdout


# What is measured with.


def sounds(folder, seconds):
    """Recordings of 2 to 18 seconds, 10 on average: noise with a slow loudness, of 16 bits."""
    import numpy as np

    folder.mkdir()
    random = np.random.default_rng(1)
    loud = 0.3 + 0.2 * np.sin(np.arange(30 * RATE) / 3000)
    noise = (random.normal(0, 4000, 30 * RATE) * loud).astype("<i2")
    left, number = round(seconds * RATE), 0
    while left > 0:
        count = min(left, int(random.integers(2 * RATE, 18 * RATE)))
        start = int(random.integers(0, len(noise) - count))
        with wave.open(str(folder / f"{number:05}.wav"), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
            file.writeframes(noise[start : start + count].tobytes())
        left, number = left - count, number + 1


def png(pixels):
    """A PNG of (height, width, 3) bytes, where there is no Pillow."""
    height, width, _ = pixels.shape
    chunk = lambda name, data: len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def images(folder, counts):
    """640x480 pictures of blurred blobs under fine noise, JPEG if there is Pillow."""
    import numpy as np

    random = np.random.default_rng(2)
    distinct = folder / "distinct"
    distinct.mkdir()
    made = []
    for number in range(min(DISTINCT, max(counts.values()))):
        try:
            from full_size import photo

            made.append(distinct / f"{number}.jpg")
            photo(number).save(made[-1], quality=90)
        except ImportError:
            small = random.integers(0, 256, (30, 40, 3)).repeat(16, 0).repeat(16, 1)
            made[number:] = [distinct / f"{number}.png"]
            made[-1].write_bytes(png(np.clip(small + random.normal(0, 6, small.shape), 0, 255).astype(np.uint8)))
    for name, count in counts.items():
        (folder / name).mkdir()
        for number in range(count):
            source = made[number % len(made)]
            os.link(source, folder / name / f"{number:05}{source.suffix}")
    return made[0].suffix


def captions(path, count, suffix):
    """Karpathy's layout: five captions an image."""
    words = "a the man woman dog cat red blue small large ball tree street plays sits runs on near with water".split()
    said = lambda n: " ".join(words[(n * k * 7 + 3 * k) % len(words)] for k in range(1, 11)) + " ."
    images = [
        {"filename": f"{n:05}{suffix}", "filepath": "", "cocoid": n, "imgid": n, "split": "test",
         "sentences": [{"raw": said(5 * n + k), "sentid": 5 * n + k, "imgid": n} for k in range(5)]}
        for n in range(count)
    ]
    path.write_text(json.dumps({"dataset": "coco", "images": images}))


def speech_models(folder, tiny):
    """HuBERT Base and wav2vec 2.0 large, as transformers writes them."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2ForCTC

    HubertModel(HubertConfig(**(TINY if tiny else {}))).save_pretrained(folder / "hubert")
    recogniser = folder / "wav2vec2"
    Wav2Vec2ForCTC(Wav2Vec2Config(**(TINY if tiny else LARGE), **STABLE)).save_pretrained(recogniser)
    (recogniser / "vocab.json").write_text(json.dumps({symbol: n for n, symbol in enumerate(SYMBOLS)}))
    (recogniser / "preprocessor_config.json").write_text(json.dumps(
        {"do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
         "padding_side": "right", "padding_value": 0, "return_attention_mask": True, "sampling_rate": RATE}))


def tokenizer(folder, tiny):
    """The state of a ViT-VQGAN encoder with the layer before its quantizer, and a codebook."""
    import torch

    width, layers, heads, mlp, grid, patch = TOKENIZER[tiny]
    inner = 64 * heads
    draw = lambda *shape: torch.randn(shape) * shape[-1] ** -0.5
    state = {"0.en_pos_embedding": torch.randn(1, grid * grid, width) * 0.5,
             "0.to_patch_embedding.0.weight": torch.randn(width, 3, patch, patch) * (3 * patch * patch) ** -0.5,
             "0.to_patch_embedding.0.bias": torch.zeros(width),
             "0.transformer.norm.weight": torch.ones(width), "0.transformer.norm.bias": torch.zeros(width),
             "1.weight": draw(CODE_WIDTH, width), "1.bias": torch.zeros(CODE_WIDTH)}
    for n in range(layers):
        at = f"0.transformer.layers.{n}"
        for block in (0, 1):
            state |= {f"{at}.{block}.norm.weight": torch.ones(width), f"{at}.{block}.norm.bias": torch.zeros(width)}
        state[f"{at}.0.fn.to_qkv.weight"] = draw(3 * inner, width)
        sizes = (("0.fn.to_out", width, inner), ("1.fn.net.0", mlp, width), ("1.fn.net.2", width, mlp))
        for name, rows, columns in sizes:
            state |= {f"{at}.{name}.weight": draw(rows, columns), f"{at}.{name}.bias": torch.zeros(rows)}
    torch.save(state, folder / "tokenizer.ckpt")
    torch.save(torch.randn(CODES, CODE_WIDTH), folder / "codebook.ckpt")


def captioner(folder, im2sp):
    import full_size

    import captioners
    import pipeline
    import torch
    import vocoder_reference

    model, vocoder = full_size.models()
    torch.save({"state_dict": captioners.reference_state(model)}, folder / pipeline.CAPTIONER)
    torch.save({"generator": vocoder_reference.unfold(vocoder.state_dict())}, folder / pipeline.VOCODER)
    (folder / pipeline.CONFIG).write_text(json.dumps(full_size.PUBLISHED))
    run([im2sp, "convert", folder / pipeline.CAPTIONER, "--vocoder", folder / pipeline.VOCODER, "--vocoder-config",
         folder / pipeline.CONFIG, "-o", folder / "models/captioner"])
    for name in (pipeline.CAPTIONER, pipeline.VOCODER):
        (folder / name).unlink()


def prepare(folder, im2sp, tiny):
    import numpy as np
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    sizes = SIZES[tiny]
    sounds(folder / "wavs", sizes["seconds"])
    suffix = images(folder, {"images": sizes["images"], "evaluated": sizes["evaluated"]})
    captions(folder / "captions.json", sizes["evaluated"], suffix)
    speech_models(folder, tiny)
    tokenizer(folder, tiny)
    for name in ("hubert", "wav2vec2"):
        run([im2sp, "convert", folder / name, "-o", folder / "models" / name])
        shutil.rmtree(folder / name)
    run([im2sp, "convert", "--tokenizer", folder / "tokenizer.ckpt", "--codebook", folder / "codebook.ckpt", "-o",
         folder / "models/tokenizer"])
    # Where features of the model lie, so that units differ.
    width = TINY["hidden_size"] if tiny else 768
    np.save(folder / "centres.npy", np.random.default_rng(3).normal(0, 1, (CENTRES, width)).astype("<f4"))
    if not tiny:
        captioner(folder, im2sp)
    (folder / "ready").touch()


# What is measured.


def device(arguments):
    return ["--device", arguments.device, "--dtype", arguments.dtype]


def recordings(folder, arguments):
    """All recordings to files of units; those of some are what they are alone."""
    wavs, out = sorted((folder / "wavs").iterdir()), folder / "units"
    shutil.rmtree(out, ignore_errors=True)
    command = [arguments.im2sp, "units", "--weights", folder / "models/hubert", "--kmeans", folder / "centres.npy"]
    command += device(arguments)
    one, _ = run([*command, wavs[0], "-o", folder / "one.unit"])
    seconds, _ = run([*command, folder / "wavs", "-o", f"{out}/"])
    same = True
    for path in (wavs[0], wavs[len(wavs) // 2], wavs[-1]):
        run([*command, path, "-o", folder / "one.unit"])
        same &= (folder / "one.unit").read_bytes() == (out / f"{path.stem}.unit").read_bytes()
    if len(list(out.iterdir())) != len(wavs) or not same:
        raise SystemExit(f"units: {len(list(out.iterdir()))} of {len(wavs)} files; equal to those made alone: {same}")
    return {"seconds": seconds, "one": one, "recordings": len(wavs), "sound": sizes(arguments)["seconds"]}


def tokenize(folder, arguments):
    command = [arguments.im2sp, "tokenize", "--weights", folder / "models/tokenizer", "--json", *device(arguments)]
    for name in ("one.units", "all.units"):
        (folder / name).unlink(missing_ok=True)
    first = sorted((folder / "images").iterdir())[0]
    one, _ = run([*command, first, "-o", folder / "one.units"])
    seconds, printed = run([*command, folder / "images", "-o", folder / "all.units"])
    printed = json.loads(printed)
    if printed["failed"] or printed["stored"] != sizes(arguments)["images"]:
        raise SystemExit(f"tokenize: {printed}")
    return {"seconds": seconds, "one": one, "images": printed["stored"], "files": first.suffix.strip(".")}


def evaluate(folder, arguments):
    command = [arguments.im2sp, "evaluate", "--dataset", "coco", "--images", folder / "evaluated", "--captions",
               folder / "captions.json", "--asr", folder / "models/wav2vec2", "--native", "--json", "--max-units",
               sizes(arguments)["units"], *device(arguments)]
    if (folder / "models/captioner").exists():
        command += ["--weights", folder / "models/captioner"]
    for name in ("one", "evaluation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    one, _ = run([*command, "--limit", 1, "-o", folder / "one"])
    seconds, printed = run([*command, "-o", folder / "evaluation"])
    report = json.loads((folder / "evaluation/report.json").read_text())
    if report["missing"]:
        raise SystemExit(f"evaluate: {len(report['missing'])} images are missing")
    return {"seconds": seconds, "one": one, "images": len(report["images"]), "scores": json.loads(printed)}


def sizes(arguments):
    return SIZES[arguments.tiny]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=("prepare", "recordings", "tokenize", "evaluate"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--im2sp", default="./im2sp")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.step == "prepare":
        try:
            prepare(arguments.folder, arguments.im2sp, arguments.tiny)
        except ImportError as error:
            print(f"no models: {error}", file=sys.stderr)
        return
    step = {"recordings": recordings, "tokenize": tokenize, "evaluate": evaluate}[arguments.step]
    found = {"step": arguments.step, "dtype": arguments.dtype, "tiny": arguments.tiny}
    print(json.dumps(found | step(arguments.folder, arguments)))


if __name__ == "__main__":
    main()
