"""Unit vocoder: code HiFi-GAN with duration prediction, in the layout of the published checkpoints.

Unit ids (duplicates removed) -> embeddings, each repeated for its predicted number of 20 ms frames ->
transposed convolutions with residual blocks -> 320 samples a frame at 16 kHz. Parameter names
(`dict`, `dur_predictor`, `conv_pre`, `ups`, `resblocks`, `conv_post`; old-style weight norm with
`weight_g` and `weight_v`) and the fields of config.json are those of the reference; only the sizes are
smaller. `load` and `synthesise` are for the evaluation.
"""
import json
import os
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm as _weight_norm

CONFIG = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 192,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "num_embeddings": 200,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_prediction_weight": 1.0,
    "dur_predictor_params": {"encoder_embed_dim": 128, "var_pred_hidden_dim": 128,
                             "var_pred_kernel_size": 3, "var_pred_dropout": 0.1},
    "f0": False,
    "multispkr": None,
    "code_hop_size": 320,
    "sampling_rate": 16000,
}
SLOPE = 0.1


def weight_norm(module):
    with warnings.catch_warnings():  # the newer parametrisation would save other names
        warnings.simplefilter("ignore")
        return _weight_norm(module)


class ResBlock(nn.Module):
    def __init__(self, channels, kernel, dilations):
        super().__init__()

        def conv(d):
            return weight_norm(nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2))

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x):
        for c1, c2 in zip(self.convs1, self.convs2):
            x = x + c2(F.leaky_relu(c1(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class DurationPredictor(nn.Module):
    def __init__(self, encoder_embed_dim, var_pred_hidden_dim, var_pred_kernel_size, var_pred_dropout):
        super().__init__()
        hid, k = var_pred_hidden_dim, var_pred_kernel_size
        self.conv1 = nn.Sequential(nn.Conv1d(encoder_embed_dim, hid, k, padding=(k - 1) // 2), nn.ReLU())
        self.ln1 = nn.LayerNorm(hid)
        self.conv2 = nn.Sequential(nn.Conv1d(hid, hid, k, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hid)
        self.proj = nn.Linear(hid, 1)
        self.dropout = nn.Dropout(var_pred_dropout)

    def forward(self, x, mask=None):
        """(B, T, dim) -> (B, T), the expected log(frames + 1); `mask` (B, T, 1) is 0 behind the end."""
        mask = 1.0 if mask is None else mask
        x = self.conv1((x * mask).transpose(1, 2)).transpose(1, 2)
        x = self.dropout(self.ln1(x)) * mask
        x = self.conv2(x.transpose(1, 2)).transpose(1, 2)
        return self.proj(self.dropout(self.ln2(x))).squeeze(2)


class CodeGenerator(nn.Module):
    def __init__(self, config=CONFIG):
        super().__init__()
        width = config["upsample_initial_channel"]
        self.dict = nn.Embedding(config["num_embeddings"], config["embedding_dim"])
        self.dur_predictor = DurationPredictor(**config["dur_predictor_params"])
        self.conv_pre = weight_norm(nn.Conv1d(config["model_in_dim"], width, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (u, k) in enumerate(zip(config["upsample_rates"], config["upsample_kernel_sizes"])):
            c = width // 2 ** (i + 1)
            self.ups.append(weight_norm(nn.ConvTranspose1d(width // 2 ** i, c, k, u, padding=(k - u) // 2)))
            for rk, rd in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]):
                self.resblocks.append(ResBlock(c, rk, rd))
        self.conv_post = weight_norm(nn.Conv1d(c, 1, 7, padding=3))

    def forward(self, frames):
        """Units of frames (B, S) -> samples (B, 320 S)."""
        x = self.conv_pre(self.dict(frames).transpose(1, 2))
        each = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in self.resblocks[i * each: (i + 1) * each]) / each
        return torch.tanh(self.conv_post(F.leaky_relu(x))).squeeze(1)

    def durations(self, units):
        """Frames of each unit of one sequence (T)."""
        log = self.dur_predictor(self.dict(units)[None])[0]
        return torch.clamp(torch.round(torch.exp(log) - 1), min=1).long()

    @torch.no_grad()
    def synthesise(self, units):
        """Deduplicated unit ids -> float32 samples in -1..1 (NumPy)."""
        units = torch.as_tensor(units)
        return self(units.repeat_interleave(self.durations(units))[None])[0].numpy()


def newest(folder):
    """Path of the latest generator checkpoint."""
    return os.path.join(folder, max(n for n in os.listdir(folder) if n.startswith("g_")))


def load(folder):
    """The newest generator of a folder, ready to speak."""
    with open(os.path.join(folder, "config.json")) as f:
        model = CodeGenerator(json.load(f))
    model.load_state_dict(torch.load(newest(folder), map_location="cpu", weights_only=True)["generator"])
    return model.eval()
