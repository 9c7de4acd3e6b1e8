"""Tiny models with what they must compute, as read by the Rust tests: writes tests/golden/models/<name>/.

    python recipes/golden/models.py [--out tests/golden/models]

Each folder is a model directory in im2sp's own format (config.json, captioner.safetensors, sometimes
vocoder.safetensors) plus the truth: expected.safetensors (pixels, vision, image tokens, teacher-forced logits),
tokens.json (greedy and beam captions) and vocoder_expected.safetensors. Captions come from transformers' generate on
GitForCausalLM in f32; the vocoder's samples from vocoder_reference.py. Pictures whose captions change in f64 or under
a relative perturbation of 1e-5 of the weights are passed over, so that a test may demand equal tokens.
Needs requirements.txt beside this file. Takes about two minutes on one core. Weights are bf16 values.
"""
import argparse
import copy
import json
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

import beam
import captioners
import vocoder_reference
from captioners import BOS, EOS, dimensions

PICTURES = 4  # with captions; the first TEACHER of them also with activations
TEACHER = 2
TEXT = 9
SHORT, LONG = 7, 40

CAPTIONERS = {
    # The least of everything; its vocoder predicts durations.
    "small": dict(
        dimensions=dimensions(24, (8, 64, 1, 40), (64, 1, 24, 203, 48)),
        weights=dict(seed=7, gain=1.6, logits=2.0, positions=4.0, eos_bias=3.0),
        vocoder="durations",
    ),
    # The vision wider than the decoder; no vocoder.
    "wide_vision": dict(
        dimensions=dimensions(15, (5, 128, 1, 24), (64, 2, 24, 203, 48)),
        weights=dict(seed=5, gain=1.6, logits=2.0, positions=4.0, eos_bias=2.0),
    ),
    # The decoder wider than the vision, two vision layers, another vocabulary; its vocoder takes f0 and a speaker.
    "wide_decoder": dict(
        dimensions=dimensions(20, (4, 64, 2, 24), (128, 1, 24, 110, 48)),
        weights=dict(seed=9, gain=1.6, logits=2.0, positions=4.0, eos_bias=3.0),
        vocoder="f0_speaker",
    ),
}

VOCODERS = {
    "durations": dict(
        sampling_rate=16000,
        upsample_rates=[5, 4, 4, 2, 2],
        upsample_kernel_sizes=[11, 8, 8, 4, 4],
        upsample_initial_channel=32,
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        num_embeddings=200,
        embedding_dim=10,
        model_in_dim=10,
        duration=dict(hidden=12, kernel=3),
    ),
    "f0_speaker": dict(
        sampling_rate=8000,
        upsample_rates=[3, 2],
        upsample_kernel_sizes=[7, 4],
        upsample_initial_channel=20,
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 2], [1, 3]],
        num_embeddings=107,
        embedding_dim=6,
        model_in_dim=18,
        num_speakers=3,
        f0_bins=5,
    ),
}


def settings():
    """Every generation the tests know: beams, length limit (BOS counted), length penalty, early stopping."""
    for max_length in (SHORT, LONG):
        yield dict(num_beams=1, max_length=max_length, length_penalty=1.0, early_stopping=False)
        for num_beams in (3, 5):
            for length_penalty in (1.0, 0.5, 2.0):
                for early_stopping in (True, False, "never"):
                    yield dict(
                        num_beams=num_beams,
                        max_length=max_length,
                        length_penalty=length_penalty,
                        early_stopping=early_stopping,
                    )


@torch.no_grad()
def generate(model, pixels, setting):
    """[(tokens after BOS, cut before the first EOS)], [score or None] by transformers' own loop."""
    result = model.generate(
        pixel_values=pixels,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **setting,
    )
    assert (result.sequences[:, 0] == BOS).all()
    tokens = [beam.trim(row[1:], EOS) for row in result.sequences.tolist()]
    scores = [None] * len(tokens)
    if setting["num_beams"] > 1:
        scores = result.sequences_scores.tolist()
    return tokens, scores


@torch.no_grad()
def plain(model, picture):
    """The model as a function from sequences to log-probabilities, nothing cached, in f64."""

    def next_log_probabilities(sequences):
        logits = model(
            pixel_values=picture[None].expand(len(sequences), -1, -1, -1),
            input_ids=torch.tensor(sequences),
            use_cache=False,
        ).logits[:, -1]
        return logits.double().log_softmax(-1).tolist()

    return torch.no_grad()(next_log_probabilities)


@torch.no_grad()
def perturbed(model, seed):
    """A copy whose weights are off by about 1e-5, more than a different order of summation can cause."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.mul_(1 + 1e-5 * torch.randn(parameter.shape, generator=generator))
    return other


def captions(model, pixels):
    """The generations of the first PICTURES stable pictures, and which pictures those are."""
    double = copy.deepcopy(model).double()
    variants = [(double, pixels.double()), (perturbed(model, 1), pixels), (perturbed(model, 2), pixels)]
    stable = set(range(len(pixels)))
    runs = []
    for setting in settings():
        tokens, scores = generate(model, pixels, setting)
        for other, same in variants:
            others, _ = generate(other, same, setting)
            stable -= {i for i in stable if others[i] != tokens[i]}
        runs.append((setting, tokens, scores))
    chosen = sorted(stable)[:PICTURES]
    assert len(chosen) == PICTURES, f"only {len(stable)} of {len(pixels)} pictures have stable captions"
    out = []
    for setting, tokens, scores in runs:
        run = dict(setting, tokens=[tokens[i] for i in chosen])
        if setting["num_beams"] > 1:
            run["scores"] = [scores[i] for i in chosen]
        out.append(run)
    return chosen, out


def check_and_add_compat(model, pixels, runs):
    """Compares every run with the plain rules, and adds the captions by the rules of transformers 4.33."""
    double = copy.deepcopy(model).double()
    for run in runs:
        common = (BOS, EOS, run["num_beams"], run["max_length"])
        for picture, tokens in enumerate(run["tokens"]):
            function = plain(double, pixels[picture].double())
            if run["num_beams"] == 1:
                mine, _ = beam.compat(function, *common)
            else:
                mine, score = beam.current(function, *common, run["length_penalty"], run["early_stopping"])
                assert abs(score - run["scores"][picture]) < 1e-4, (run, score)
            assert mine == tokens, (run, picture, mine)
            if run["num_beams"] > 1 and run["early_stopping"] is True and run["length_penalty"] == 1.0:
                mine, score = beam.compat(function, *common)
                run.setdefault("compat_reference", []).append(mine)
                run.setdefault("compat_scores", []).append(score)


@torch.no_grad()
def activations(model, pixels, seed):
    """What each stage must compute for the first pictures and a random text."""
    vision = model.git.image_encoder.vision_model
    pixels = pixels[:TEACHER]
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, model.config.vocab_size, (TEACHER, TEXT), generator=generator)
    text[:, 0] = BOS
    seen = model.git.image_encoder(pixels).last_hidden_state
    logits = model(pixel_values=pixels, input_ids=text, use_cache=False).logits
    return {
        "embeddings": vision.embeddings(pixels),  # (B, T, C), before the first norm
        "vision": seen,  # (B, T, C), after the last norm
        "image_tokens": model.git.visual_projection(seen),  # (B, T, C of the decoder)
        "text": text,  # (B, TEXT), BOS first
        "logits": logits[:, -TEXT:],  # (B, TEXT, V), row t predicts token t + 1
    }


def arrays(tensors):
    return {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in tensors.items()}


@torch.no_grad()
def vocoder_golden(vocoder, seed):
    """Units and what must come of them; see the names."""
    config = vocoder.config
    generator = torch.Generator().manual_seed(seed)

    def draw(most, count):
        return torch.randint(0, most, (count,), generator=generator)

    out = {"units": draw(config["num_embeddings"], 8)}
    if config.get("duration"):
        out["log_durations"] = vocoder.log_durations(out["units"])
        raw = torch.exp(out["log_durations"]) - 1
        assert ((raw - raw.floor() - 0.5).abs() > 1e-3).all(), "a duration is too close to a tie"
        out["durations"] = vocoder.durations(out["units"])
        out["samples"] = vocoder(out["units"], out["durations"])
        out["samples_one_frame_each"] = vocoder(out["units"])
        out["one_unit"] = out["units"][:1].clone()
        out["one_unit_log_durations"] = vocoder.log_durations(out["one_unit"])
        out["one_unit_samples"] = vocoder(out["one_unit"], vocoder.durations(out["one_unit"]))
    else:
        out["speaker"] = torch.tensor([2])
        for name, count in (("f0", 8), ("f0_longer", 24), ("f0_shorter", 4)):
            out[name] = draw(config["f0_bins"], count)
            out[name + "_samples"] = vocoder(out["units"], f0=out[name], speaker=2)
        out["durations"] = 1 + draw(4, 8)
        out["f0_frames"] = draw(config["f0_bins"], int(out["durations"].sum()))
        out["f0_frames_samples"] = vocoder(out["units"], out["durations"], f0=out["f0_frames"], speaker=0)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/golden/models")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    for name, recipe in CAPTIONERS.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        config = {"format": "im2sp-1", "description": f"Random weights: golden model {name}.", **recipe["dimensions"]}
        model = captioners.randomise(captioners.build(config), **recipe["weights"])
        side = config["image"]["size"]
        generator = torch.Generator().manual_seed(100)
        pixels = torch.randn(16, 3, side, side, generator=generator)
        chosen, runs = captions(model, pixels)
        pixels = pixels[chosen]
        check_and_add_compat(model, pixels, runs)
        save_file(
            arrays(captioners.canonical_state(captioners.reference_state(model))), folder / "captioner.safetensors"
        )
        save_file(arrays({"pixels": pixels, **activations(model, pixels, 200)}), folder / "expected.safetensors")
        lines = ",\n".join(json.dumps(run) for run in runs)
        (folder / "tokens.json").write_text(f"[\n{lines}\n]\n")

        if "vocoder" in recipe:
            config["vocoder"] = VOCODERS[recipe["vocoder"]]
            vocoder = vocoder_reference.randomise(vocoder_reference.Vocoder(config["vocoder"]), seed=300)
            save_file(arrays(vocoder.state_dict()), folder / "vocoder.safetensors")
            golden = vocoder_golden(vocoder, 400)
            save_file(arrays(golden), folder / "vocoder_expected.safetensors")
            loud = {k: f"{v.std():.3f}/{v.abs().max():.3f}" for k, v in golden.items() if k.endswith("samples")}
            print(name, "vocoder std/peak", loud, "durations", golden["durations"].tolist())
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

        logits = activations(model, pixels, 200)["logits"]
        print(name, "pictures", chosen, "logits std %.2f" % logits.std())
        greedy = {run["max_length"]: run["tokens"] for run in runs if run["num_beams"] == 1}
        beams = [run for run in runs if run["num_beams"] > 1]
        count = PICTURES * len(beams)
        unlike = sum(t != g for run in beams for t, g in zip(run["tokens"], greedy[run["max_length"]]))
        print("  greedy lengths", [len(t) for t in greedy[LONG]], "first", greedy[LONG][0])
        print(f"  beams unlike greedy {unlike}/{count}, distinct captions", end=" ")
        print(len({tuple(t) for run in runs for t in run["tokens"]}), end=", ")
        pairs = [p for run in beams if "compat_reference" in run for p in zip(run["tokens"], run["compat_reference"])]
        print(f"4.33 unlike 5.x {sum(a != b for a, b in pairs)}/{len(pairs)}")
    print("bytes", sum(f.stat().st_size for f in out.rglob("*") if f.is_file()))


if __name__ == "__main__":
    main()
