"""Trains the small unit vocoder on the units and recordings of speech.py.

First spectral losses only (log-mel and multi-resolution STFT, quickly intelligible), then, for
most of the time, also small discriminators (of waveform periods and of spectrograms) with feature
matching, for a natural sound. The duration predictor learns along from the deduplicated sequences. Learning rates
follow the wall clock, so a run ends well whenever --minutes are over; an interrupted run resumes. Every
few minutes resynthesised captions of an unseen seed are judged by the listener (hear.py). Writes

  WORK/vocoder/g_NNNNNNNN   {"generator": state dict} (moving average of the weights), and config.json
  WORK/vocoder/state.pt     everything needed to resume

    python train_vocoder.py --work DIR --minutes 60 [--adversarial 0.7] [--threads 1] [--device cuda]
    python train_vocoder.py --work DIR --test 200      (only the judgement, of the newest checkpoint)
"""
import argparse
import copy
import glob
import json
import math
import os
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import speech
import vocoder
from vocoder import weight_norm

FRAMES, SENTENCES = 28, 8  # segments of 0.56 s, and whole sequences for the durations
HOP = speech.HOP


# ---------------------------------------------------------------- data

class Data:
    def __init__(self, work, batch, device, focus=None):
        self.batch, self.device = batch, device
        texts, self.units, self.durations, self.audio = speech.load_speech(work)
        # Half of the segments come from captions with these words, the other half from all.
        self.focus = [i for i, text in enumerate(texts) if focus and focus in text]
        self.frames = [np.repeat(u, d) for u, d in zip(self.units, self.durations)]
        self.longest = max(map(len, self.units))
        self.rng = np.random.default_rng()

    def segments(self):
        """Units (B, FRAMES) of random segments and their recordings (B, HOP * FRAMES)."""
        units, waves = [], []
        while len(units) < self.batch:
            i = self.rng.integers(len(self.frames))
            if self.focus and self.rng.random() < 0.5:
                i = self.rng.choice(self.focus)
            if len(self.frames[i]) < FRAMES:
                continue
            t = self.rng.integers(len(self.frames[i]) - FRAMES + 1)
            units.append(self.frames[i][t: t + FRAMES])
            waves.append(self.audio[i][t * HOP: (t + FRAMES) * HOP])
        waves = np.array(waves).astype(np.float32) / 32768
        return torch.from_numpy(np.array(units)).to(self.device), torch.from_numpy(waves).to(self.device)

    def sentences(self):
        """Padded units (B, T), their durations, and a mask."""
        pick = self.rng.integers(len(self.units), size=SENTENCES)
        units, durations = (np.zeros((SENTENCES, self.longest), np.int64) for _ in range(2))
        for row, i in enumerate(pick):
            units[row, :len(self.units[i])] = self.units[i]
            durations[row, :len(self.units[i])] = self.durations[i]
        units, durations = (torch.from_numpy(rows).to(self.device) for rows in (units, durations))
        return units, durations, (durations > 0).float()


# ---------------------------------------------------------------- losses

def spectrum(wave, n_fft):
    """Magnitudes (B, bins, frames); the window spans n_fft, a quarter of it is the hop."""
    z = torch.view_as_real(torch.stft(wave, n_fft, n_fft // 4, window=torch.hann_window(n_fft, device=wave.device),
                                      return_complex=True))
    return torch.sqrt(z.pow(2).sum(-1) + 1e-7)


class SpectralLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mel", torch.from_numpy(speech.mel_filters(80, 1024, 0.0)))

    def forward(self, fake, real):
        total = 0.0
        for n in (256, 512, 1024, 2048):
            f, r = spectrum(fake, n), spectrum(real, n)
            total = total + (f - r).norm() / r.norm() + F.l1_loss(torch.log(f + 1e-3), torch.log(r + 1e-3))
            if n == 1024:
                mel = F.l1_loss(torch.log(self.mel @ f + 1e-3), torch.log(self.mel @ r + 1e-3))
        return total / 4 + 2 * mel, mel.detach()


class PeriodDiscriminator(nn.Module):
    def __init__(self, period):
        super().__init__()
        self.period = period
        widths = (1, 16, 32, 64, 64)
        self.convs = nn.ModuleList(weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)))
                                   for a, b in zip(widths, widths[1:]))
        self.post = weight_norm(nn.Conv2d(64, 1, (3, 1), padding=(1, 0)))

    def forward(self, wave):
        x = wave[:, : wave.shape[1] // self.period * self.period].reshape(len(wave), 1, -1, self.period)
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.post(x), maps


class SpectrumDiscriminator(nn.Module):
    def __init__(self, n_fft):
        super().__init__()
        self.n_fft = n_fft
        widths = (1, 16, 32, 32, 32)
        self.convs = nn.ModuleList(weight_norm(nn.Conv2d(a, b, (5, 3), (3, 1), (2, 1)))
                                   for a, b in zip(widths, widths[1:]))
        self.post = weight_norm(nn.Conv2d(32, 1, 3, padding=1))

    def forward(self, wave):
        x = torch.log(spectrum(wave, self.n_fft) + 1e-3)[:, None]
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.post(x), maps


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([PeriodDiscriminator(p) for p in (2, 3, 5, 7, 11)]
                                   + [SpectrumDiscriminator(n) for n in (512, 1024)])

    def forward(self, wave):
        return [part(wave) for part in self.parts]


def duration_loss(model, units, durations, mask):
    log = model.dur_predictor(model.dict(units), mask[..., None])
    return ((log - torch.log(durations + 1.0)) ** 2 * mask).sum() / mask.sum()


# ---------------------------------------------------------------- judgement

def judge(model, work, count, seed, wav_folder=None):
    """Share of unseen captions that are heard right after speech -> units -> durations -> vocoder."""
    import hear
    import scenes
    z = np.load(os.path.join(work, "speech", "units.npz"))
    with open(os.path.join(work, "speech", "captions.json")) as f:
        known = set(json.load(f))
    right = exact = done = i = 0
    misheard, stretch = [], []
    while done < count:
        scene = scenes.sample_scene(np.random.default_rng([seed, i]))
        i += 1
        text = scenes.caption(scene)
        if text in known:
            continue
        units, durations = speech.runs(speech.segment(speech.features(speech.speak(text)), z["centres"],
                                                      speech.CHANGE * float(z["spread"])))
        sound = model.synthesise(units)
        if wav_folder and done < 12:
            import soundfile
            os.makedirs(wav_folder, exist_ok=True)
            soundfile.write(os.path.join(wav_folder, f"{done:02d}.wav"), sound, 16000)
        heard = hear.hear(sound)
        verdict = scenes.agrees(scene, heard)
        right, exact, done = right + verdict["right"], exact + verdict["exact"], done + 1
        stretch.append(len(sound) / HOP / durations.sum())
        if not verdict["exact"]:
            misheard.append((text, heard))
    return right / count, exact / count, float(np.mean(stretch)), misheard


# ---------------------------------------------------------------- training

class Trainer:
    """The models, their optimizers and one update of all of them."""

    def __init__(self, args):
        config = vocoder.CONFIG | {"upsample_initial_channel": args.width}
        self.args, self.config = args, config
        self.data, self.spectral = Data(args.work, args.batch, args.device, args.focus), SpectralLoss().to(args.device)
        self.model, self.smooth = (vocoder.CodeGenerator(config).to(args.device) for _ in range(2))
        self.critic = Discriminator().to(args.device)
        self.smooth.load_state_dict(self.model.state_dict())
        self.rate, self.critic_rate = (torch.tensor(args.rate, device=args.device) for _ in range(2))
        on_gpu = args.device == "cuda"
        self.opt, self.opt_critic = (
            torch.optim.AdamW(part.parameters(), lr=rate, betas=(0.8, 0.99), weight_decay=1e-4, capturable=on_gpu)
            for part, rate in ((self.model, self.rate), (self.critic, self.critic_rate)))
        self.saved = {"model": self.model, "critic": self.critic, "smooth": self.smooth, "opt": self.opt,
                      "opt_critic": self.opt_critic}
        self.graphs = {}

    def cast(self):
        return torch.autocast(self.args.device, torch.bfloat16, cache_enabled=False)

    def update(self, adversarial, units, real, sentences):
        """One update; the losses as tensors."""
        with self.cast():
            fake = self.model(units)
        fake = fake.float()
        losses = {}
        if adversarial:
            with self.cast():
                judged = self.critic(torch.cat([real, fake.detach()]))
            half = self.args.batch
            loss = sum((1 - a[:half].float()).pow(2).mean() + a[half:].float().pow(2).mean() for a, _ in judged)
            self.opt_critic.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.critic.parameters(), 10.0)
            self.opt_critic.step()
            losses["critic"] = loss.detach()
        loss, losses["mel"] = self.spectral(fake, real)
        losses["spectral"] = loss.detach()
        loss = 10 * loss
        if adversarial:
            self.critic.requires_grad_(False)
            with self.cast():
                with torch.no_grad():
                    wanted = self.critic(real)
                judged = self.critic(fake)
            self.critic.requires_grad_(True)
            fool = sum((1 - a.float()).pow(2).mean() for a, _ in judged)
            match = sum(F.l1_loss(m.float(), n.float()) for (_, maps), (_, real_maps) in zip(judged, wanted)
                        for m, n in zip(maps, real_maps))
            losses["fool"], losses["match"] = fool.detach(), match.detach()
            loss = loss + fool + 2 * match
        duration = duration_loss(self.model, *sentences)
        losses["duration"] = duration.detach()
        self.opt.zero_grad()
        (loss + duration).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 50.0)
        self.opt.step()
        return losses

    def graphed(self, adversarial, *inputs):
        """`update` on a GPU, where a step is thousands of small kernels: recorded once as a CUDA graph and replayed."""
        if adversarial not in self.graphs:
            held = [[part.clone() for part in each] if isinstance(each, tuple) else each.clone() for each in inputs]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.update(adversarial, *held)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                losses = self.update(adversarial, *held)
            self.graphs[adversarial] = graph, held, losses
        graph, held, losses = self.graphs[adversarial]
        for slot, value in zip(held, inputs):
            for a, b in zip(*((slot, value) if isinstance(value, tuple) else ([slot], [value]))):
                a.copy_(b)
        graph.replay()
        return losses

    def save(self, folder, step, spent):
        path = os.path.join(folder, "state.pt")
        torch.save({k: v.state_dict() for k, v in self.saved.items()} | {"step": step, "spent": spent}, path + ".new")
        os.replace(path + ".new", path)
        old = sorted(glob.glob(os.path.join(folder, "g_*")))
        torch.save({"generator": self.smooth.state_dict()}, os.path.join(folder, "new.pt"))
        os.replace(os.path.join(folder, "new.pt"), os.path.join(folder, f"g_{step:08d}"))
        for name in old[:-1]:
            os.remove(name)

    def load(self, folder):
        """(steps, seconds) of an earlier run."""
        path = os.path.join(folder, "state.pt")
        if not os.path.exists(path):
            if self.args.begin:
                state = torch.load(self.args.begin, map_location=self.args.device, weights_only=True)["generator"]
                for part in (self.model, self.smooth):
                    part.load_state_dict({k: v for k, v in state.items() if k != "dict.weight"}, strict=False)
            return 0, 0.0
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        for name, part in self.saved.items():
            part.load_state_dict(state[name])
        for opt, rate in ((self.opt, self.rate), (self.opt_critic, self.critic_rate)):
            opt.param_groups[0]["lr"] = rate
        return state["step"], state["spent"]


def train(args):
    folder = os.path.join(args.work, "vocoder")
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(0)
    trainer = Trainer(args)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(trainer.config, f, indent=1)
    step, spent = trainer.load(folder)
    run = trainer.graphed if args.device == "cuda" and not args.eager else trainer.update
    print(f"{sum(p.numel() for p in trainer.model.parameters())} parameters, from step {step}", flush=True)
    begun = time.time() - spent
    next_report = next_save = next_judge = 0.0
    sums, counted = {}, 0
    while spent < args.minutes * 60:
        spent = time.time() - begun
        part = min(1.0, spent / (args.minutes * 60))
        adversarial = part > 1 - args.adversarial
        scale = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        trainer.rate.fill_(args.rate * scale * (0.7 if adversarial else 1.0))
        trainer.critic_rate.fill_(args.rate * scale * 0.5)
        losses = run(adversarial, *trainer.data.segments(), trainer.data.sentences())
        step += 1
        with torch.no_grad():
            keep = min(0.998, step / (step + 20))
            torch._foreach_lerp_(list(trainer.smooth.parameters()), list(trainer.model.parameters()), 1 - keep)
        for k, v in losses.items():
            sums[k] = sums.get(k, 0.0) + v
        counted += 1
        if spent >= next_report:
            print(f"{spent / 60:.1f} min, step {step}: "
                  + ", ".join(f"{k} {float(v) / counted:.3f}" for k, v in sums.items()), flush=True)
            sums, counted, next_report = {}, 0, spent + 30
        if spent >= next_save:
            trainer.save(folder, step, spent)
            next_save = spent + 120
        if args.judge_every and spent >= next_judge + args.judge_every * 60:
            right, exact, stretch, _ = judge(copy.deepcopy(trainer.smooth).cpu().eval(), args.work, 40, 777,
                                              os.path.join(folder, "wavs"))
            print(f"step {step}: heard right {right:.1%}, exactly {exact:.1%}, length ratio {stretch:.3f}", flush=True)
            next_judge = spent
    trainer.save(folder, step, spent)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--minutes", type=float, default=60, help="wall-clock budget, resumed runs included")
    ap.add_argument("--adversarial", type=float, default=0.7, help="last share of the time with discriminators")
    ap.add_argument("--rate", type=float, default=1e-3)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--batch", type=int, default=12)
    ap.add_argument("--begin", help="a generator (g_*) of other units to begin with: all but its embeddings of units")
    ap.add_argument("--eager", action="store_true", help="on a GPU too: no CUDA graphs")
    ap.add_argument("--width", type=int, default=vocoder.CONFIG["upsample_initial_channel"], help="channels")
    ap.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    ap.add_argument("--judge-every", type=float, default=10, help="minutes; 0 for captions that are no drawn scenes")
    ap.add_argument("--focus", help="words often misheard: half of the segments come from captions with them")
    ap.add_argument("--test", type=int, default=0, help="only judge on so many captions")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if args.test:
        folder = os.path.join(args.work, "vocoder")
        right, exact, stretch, misheard = judge(vocoder.load(folder), args.work, args.test, 888,
                                                os.path.join(folder, "wavs"))
        for text, heard in misheard:
            print(f"said:  {text}\nheard: {heard}")
        print(f"{vocoder.newest(folder)}: {args.test} unseen captions, heard right {right:.1%}, exactly {exact:.1%}, "
              f"length ratio {stretch:.3f}")
    else:
        train(args)
