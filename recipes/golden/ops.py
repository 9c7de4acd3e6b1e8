"""One example or more per operation, computed in float64: writes tests/golden/ops.safetensors and ops.json.

    python recipes/golden/ops.py [--out tests/golden]

Inputs are rounded to f32 first, so the truth belongs to exactly the stored inputs; results are stored as f32. A case
is a prefix `<op>.<n>`; ops.json lists for each its tensors with shapes, and its parameters. Layouts: matrices
row-major, linear weights (out, in), packed qkv rows (q, k, v) of H heads of 64, signals (channels, time), transposed
kernels (in, out, k). Needs requirements.txt beside this file.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

HEAD = 64


class Book:
    """The cases so far. `draw` gives f64 tensors whose values f32 can hold."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors, self.index = {}, {}

    def draw(self, *shape, scale=1.0, mean=0.0):
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale + mean
        return values.float().double()

    def add(self, op, parameters, **tensors):
        case = f"{op}.{sum(name.rpartition('.')[0] == op for name in self.index)}"
        for name, tensor in tensors.items():
            if tensor is not None:
                dtype = torch.int64 if tensor.dtype == torch.int64 else torch.float32
                self.tensors[f"{case}.{name}"] = np.ascontiguousarray(tensor.to(dtype).numpy())
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
        self.index[case] = {"parameters": parameters, "tensors": shapes}


def linear(book):
    """y = act(x weight' + bias); x (M, K), weight (N, K). `residual` is added after; `none` has no activation."""
    for m, n, k in ((1, 1, 1), (3, 5, 7), (17, 33, 65), (1, 67, 19), (65, 16, 24), (257, 4, 12)):
        x, weight, bias = book.draw(m, k), book.draw(n, k, scale=1.5 * k**-0.5), book.draw(n)
        residual = book.draw(m, n)
        none = x @ weight.T + bias
        if m > 17:
            book.add("linear", {"m": m, "n": n, "k": k}, x=x, weight=weight, bias=bias, none=none)
            continue
        book.add(
            "linear",
            {"m": m, "n": n, "k": k},
            x=x,
            weight=weight,
            bias=bias,
            residual=residual,
            no_bias=x @ weight.T,
            none=none,
            gelu=F.gelu(none),
            quick_gelu=none * torch.sigmoid(1.702 * none),
            relu=F.relu(none),
            with_residual=none + residual,
        )


def layer_norm(book):
    """y over the last dimension; `with_residual` is the norm of x + residual. Some rows are large or far from 0."""
    for rows, c, scale, mean in ((1, 1, 1, 0), (3, 64, 1, 0), (5, 65, 1e4, 0), (4, 96, 1, 300), (1, 193, 1e-3, 0)):
        x, residual = book.draw(rows, c, scale=scale, mean=mean), book.draw(rows, c, scale=scale)
        weight, bias = book.draw(c, scale=0.5, mean=1.0), book.draw(c)
        out = {}
        for eps, name in ((1e-5, "eps_1e-5"), (1e-12, "eps_1e-12")):
            # A single channel has variance 0; with eps 1e-12 f32 noise would decide, so that case is left out.
            if c > 1:
                out[name] = F.layer_norm(x, (c,), weight, bias, eps)
            if c > 1 or eps == 1e-5:
                out["with_residual_" + name] = F.layer_norm(x + residual, (c,), weight, bias, eps)
        if c == 1:
            out = {"eps_1e-5": F.layer_norm(x, (c,), weight, bias, 1e-5)}
        book.add("layer_norm", {"rows": rows, "c": c}, x=x, residual=residual, weight=weight, bias=bias, **out)


def heads(packed, h, which):
    """(B, T, 3C) -> q, k or v as (B, H, T, 64)."""
    b, t, _ = packed.shape
    return packed.reshape(b, t, 3, h, HEAD)[:, :, which].transpose(1, 2)


def attend(q, k, v, mask=None):
    scores = q @ k.transpose(-1, -2) / HEAD**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    y = scores.softmax(-1) @ v
    b, h, t, d = y.shape
    return y.transpose(1, 2).reshape(b, t, h * d)


def attention(book):
    """qkv (B, T, 3C), bidirectional; y (B, T, C). The last case has large scores."""
    for b, t, h, scale in ((1, 1, 1, 1), (2, 5, 1, 1), (1, 7, 2, 1), (1, 13, 1, 1), (1, 6, 1, 4)):
        qkv = book.draw(b, t, 3 * h * HEAD, scale=scale)
        book.add("attention", {"b": b, "t": t, "h": h}, qkv=qkv, y=attend(*(heads(qkv, h, i) for i in range(3))))


def prefix_attention(book):
    """Text rows after P image rows: qkv (B, T, 3C), prefix_qkv (B, P, 3C); text row t sees P image and t + 1 text keys.

    `y` (B, T, C) are the text rows; `prefix_y` (B, P, C) the image rows, which see image keys only.
    """
    for b, p, t, h in ((1, 1, 1, 1), (2, 5, 3, 1), (1, 6, 5, 2), (1, 9, 3, 1)):
        prefix, qkv = book.draw(b, p, 3 * h * HEAD), book.draw(b, t, 3 * h * HEAD)
        whole = torch.cat([prefix, qkv], dim=1)
        rows, keys = torch.arange(p + t)[:, None], torch.arange(p + t)[None]
        y = attend(*(heads(whole, h, i) for i in range(3)), (keys < p) | (keys <= rows))
        book.add(
            "prefix_attention",
            {"b": b, "p": p, "t": t, "h": h},
            prefix_qkv=prefix,
            qkv=qkv,
            prefix_y=y[:, :p],
            y=y[:, p:],
        )


def embedding(book):
    """y[t] = words[ids[t]] + positions[start + t]."""
    for v, c, t, start in ((11, 6, 5, 0), (104, 9, 1, 9), (7, 1, 4, 3)):
        words, positions = book.draw(v, c), book.draw(start + t + 2, c)
        ids = torch.randint(0, v, (t,), generator=book.generator)
        y = words[ids] + positions[start : start + t]
        book.add(
            "embedding",
            {"start": start},
            words=words,
            positions=positions,
            ids=ids,
            y=y,
            y_words_only=words[ids],
        )


def conv1d(book):
    """x (in, T), weight (out, in, k), padding (k-1)d/2 keeps T. Variants: leaky ReLU 0.1 before, residual after, tanh."""
    cases = [(3, 5, k, d, 13) for k in (3, 7, 11) for d in (1, 3, 5)]
    cases += [(1, 1, 5, 1, 1), (5, 1, 7, 1, 40), (16, 16, 3, 3, 65), (7, 9, 5, 2, 4), (9, 9, 11, 5, 3), (17, 9, 7, 1, 9)]
    for inputs, outputs, k, d, t in cases:
        x, bias = book.draw(inputs, t), book.draw(outputs)
        weight = book.draw(outputs, inputs, k, scale=(inputs * k) ** -0.5)
        residual = book.draw(outputs, t)

        def conv(x):
            return F.conv1d(x[None], weight, bias, padding=(k - 1) * d // 2, dilation=d)[0]

        activated = conv(F.leaky_relu(x, 0.1))
        book.add(
            "conv1d",
            {"kernel": k, "dilation": d, "padding": (k - 1) * d // 2},
            x=x,
            weight=weight,
            bias=bias,
            residual=residual,
            y=conv(x),
            leaky=activated,
            leaky_residual=activated + residual,
            leaky_001_tanh=torch.tanh(conv(F.leaky_relu(x, 0.01))),
        )


def conv_transpose1d(book):
    """x (in, T), weight (in, out, k), padding (k-u)/2: y (out, u T). `leaky` has a leaky ReLU 0.1 before."""
    for inputs, outputs, k, u, t in (
        (1, 1, 2, 2, 1),
        (6, 3, 11, 5, 7),
        (8, 4, 8, 4, 9),
        (4, 2, 4, 2, 17),
        (5, 7, 7, 3, 4),
        (3, 2, 5, 5, 3),
        (2, 3, 3, 1, 6),
        (6, 4, 16, 8, 3),
        (17, 9, 4, 2, 5),
    ):
        x, weight, bias = book.draw(inputs, t), book.draw(inputs, outputs, k, scale=inputs**-0.5), book.draw(outputs)

        def conv(x):
            return F.conv_transpose1d(x[None], weight, bias, stride=u, padding=(k - u) // 2)[0]

        y = conv(x)
        assert y.shape == (outputs, u * t)
        book.add(
            "conv_transpose1d",
            {"kernel": k, "stride": u, "padding": (k - u) // 2},
            x=x,
            weight=weight,
            bias=bias,
            y=y,
            leaky=conv(F.leaky_relu(x, 0.1)),
        )


def frame_conv(book):
    """x (T, in), weight (out, taps, in / groups), zeros before and after: y (T', out), and `gelu` of it plus a residual."""
    cases = [(3, 5, 4, 1, (0, 0), 1, 9), (1, 6, 10, 5, (0, 0), 1, 33), (8, 16, 3, 2, (0, 0), 1, 40)]
    cases += [(8, 8, 2, 2, (0, 0), 1, 7), (12, 8, 16, 1, (8, 7), 4, 21), (6, 9, 4, 3, (1, 2), 3, 5), (4, 4, 8, 1, (4, 3), 2, 1)]
    for inputs, outputs, k, stride, padding, groups, t in cases:
        x, bias = book.draw(t, inputs), book.draw(outputs)
        weight = book.draw(outputs, inputs // groups, k, scale=(inputs // groups * k) ** -0.5)
        y = F.conv1d(F.pad(x.T[None], padding), weight, bias, stride=stride, groups=groups)[0].T
        residual = book.draw(*y.shape)
        book.add(
            "frame_conv",
            {"taps": k, "stride": stride, "padding": padding, "groups": groups},
            x=x,
            weight=weight.transpose(1, 2),
            bias=bias,
            residual=residual,
            y=y,
            gelu=F.gelu(y) + residual,
        )


def instance_norm(book):
    """y of x (T, C): a group norm of C groups, eps 1e-5."""
    for t, c, scale, mean in ((2, 1, 1, 0), (5, 3, 1, 0), (130, 40, 1, 3), (64, 16, 1e4, 0), (1000, 5, 1, -1)):
        x = book.draw(t, c, scale=scale, mean=mean)
        weight, bias = book.draw(c, scale=0.5, mean=1.0), book.draw(c)
        y = F.group_norm(x.T[None], c, weight, bias, 1e-5)[0].T
        book.add("instance_norm", {"t": t, "c": c}, x=x, weight=weight, bias=bias, y=y)


def gelu(book):
    """y of x (M, N)."""
    for m, n, scale in ((1, 1, 1), (3, 67, 2), (5, 8, 30)):
        x = book.draw(m, n, scale=scale)
        book.add("gelu", {"m": m, "n": n}, x=x, y=F.gelu(x))


def maps(book):
    """Padding as TensorFlow's "SAME": y (B, G, G, out) and `relu6` of it, of images (B, in, side, side) by weight
    (out, in, k, k), and of maps x (B, side, side, C) by a weight (C, 1, k, k) for each channel."""

    def convolve(x, weight, bias, stride, groups=1):
        k, side = weight.shape[-1], x.shape[-1]
        zeros = max((-(-side // stride) - 1) * stride + k - side, 0)
        before, after = zeros // 2, zeros - zeros // 2
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, stride, groups=groups).permute(0, 2, 3, 1)

    cases = ((1, 1, 1, 1, 3, 1), (2, 3, 8, 7, 3, 2), (1, 3, 9, 8, 3, 2), (2, 2, 5, 6, 5, 1))
    for batch, inputs, outputs, side, k, stride in cases:
        images, bias = book.draw(batch, inputs, side, side, scale=3), book.draw(outputs)
        weight = book.draw(outputs, inputs, k, k)
        y = convolve(images, weight, bias, stride)
        sizes = {"side": side, "taps": k, "stride": stride}
        book.add("conv2d", sizes, images=images, weight=weight, bias=bias, y=y, relu6=F.relu6(y))
    cases = ((1, 1, 1, 3, 1), (2, 8, 7, 3, 2), (1, 17, 8, 5, 2), (2, 16, 9, 5, 1), (1, 24, 6, 3, 2))
    for batch, channels, side, k, stride in cases:
        x, bias = book.draw(batch, side, side, channels, scale=3), book.draw(channels)
        weight = book.draw(channels, 1, k, k)
        y = convolve(x.permute(0, 3, 1, 2), weight, bias, stride, channels)
        sizes = {"side": side, "taps": k, "stride": stride}
        book.add("depthwise_conv2d", sizes, x=x, weight=weight, bias=bias, y=y, relu6=F.relu6(y))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/golden")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    book = Book(seed=1)
    ops = (linear, layer_norm, attention, prefix_attention, embedding, conv1d, conv_transpose1d)
    for op in (*ops, frame_conv, instance_norm, gelu, maps):
        op(book)
    assert all(np.isfinite(t).all() for t in book.tensors.values())
    save_file(book.tensors, out / "ops.safetensors")
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(entry)}" for case, entry in book.index.items())
    (out / "ops.json").write_text(f"{{\n{lines}\n}}\n")
    print(len(book.index), "cases,", (out / "ops.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
