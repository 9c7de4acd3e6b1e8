"""Greedy decoding of a GIT captioner over a cache of fixed size, so that a step can be compiled and recorded as a CUDA graph.

transformers' own loop cannot: its static cache has no room for GIT's image tokens, and its Python is most of a step on a
GPU. The arithmetic is that of GitForCausalLM, with one (3C, C) product for query, key and value and
scaled_dot_product_attention.
"""
import torch
from torch.nn import functional as F

from captioners import BOS
from cuda_graph import recorded


class Layer:
    """A post-norm layer with query, key and value stacked."""

    def __init__(self, layer, heads):
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self.weight = torch.cat([part.weight for part in parts])  # (3C, C)
        self.bias = torch.cat([part.bias for part in parts])
        self.out, self.first, self.second, self.heads = layer.attention.output, layer.intermediate, layer.output, heads

    def qkv(self, x):
        """(B, T, C) -> three of (B, H, T, D)."""
        batch, tokens, _ = x.shape
        return F.linear(x, self.weight, self.bias).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)

    def rest(self, x, attended):
        x = self.out(attended.transpose(1, 2).reshape(x.shape), x)
        return self.second(self.first(x), x)


class StaticGreedy:
    """Decodes `units` tokens of `batch` images, at least as many as recording runs steps."""

    def __init__(self, model, units, batch=1, compiled=False, graph=False):
        git, config, weight = model.git, model.config, model.output.weight
        device, dtype = weight.device, weight.dtype
        self.git, self.output, self.units = git, model.output, units
        self.layers = [Layer(layer, config.num_attention_heads) for layer in git.encoder.layer]
        self.image_tokens = git.encoder.layer[0].attention.self.image_patch_tokens
        length = self.image_tokens + units
        shape = (batch, config.num_attention_heads, length, config.hidden_size // config.num_attention_heads)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in self.layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in self.layers]
        self.columns = torch.arange(length, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(batch, units, dtype=torch.long, device=device)
        if compiled:
            self.prefill, self.step = (torch.compile(run, dynamic=False) for run in (self.prefill, self.step))
        self.restart()
        self.advance = recorded(self.step, device) if graph else self.step

    def restart(self):
        self.position.zero_()
        self.token.fill_(BOS)

    def prefill(self, features):
        """Keys and values of an encoder's result, (B, P, vision width)."""
        x = self.git.visual_projection(features)
        for layer, keys, values in zip(self.layers, self.keys, self.values):
            q, k, v = layer.qkv(x)
            keys[:, :, : self.image_tokens] = k
            values[:, :, : self.image_tokens] = v
            x = layer.rest(x, F.scaled_dot_product_attention(q, k, v))

    def step(self):
        """The next token of every image."""
        embeddings = self.git.embeddings
        x = embeddings.word_embeddings(self.token) + embeddings.position_embeddings(self.position)
        x = embeddings.LayerNorm(x)
        column = self.position + self.image_tokens
        visible = (self.columns <= column)[None, None, None]
        for layer, keys, values in zip(self.layers, self.keys, self.values):
            q, k, v = layer.qkv(x)
            keys.index_copy_(2, column, k)
            values.index_copy_(2, column, v)
            x = layer.rest(x, F.scaled_dot_product_attention(q, keys, values, attn_mask=visible))
        self.token.copy_(self.output(x)[:, -1].argmax(-1, keepdim=True))
        self.tokens.index_copy_(1, self.position, self.token)
        self.position.add_(1)

    def __call__(self, features):
        """(B, P, vision width) -> tokens (B, units)."""
        self.prefill(features)
        self.restart()
        for _ in range(self.units):
            self.advance()
        return self.tokens
