"""The unit HiFi-GAN in plain PyTorch, written from its published description: the oracle and the peer of im2sp's.

Names of parameters follow the published checkpoints, so `load_state_dict` takes both a checkpoint's folded weights
and a canonical im2sp file. Configuration is the `vocoder` part of im2sp's config.json. Inference only; weight norm
occurs as `fold` (for reading checkpoints) and `unfold` (for writing one), never as a layer.
"""
import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.1


class ResidualBlock(nn.Module):
    """x + c2(lrelu(c1(lrelu(x)))), once per dilation; c1 is dilated, c2 is not."""

    def __init__(self, channels, kernel, dilations):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x):
        for first, second in zip(self.convs1, self.convs2):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class DurationPredictor(nn.Module):
    """(1, C, T) unit embeddings -> (1, T) log(frames + 1)."""

    def __init__(self, channels, hidden, kernel):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(channels, hidden, kernel, padding=(kernel - 1) // 2), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, x):
        x = self.ln1(self.conv1(x).transpose(1, 2))
        x = self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2))
        return self.proj(x)[..., 0]


class Vocoder(nn.Module):
    """Units (T) -> samples (hop * S)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config["embedding_dim"]
        self.dict = nn.Embedding(config["num_embeddings"], width)
        if config.get("duration"):
            self.dur_predictor = DurationPredictor(width, config["duration"]["hidden"], config["duration"]["kernel"])
        if config.get("num_speakers"):
            self.spkr = nn.Embedding(config["num_speakers"], width)
        if config.get("f0_bins"):
            self.f0_quant_embed = nn.Embedding(config["f0_bins"], width)
        channels = config["upsample_initial_channel"]
        self.conv_pre = nn.Conv1d(config["model_in_dim"], channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config["upsample_rates"], config["upsample_kernel_sizes"]):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]):
                self.resblocks.append(ResidualBlock(channels, size, dilations))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

    def log_durations(self, units):
        return self.dur_predictor(self.dict(units).T[None])[0]

    def durations(self, units):
        """Frames of each unit; torch.round rounds halves to even."""
        return torch.clamp(torch.round(torch.exp(self.log_durations(units)) - 1), min=1).long()

    def generate(self, x):
        """(1, model_in_dim, S) -> samples (hop * S)."""
        x = self.conv_pre(x)
        blocks = len(self.config["resblock_kernel_sizes"])
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            total = self.resblocks[stage * blocks](x)
            for block in self.resblocks[stage * blocks + 1 : (stage + 1) * blocks]:
                total = total + block(x)
            x = total / blocks
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[0, 0]

    def forward(self, units, durations=None, f0=None, speaker=None):
        """`durations` (T): frames of each unit, None for one each; `f0`: bins, stretched as the units are."""
        x = self.dict(units).T[None]
        if durations is not None:
            x = torch.repeat_interleave(x, durations, dim=2)
        if f0 is not None:
            pitch = self.f0_quant_embed(f0).T[None]
            frames = max(x.shape[2], pitch.shape[2])
            x, pitch = (part.repeat_interleave(frames // part.shape[2], dim=2) for part in (x, pitch))
            if x.shape[2] != pitch.shape[2]:
                raise ValueError("the number of f0 values is no multiple of the number of frames, nor the reverse")
            x = torch.cat([x, pitch], dim=1)
        if speaker is not None:
            who = self.spkr(torch.tensor([speaker])).T[None].expand(-1, -1, x.shape[2])
            x = torch.cat([x, who], dim=1)
        return self.generate(x)


@torch.no_grad()
def randomise(vocoder, seed, gain=1.0):
    """Seeded weights that keep the size of what passes through; unit durations of about 1 to 8 frames."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    for name, module in vocoder.named_modules():
        if isinstance(module, nn.Embedding):
            normal(module.weight, 1.0)
        elif isinstance(module, nn.LayerNorm):
            normal(module.weight, 0.1, 1.0)
            normal(module.bias, 0.1)
        elif isinstance(module, nn.ConvTranspose1d):
            inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
            normal(module.weight, gain * inputs**-0.5)
            normal(module.bias, 0.05)
        elif isinstance(module, (nn.Conv1d, nn.Linear)):
            inside = 0.5 if name.startswith("resblocks") else 1.0
            normal(module.weight, gain * inside * module.weight[0].numel() ** -0.5)
            normal(module.bias, 0.05)
    if hasattr(vocoder, "dur_predictor"):
        normal(vocoder.dur_predictor.proj.weight, 0.5 * vocoder.dur_predictor.proj.in_features**-0.5)
        vocoder.dur_predictor.proj.bias.fill_(1.5)
    normal(vocoder.conv_post.weight, 0.5 * vocoder.conv_post.weight[0].numel() ** -0.5)
    return vocoder.eval()


def is_normed(name):
    """Whether a checkpoint stores this weight as a pair (g, v)."""
    return name.endswith(".weight") and name.startswith(("conv_pre", "conv_post", "ups", "resblocks"))


def unfold(state):
    """Folded weights -> the pairs of a checkpoint: the norm runs over all but the first dimension."""
    out = {}
    for name, tensor in state.items():
        if is_normed(name):
            out[name + "_g"] = tensor.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            out[name + "_v"] = tensor.clone()
        else:
            out[name] = tensor
    return out


def fold(state):
    """A checkpoint's pairs -> folded weights."""
    out = {}
    for name, tensor in state.items():
        if name.endswith("_v"):
            norm = tensor.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            out[name[:-2]] = tensor * (state[name[:-2] + "_g"] / norm)
        elif not name.endswith("_g"):
            out[name] = tensor
    return out
