"""Tiny checkpoints in every layout `im2sp convert` reads, and what the conversion has to give.

    python recipes/golden/weights.py tests/golden/weights

Values follow from a seed (a name) and an index, so the expected captioner is a list of seeds, not a second copy of the
data: see `values`. The vocoder's expected tensors, whose weight norm PyTorch folds, are a safetensors file.

constructors*.ckpt, .safetensors   every constructor PyTorch and numpy put around a tensor, and what torch.load makes of it
containers/*.ckpt                  containers that torch.load reads and torch.save does not write here; all hold
containers/expected.safetensors    these tensors
processors.json, .safetensors      image processors, and what the CPU form of each in transformers makes of two pictures

Made with PyTorch 2.15, transformers 5.23, safetensors 0.8, numpy 2.4, Pillow 13.0.
"""

import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

WIDTH, MLP, WORDS, POSITIONS, PATCH, TOKENS = 64, 4, 104, 6, 2, 5
VISION = "git.image_encoder.vision_model."


def values(seed, count, start=0):
    """Elements start.. of the sequence `seed`: multiples of 1/64 in [-1, 1), exact in f16 and bf16."""
    state = 0x811C9DC5
    for byte in seed.encode():
        state = (state ^ byte) * 0x01000193 & 0xFFFFFFFF
    mixed = (state + np.arange(start, start + count, dtype=np.uint64) * 2654435761) & 0xFFFFFFFF
    return torch.from_numpy(((mixed >> 25).astype(np.float32) - 64) / 64)


def fill(seed, *shape):
    return values(seed, int(np.prod(shape))).reshape(shape)


def save_legacy(value, path):
    """The stream from before PyTorch 1.6. Its storage keys are addresses: the bytes differ from run to run."""
    torch.save(value, path, _use_new_zipfile_serialization=False)


def captioner_shapes(width, mlp):
    """Name without `model.` -> shape, one layer each."""
    shapes = {
        VISION + "embeddings.class_embedding": (width,),
        VISION + "embeddings.patch_embedding.weight": (width, 3, PATCH, PATCH),
        VISION + "embeddings.position_embedding.weight": (TOKENS, width),
        "git.visual_projection.visual_projection.0.weight": (width, width),
        "git.visual_projection.visual_projection.0.bias": (width,),
        "git.embeddings.word_embeddings.weight": (WORDS, width),
        "git.embeddings.position_embeddings.weight": (POSITIONS, width),
        "output.bias": (WORDS,),
    }
    layer, text = VISION + "encoder.layers.0.", "git.encoder.layer.0."
    squares = [layer + f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")]
    squares += [text + f"attention.self.{p}" for p in ("query", "key", "value")] + [text + "attention.output.dense"]
    norms = [VISION + "pre_layrnorm", VISION + "post_layernorm", layer + "layer_norm1", layer + "layer_norm2"]
    norms += ["git.visual_projection.visual_projection.1", "git.embeddings.LayerNorm"]
    norms += [text + "attention.output.LayerNorm", text + "output.LayerNorm"]
    for name in squares:
        shapes[name + ".weight"], shapes[name + ".bias"] = (width, width), (width,)
    for name in norms:
        shapes[name + ".weight"], shapes[name + ".bias"] = (width,), (width,)
    for up, down in ((layer + "mlp.fc1", layer + "mlp.fc2"), (text + "intermediate.dense", text + "output.dense")):
        shapes[up + ".weight"], shapes[up + ".bias"] = (mlp, width), (mlp,)
        shapes[down + ".weight"], shapes[down + ".bias"] = (width, mlp), (width,)
    return shapes


def expected(width, mlp, part):
    """Canonical name -> shape and the parts, each made by `part(name)`, that follow one another in it."""
    layer, text = VISION + "encoder.layers.0.", "git.encoder.layer.0."
    tensors = OrderedDict()

    def put(name, shape, *sources):
        tensors[name] = {"shape": list(shape), "parts": [part(source) for source in sources]}

    def pair(name, weight, source):
        put(name + ".weight", weight, source + ".weight")
        put(name + ".bias", weight[:1], source + ".bias")

    put("vision.class_embedding", (width,), VISION + "embeddings.class_embedding")
    put("vision.patch_embedding.weight", (width, 3 * PATCH * PATCH), VISION + "embeddings.patch_embedding.weight")
    put("vision.position_embedding", (TOKENS, width), VISION + "embeddings.position_embedding.weight")
    pair("vision.pre_norm", (width,), VISION + "pre_layrnorm")
    pair("vision.layers.0.attention_norm", (width,), layer + "layer_norm1")
    for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        put(f"vision.layers.0.qkv.{kind}", shape, *[f"{layer}self_attn.{p}_proj.{kind}" for p in "qkv"])
    pair("vision.layers.0.attention_out", (width, width), layer + "self_attn.out_proj")
    pair("vision.layers.0.mlp_norm", (width,), layer + "layer_norm2")
    pair("vision.layers.0.fc1", (mlp, width), layer + "mlp.fc1")
    pair("vision.layers.0.fc2", (width, mlp), layer + "mlp.fc2")
    pair("vision.post_norm", (width,), VISION + "post_layernorm")
    pair("projection.linear", (width, width), "git.visual_projection.visual_projection.0")
    pair("projection.norm", (width,), "git.visual_projection.visual_projection.1")
    put("decoder.word_embedding", (WORDS, width), "git.embeddings.word_embeddings.weight")
    put("decoder.position_embedding", (POSITIONS, width), "git.embeddings.position_embeddings.weight")
    pair("decoder.embedding_norm", (width,), "git.embeddings.LayerNorm")
    for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        sources = [f"{text}attention.self.{p}.{kind}" for p in ("query", "key", "value")]
        put(f"decoder.layers.0.qkv.{kind}", shape, *sources)
    pair("decoder.layers.0.attention_out", (width, width), text + "attention.output.dense")
    pair("decoder.layers.0.attention_norm", (width,), text + "attention.output.LayerNorm")
    pair("decoder.layers.0.fc1", (mlp, width), text + "intermediate.dense")
    pair("decoder.layers.0.fc2", (width, mlp), text + "output.dense")
    pair("decoder.layers.0.mlp_norm", (width,), text + "output.LayerNorm")
    put("decoder.output_bias", (WORDS,), "output.bias")
    return tensors


def reference_checkpoint(dtype):
    """The reference's layout. To stay small, all large matrices are windows of one storage; `fc1` is transposed."""
    shapes = captioner_shapes(WIDTH, MLP)
    windows = [n for n, s in shapes.items() if len(s) == 2 and s[0] >= WIDTH and s[1] == WIDTH]
    base = fill("base", WORDS + len(windows), WIDTH).to(dtype)
    state, parts = OrderedDict(), {}
    for name, shape in shapes.items():
        if name in windows:
            row = windows.index(name)
            tensor = base[row : row + shape[0]]
            parts[name] = {"seed": "base", "start": row * WIDTH, "count": int(np.prod(shape))}
        elif name.endswith("fc1.weight"):
            tensor = fill(name, *reversed(shape)).to(dtype).t()
            parts[name] = {"seed": name, "start": 0, "count": int(np.prod(shape)), "transposed": shape[0]}
        else:
            tensor = fill(name, *shape).to(dtype)
            parts[name] = {"seed": name, "start": 0, "count": int(np.prod(shape))}
        state["model." + name] = tensor
    words = state["model.git.embeddings.word_embeddings.weight"]
    state["model.output.weight"] = words
    state["model.git.embeddings.position_ids"] = torch.arange(POSITIONS).expand(1, -1)
    state[f"model.{VISION}embeddings.position_ids"] = torch.arange(TOKENS).expand(1, -1)
    # torch.save would keep the metadata of a module's state dict; so does this.
    state._metadata = OrderedDict({"": {"version": 1}})
    return {"state_dict": state}, expected(WIDTH, MLP, parts.__getitem__)


def hugging_face(out):
    """A GIT directory as `save_pretrained` writes it, and one as older releases wrote it."""
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM

    sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1)
    config = GitConfig(
        **sizes, num_attention_heads=4, vocab_size=WORDS, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        vision_config=dict(**sizes, num_attention_heads=2, image_size=4, patch_size=2),
    )
    model = GitForCausalLM(config)
    shapes = captioner_shapes(8, 12)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            source = "git.embeddings.word_embeddings.weight" if name == "output.weight" else name
            assert tuple(tensor.shape) == shapes[source], name
            tensor.copy_(fill(source, *tensor.shape))
    assert {n for n in model.state_dict() if n != "output.weight"} == set(shapes)
    model.save_pretrained(f"{out}/git")
    os.remove(f"{out}/git/generation_config.json")
    model.config.tie_word_embeddings = False
    model.config.save_pretrained(f"{out}/git_bin")
    save_legacy(model.state_dict(), f"{out}/git_bin/pytorch_model.bin")
    processor = CLIPImageProcessor(
        size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4},
        image_mean=[0.5, 0.25, 0.125], image_std=[0.5, 0.75, 1.0],
    )
    processor.save_pretrained(f"{out}/git_bin")
    part = lambda name: {"seed": name, "start": 0, "count": int(np.prod(shapes[name]))}
    return expected(8, 12, part)


class Generator(nn.Module):
    """The shapes and names of a code HiFi-GAN with two stages; it is never run."""

    def __init__(self, weight_norm):
        super().__init__()
        conv = lambda i, o, k: weight_norm(nn.Conv1d(i, o, k))
        self.dict, self.spkr = nn.Embedding(101, 4), nn.Embedding(3, 4)
        self.conv_pre, self.conv_post = conv(8, 8, 7), conv(2, 1, 7)
        self.ups = nn.ModuleList([weight_norm(nn.ConvTranspose1d(8, 4, 4)), weight_norm(nn.ConvTranspose1d(4, 2, 6))])
        self.resblocks = nn.ModuleList()
        for channels in (4, 2):
            for kernel, convolutions in ((3, 1), (5, 2)):
                block = nn.Module()
                block.convs1 = nn.ModuleList([conv(channels, channels, kernel) for _ in range(convolutions)])
                block.convs2 = nn.ModuleList([conv(channels, channels, kernel) for _ in range(convolutions)])
                self.resblocks.append(block)
        self.dur_predictor = nn.Module()
        self.dur_predictor.conv1 = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU())
        self.dur_predictor.conv2 = nn.Sequential(nn.Conv1d(6, 6, 3), nn.ReLU())
        self.dur_predictor.ln1, self.dur_predictor.ln2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.dur_predictor.proj = nn.Linear(6, 1)


def vocoder(out):
    """The published layout with weight norm in both spellings, and the folded weights."""
    published = dict(
        resblock="1", upsample_rates=[2, 2], upsample_kernel_sizes=[4, 6], upsample_initial_channel=8,
        resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1], [1, 3]], num_embeddings=101, embedding_dim=4,
        model_in_dim=8, sampling_rate=16000, code_hop_size=4, multispkr="_", num_speakers=3, f0=False,
        segment_size=8960, dist_config={"dist_backend": "nccl"}, learning_rate=2e-4,
        dur_predictor_params=dict(
            encoder_embed_dim=4, var_pred_hidden_dim=6, var_pred_kernel_size=3, var_pred_dropout=0.5
        ),
    )
    os.makedirs(f"{out}/vocoder", exist_ok=True)
    with open(f"{out}/vocoder/config.json", "w") as file:
        json.dump(published, file, indent=1)
    torch.manual_seed(7)
    old = Generator(nn.utils.weight_norm)
    with torch.no_grad():
        for name, tensor in old.named_parameters():
            tensor.copy_(torch.randn_like(tensor))
    save_legacy({"generator": old.state_dict()}, f"{out}/vocoder/g_old.pt")
    new = Generator(nn.utils.parametrizations.weight_norm)
    state = {}
    for name, tensor in old.state_dict().items():
        spelled = name.replace(".weight_g", ".parametrizations.weight.original0")
        state[spelled.replace(".weight_v", ".parametrizations.weight.original1")] = tensor
    new.load_state_dict(state)
    save_legacy({"generator": new.state_dict()}, f"{out}/vocoder/g_new.pt")
    for module in old.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    save_file({n: t.detach().contiguous() for n, t in old.state_dict().items()}, f"{out}/vocoder/expected.safetensors")


class Tagged(torch.Tensor):
    """A subclass that adds nothing to the data."""


class Rebuilt:
    """Pickles as a call of `function`, which PyTorch of today reads but no longer writes."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def constructors(out):
    """A state dict with each constructor once, in pickle protocols 2 and 5."""

    def attributed(tensor):
        tensor.tag = {"lr": 0.1}
        return tensor

    matrix = lambda seed: fill(seed, 2, 3)
    old = matrix("old")
    state = {
        "plain": matrix("plain"),
        "transposed": matrix("transposed").t(),
        "parameter": nn.Parameter(matrix("parameter")),
        "parameter_with_attributes": attributed(nn.Parameter(matrix("parameter_with_attributes"))),
        "tensor_with_attributes": attributed(matrix("tensor_with_attributes")),
        "buffer": nn.Buffer(matrix("buffer")),
        "subclass": matrix("subclass").as_subclass(Tagged),
        "parameter_of_subclass": nn.Parameter(matrix("parameter_of_subclass").as_subclass(Tagged)),
        "release_0_3": Rebuilt(torch._utils._rebuild_tensor, old.storage(), 0, (2, 3), (3, 1)),
        "float8_e4m3": torch.arange(-6, 6, dtype=torch.float32).mul(3.5).to(torch.float8_e4m3fn),
        "float8_e5m2": torch.arange(-6, 6, dtype=torch.float32).mul(3.5).to(torch.float8_e5m2),
        "numpy_f2": matrix("numpy_f2").numpy().astype(np.float16),
        "numpy_f4": matrix("numpy_f4").numpy(),
        "numpy_f8": matrix("numpy_f8").numpy().astype(np.float64),
        "numpy_fortran": np.asfortranarray(matrix("numpy_fortran").numpy()),
        "numpy_big_endian": matrix("numpy_big_endian").numpy().astype(">f4"),
        "numpy_strided": matrix("numpy_strided").numpy()[:, ::2],
        "numpy_scalar_shape": np.array(0.25, np.float32),
    }
    for protocol in (2, 5):
        path = f"{out}/constructors_{protocol}.ckpt"
        torch.save({"state_dict": state, "epoch": 3}, path, pickle_protocol=protocol)
        loaded = torch.load(path, weights_only=False)["state_dict"]
        tensors = {
            name: torch.from_numpy(np.array(value, "=f4", order="C")) if isinstance(value, np.ndarray)
            else value.detach().as_subclass(torch.Tensor).float().contiguous()
            for name, value in loaded.items()
        }
        save_file(tensors, f"{out}/constructors.safetensors")


def containers(out):
    """Archives that were written on a big-endian machine, zipped again, or saved with other pickles."""
    out = f"{out}/containers"
    os.makedirs(out, exist_ok=True)
    kinds = dict(f2=torch.float16, f4=torch.float32, f8=torch.float64, bf16=torch.bfloat16)
    state = {name: fill(name, 4, 5).to(dtype) for name, dtype in kinds.items()}
    state["zeros"] = torch.zeros(40, 50)
    whole = io.BytesIO()
    torch.save({"state_dict": state}, whole)
    records = zipfile.ZipFile(whole)
    sizes = {f"archive/data/{i}": tensor.element_size() for i, tensor in enumerate(state.values())}

    def write(name, method=zipfile.ZIP_STORED, root="archive/", change=lambda name, data: data):
        with zipfile.ZipFile(f"{out}/{name}.ckpt", "w", method) as archive:
            for record in records.namelist():
                data = change(record, records.read(record))
                # A fixed date, so that the bytes do not change from run to run.
                archive.writestr(zipfile.ZipInfo(record.replace("archive/", root)), data, method)

    def swapped(name, data):
        if name == "archive/byteorder":
            return b"big"
        size = sizes.get(name)
        return np.frombuffer(data, f"<u{size}").byteswap().tobytes() if size else data

    write("big_endian", change=swapped)
    write("deflated", zipfile.ZIP_DEFLATED)
    write("deflated_other_root", zipfile.ZIP_DEFLATED, root="a b/c.d/")
    torch.save({"state_dict": state}, f"{out}/protocol_1.ckpt", pickle_protocol=1)
    legacy_of_big_endian(state, f"{out}/legacy_of_big_endian.ckpt")
    save_file({name: tensor.float() for name, tensor in state.items()}, f"{out}/expected.safetensors")
    for name in os.listdir(out):
        # PyTorch wants its root without folders.
        if name.endswith(".ckpt") and name != "deflated_other_root.ckpt":
            loaded = torch.load(f"{out}/{name}", weights_only=name != "protocol_1.ckpt")["state_dict"]
            assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items()), name


def legacy_of_big_endian(state, path):
    """The legacy stream of a big-endian machine: its data is little-endian all the same."""
    stream = io.BytesIO()
    save_legacy({"state_dict": state}, stream)
    stream.seek(0)
    head = [pickle.load(stream) for _ in range(2)]
    system = pickle.load(stream)
    rest = stream.read()
    system["little_endian"] = False
    with open(path, "wb") as file:
        for value in (*head, system):
            pickle.dump(value, file, protocol=2)
        file.write(rest)


def processors(out):
    """Image processors for squares of 10 pixels, and the pixels each gives for a wide and a tall picture."""
    clip = dict(
        image_processor_type="CLIPImageProcessor", do_resize=True, size={"shortest_edge": 10}, resample=3,
        do_center_crop=True, crop_size={"height": 10, "width": 10}, do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    square = {"height": 10, "width": 10}
    changes = {
        "clip": {},
        "mean": dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7]),
        "mean_number": dict(image_mean=0.5, image_std=0.25),
        "larger": dict(size={"shortest_edge": 13}),
        "squash": dict(size=square, do_center_crop=False),
        "squash_and_crop": dict(size={"height": 14, "width": 14}),
        "numbers": dict(size=10, crop_size=10),
        "no_normalize": dict(do_normalize=False),
        "no_rescale": dict(do_rescale=False),
        "no_rescale_no_normalize": dict(do_rescale=False, do_normalize=False),
        "factor": dict(rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0),
        "nulls": dict(do_normalize=None, image_mean=None, do_pad=True),
        "blip": dict(image_processor_type="BlipImageProcessor", size=square, do_center_crop=None, crop_size=None),
        "vit": dict(image_processor_type="ViTImageProcessorFast", size=10, resample=2, do_center_crop=None,
                    crop_size=None, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        "siglip": dict(image_processor_type="SiglipImageProcessor", size=square, do_center_crop=None, crop_size=None),
        "videomae": dict(image_processor_type="VideoMAEFeatureExtractor", resample=2),
        "deit": dict(image_processor_type="DeiTFeatureExtractor", size=12, crop_size=10),
        **{f"filter_{n}": dict(resample=n) for n in range(6)},
        **{f"filter_{n}_squash": dict(resample=n, size=square, do_center_crop=False) for n in range(6)},
        "filter_0_up": dict(resample=0, size={"shortest_edge": 47}),
        "filter_1_up": dict(resample=1, size={"shortest_edge": 47}),
    }
    y, x = np.mgrid[0:31, 0:43]
    picture = np.stack([255 * x / 42, 255 * y / 30, 127 + 127 * np.sin((x + 2 * y) / 5)], axis=-1)
    picture[(x // 7 + y // 9) % 3 == 0] = (10, 200, 90)
    picture = picture.astype(np.uint8)
    pictures = {"wide": picture[:23], "tall": picture[:, 5:19]}
    configurations, pixels = {}, {}
    for name, change in changes.items():
        config = configurations[name] = {**clip, **change}
        kind = config["image_processor_type"].removesuffix("Fast")
        kind = kind.replace("FeatureExtractor", "ImageProcessor") + "Pil"
        processor = getattr(transformers, kind).from_dict(dict(config))
        for shape, picture in pictures.items():
            image = Image.fromarray(picture)
            # A video of one frame, where the processor takes videos.
            values = processor([[image]] if "VideoMAE" in kind else image, return_tensors="np")["pixel_values"]
            pixels[f"{name}/{shape}"] = torch.from_numpy(np.array(values, "f4")).reshape(3, 10, 10)
    for shape, picture in pictures.items():
        pixels[f"picture/{shape}"] = torch.from_numpy(picture.copy()).float()
    with open(f"{out}/processors.json", "w") as file:
        json.dump(configurations, file, indent=1)
    save_file(pixels, f"{out}/processors.safetensors")


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    checkpoint, listing = reference_checkpoint(torch.float32)
    torch.save(checkpoint, f"{out}/reference.ckpt")
    half, _ = reference_checkpoint(torch.float16)
    save_legacy(half, f"{out}/reference_legacy.ckpt")
    with open(f"{out}/expected.json", "w") as file:
        json.dump({"reference": listing, "git": hugging_face(out)}, file, separators=(",", ":"))
    vocoder(out)
    constructors(out)
    containers(out)
    processors(out)


if __name__ == "__main__":
    main()
