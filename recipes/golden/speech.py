"""Tiny speech encoders and recognisers with what they must compute: writes tests/golden/speech/.

    python recipes/golden/speech.py [--out tests/golden/speech]

hubert (group norm, norms after the residuals), ctc_base (the same with an output layer) and ctc_large (layer norm in the
convolutions, norms before) are Hugging Face directories; hubert.pt and ctc_large/checkpoint.pt the same tensors as fairseq
stores them, with an optimizer's state, arguments and a dictionary around them that nobody needs to understand.
expected.safetensors holds samples, features of every layer and best ids; expected.json texts; km.bin and its kind the centres
of scikit-learn's k-means, whose units are in expected.safetensors too. Weights are f16 values. Cases whose ids or units hang
on less than 1e-3 are refused. Needs requirements.txt beside this file.
"""
import argparse
import json
import sys
import types
from pathlib import Path

import joblib
import numpy as np
import torch
from safetensors.numpy import save_file
from sklearn.cluster import KMeans, MiniBatchKMeans
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

SMALL = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    intermediate_size=72,
    conv_dim=[8] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_feat_extract_layers=7,
)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
SYMBOLS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
UNITS = 20


def randomize(model, seed):
    """Weights of f16 values that keep activations near one, and norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "weight" in name and value.dim() > 1:
                scale = 1.5 * value[0].numel() ** -0.5 if "original0" not in name else 0.4
                drawn = torch.randn(value.shape, generator=generator) * scale
                drawn = drawn.abs() + 0.2 if "original0" in name else drawn
            else:
                mean = 1.0 if "weight" in name else 0.0
                drawn = torch.randn(value.shape, generator=generator) * 0.2 + mean
            if name.startswith("lm_head"):
                drawn *= 3
            value.copy_(drawn.half().float())
    return model.eval()


def fairseq_names(state, prefix):
    """Tensors under the names of fairseq; the output layer outside of the prefix."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("wav2vec2.")
        if name.startswith("lm_head"):
            renamed[name.replace("lm_head", "w2v_encoder.proj")] = tensor
            continue
        parts = name.split(".")
        if name == "masked_spec_embed":
            name = "mask_emb"
        elif name.startswith("feature_extractor.conv_layers"):
            layer, kind = parts[2], parts[-1]
            if parts[3] == "conv":
                name = f"feature_extractor.conv_layers.{layer}.0.{kind}"
            else:
                middle = "2.1" if "w2v" in prefix else "2"
                name = f"feature_extractor.conv_layers.{layer}.{middle}.{kind}"
        elif name.startswith("encoder.pos_conv_embed"):
            kind = {"original0": "weight_g", "original1": "weight_v", "bias": "bias"}[parts[-1]]
            name = f"encoder.pos_conv.0.{kind}"
        else:
            for old, new in (
                ("feature_projection.layer_norm", "layer_norm"),
                ("feature_projection.projection", "post_extract_proj"),
                (".layer_norm.", ".self_attn_layer_norm.") if ".layers." in name else ("", ""),
                (".attention.", ".self_attn."),
                (".feed_forward.intermediate_dense", ".fc1"),
                (".feed_forward.output_dense", ".fc2"),
            ):
                name = name.replace(old, new) if old else name
        renamed[prefix + name] = tensor
    return renamed


class Dictionary:
    """Stands for fairseq's."""

    def __init__(self):
        self.symbols = ["<s>", "<pad>"]


def save_fairseq(path, state, extra, normalize):
    module = types.ModuleType("fairseq.data.dictionary")
    module.Dictionary = Dictionary
    Dictionary.__module__ = module.__name__
    for name in ("fairseq", "fairseq.data"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[module.__name__] = module
    moments = {n: {"step": 3, "exp_avg": t.half(), "exp_avg_sq": t.half()} for n, t in list(enumerate(state.values()))[:2]}
    checkpoint = {
        "args": argparse.Namespace(arch="hubert", normalize=normalize),
        "cfg": {"task": {"_name": "hubert_pretraining", "normalize": normalize}},
        "model": {name: tensor.half() for name, tensor in (state | extra).items()},
        "criterion": {},
        "task_state": {"dictionary": Dictionary()},
        "extra_state": {"epoch": 1},
        "last_optimizer_state": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]},
    }
    torch.save(checkpoint, path)


def sound(seed, count):
    """Tones and noise that change."""
    generator = np.random.default_rng(seed)
    t = np.arange(count) / 16000
    tones = sum(np.sin(2 * np.pi * f * t * (1 + 0.3 * t)) * a for f, a in ((140, 0.2), (610, 0.15), (2300, 0.1)))
    return ((tones + generator.normal(0, 0.05, count)) * (0.6 + 0.4 * np.sin(9 * t))).astype(np.float32)


def check_margin(scores, what):
    best = np.sort(scores, axis=-1)
    margin = (best[..., -1] - best[..., -2]).min()
    assert margin > 1e-3, f"{what}: decided by {margin}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/golden/speech")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tensors, texts = {}, {}
    samples = {"short": sound(1, 400), "odd": sound(2, 6143), "second": sound(3, 16000)}
    tensors |= {f"samples.{name}": values for name, values in samples.items()}

    hubert = randomize(HubertModel(HubertConfig(**SMALL)), 1)
    features = {}
    for name, values in samples.items():
        with torch.no_grad():
            states = hubert(torch.from_numpy(values)[None], output_hidden_states=True).hidden_states
        for layer in (1, 2):
            features[name, layer] = states[layer][0].numpy()
            tensors[f"hubert.{name}.{layer}"] = features[name, layer]
    hubert.half().save_pretrained(out / "hubert")
    # What the port's own front end would do to samples, and units of HuBERT Base are made without.
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(out / "hubert")
    state = {name: tensor for name, tensor in hubert.state_dict().items()}
    save_fairseq(
        out / "hubert.pt",
        fairseq_names(state, ""),
        {"label_embs_concat": torch.zeros(5, 4), "final_proj.weight": torch.zeros(4, 64), "final_proj.bias": torch.zeros(4)},
        normalize=False,
    )

    rows = np.concatenate([features[name, 2] for name in samples])
    kmeans = KMeans(UNITS, n_init=1, random_state=0).fit(rows)
    batch = MiniBatchKMeans(UNITS, n_init=1, random_state=0, batch_size=64).fit(rows.astype(np.float64))
    joblib.dump(kmeans, out / "km.bin")
    joblib.dump(batch, out / "km_batch.bin")
    joblib.dump(kmeans, out / "km_zlib.bin", compress=("zlib", 3))
    np.save(out / "km.npy", kmeans.cluster_centers_)
    np.save(out / "km_fortran.npy", np.asfortranarray(kmeans.cluster_centers_.astype(np.float64)))
    tensors["centres"] = kmeans.cluster_centers_.astype(np.float32)
    tensors["centres_batch"] = batch.cluster_centers_.astype(np.float32)
    for name in samples:
        x = features[name, 2].astype(np.float64)
        distances = ((x[:, None] - kmeans.cluster_centers_.astype(np.float64)) ** 2).sum(-1)
        check_margin(-distances, f"units of {name}")
        tensors[f"units.{name}"] = distances.argmin(-1)

    for kind, more in (("ctc_base", {}), ("ctc_large", LARGE)):
        model = randomize(Wav2Vec2ForCTC(Wav2Vec2Config(**SMALL, **more, vocab_size=32, pad_token_id=0)), 2)
        folder = out / kind
        folder.mkdir(exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps({symbol: n for n, symbol in enumerate(SYMBOLS)}))
        tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json")
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=kind == "ctc_large")
        extractor.save_pretrained(folder)
        with torch.no_grad():
            # Centred and wide, so that the best ids change with the sound.
            inputs = extractor(samples["second"], sampling_rate=16000, return_tensors="pt").input_values
            logits = model(inputs).logits[0]
            model.lm_head.weight.copy_((model.lm_head.weight / logits.std(0)[:, None]).half().float())
            model.lm_head.bias.copy_((model.lm_head.bias - model(inputs).logits[0].mean(0)).half().float())
            model.lm_head.bias[0] += 1
        for name, values in samples.items():
            inputs = extractor(values, sampling_rate=16000, return_tensors="pt")
            with torch.no_grad():
                result = model(inputs.input_values, output_hidden_states=True)
            logits = result.logits[0].numpy()
            check_margin(logits, f"{kind} of {name}")
            tensors[f"{kind}.{name}.ids"] = logits.argmax(-1)
            tensors[f"{kind}.{name}.1"] = result.hidden_states[1][0].numpy()
            tensors[f"{kind}.{name}.2"] = result.hidden_states[2][0].numpy()
            texts[f"{kind}.{name}"] = tokenizer.decode(torch.from_numpy(logits.argmax(-1)))
        state = {name: tensor for name, tensor in model.state_dict().items()}
        if kind == "ctc_large":
            save_fairseq(folder / "checkpoint.pt", fairseq_names(state, "w2v_encoder.w2v_model."), {}, normalize=True)
        model.half().save_pretrained(folder)

    assert all(np.isfinite(values).all() for values in tensors.values())
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(tensors, out / "expected.safetensors")
    (out / "expected.json").write_text(json.dumps(texts, indent=1) + "\n")
    print(texts, sum(path.stat().st_size for path in out.rglob("*") if path.is_file()), "bytes")


if __name__ == "__main__":
    main()
