"""GIT captioners for golden data and peers: construction with transformers, random weights that talk, naming.

Shared by models.py (tiny models), full_size.py (the real size) and the peers. It builds transformers'
GitForCausalLM with the vocabulary replaced the way the reference does it (word embedding and output share one
(V, C) matrix, the output has a bias of its own), fills it with seeded random weights whose captions are neither
constant nor endless, and translates a state dict from the reference's names to im2sp's. No generation here.
"""
import torch
from torch import nn
from transformers import GitConfig, GitForCausalLM

PAD, BOS, EOS = 0, 101, 102
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def build(dimensions):
    """GitForCausalLM of `dimensions` = {"image", "vision", "decoder"} as in config.json, output tied, weights as built."""
    vision, decoder = dimensions["vision"], dimensions["decoder"]
    config = GitConfig(
        vision_config=dict(
            hidden_size=vision["width"],
            intermediate_size=vision["mlp"],
            num_hidden_layers=vision["layers"],
            num_attention_heads=vision["heads"],
            image_size=dimensions["image"]["size"],
            patch_size=vision["patch"],
            layer_norm_eps=vision["eps"],
        ),
        vocab_size=decoder["vocabulary"],
        hidden_size=decoder["width"],
        num_hidden_layers=decoder["layers"],
        num_attention_heads=decoder["heads"],
        intermediate_size=decoder["mlp"],
        max_position_embeddings=decoder["max_positions"],
        layer_norm_eps=decoder["eps"],
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    # The projection's norm has the vision eps (1e-5); transformers builds it so.
    model = GitForCausalLM(config).eval()
    model.output.weight = model.git.embeddings.word_embeddings.weight
    assert model.git.visual_projection.visual_projection[1].eps == vision["eps"]
    return model


def dimensions(image, vision, decoder):
    """config.json's three parts from (size), (patch, width, layers, mlp), (width, layers, mlp, vocabulary, positions)."""
    patch, width, layers, mlp = vision
    part = {
        "image": {"size": image, "mean": MEAN, "std": STD},
        "vision": {
            "patch": patch,
            "width": width,
            "layers": layers,
            "heads": width // 64,
            "mlp": mlp,
            "eps": 1e-5,
        },
    }
    width, layers, mlp, vocabulary, positions = decoder
    part["decoder"] = {
        "width": width,
        "layers": layers,
        "heads": width // 64,
        "mlp": mlp,
        "vocabulary": vocabulary,
        "max_positions": positions,
        "eps": 1e-12,
    }
    return part


GIT_LARGE = dimensions(224, (14, 1024, 24, 4096), (768, 6, 3072, 203, 1024))


@torch.no_grad()
def randomise(model, seed, gain=1.0, logits=1.5, positions=1.0, eos_bias=0.0, decoder=1.0, bf16=True):
    """Seeded weights: linear layers keep the size of what passes, logits have about the standard deviation `logits`.

    `gain` scales the layers' weights, `decoder` those of the decoder once more, `positions` its position embedding
    relative to the words: many layers over many image tokens need a small one or every unit is the same. With `bf16`
    every value is one that bf16 can hold, so that storing the model in bf16 changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module is not model.output:
            normal(module.weight, gain / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                normal(module.bias, 0.1)
        elif isinstance(module, nn.LayerNorm):
            normal(module.weight, 0.1, 1.0)
            normal(module.bias, 0.1)
    for module in model.git.encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(decoder)
    word = logits / model.config.hidden_size**0.5
    normal(model.git.embeddings.word_embeddings.weight, word)
    normal(model.git.embeddings.position_embeddings.weight, word * positions)
    normal(model.output.bias, 0.3)
    model.output.bias[EOS] = eos_bias
    embeddings = model.git.image_encoder.vision_model.embeddings
    normal(embeddings.class_embedding, 0.3)
    normal(embeddings.position_embedding.weight, 0.3)
    if bf16:
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def reference_state(model):
    """The state dict as the reference saves it: every name under `model.`, the tied matrix under both of its names."""
    return {"model." + name: tensor.detach() for name, tensor in model.state_dict().items()}


def canonical_state(state):
    """The same weights under im2sp's names, query, key and value stacked, the tied matrix once."""
    out = {}
    git = "model.git."
    vision = git + "image_encoder.vision_model."

    def pair(name, source):
        for part in ("weight", "bias"):
            out[f"{name}.{part}"] = state[f"{source}.{part}"]

    def stacked(name, source, parts):
        for part in ("weight", "bias"):
            out[f"{name}.{part}"] = torch.cat([state[f"{source}.{p}.{part}"] for p in parts])

    out["vision.class_embedding"] = state[vision + "embeddings.class_embedding"]
    out["vision.patch_embedding.weight"] = state[vision + "embeddings.patch_embedding.weight"].flatten(1)
    out["vision.position_embedding"] = state[vision + "embeddings.position_embedding.weight"]
    pair("vision.pre_norm", vision + "pre_layrnorm")
    layer = 0
    while f"{vision}encoder.layers.{layer}.mlp.fc1.weight" in state:
        source, name = f"{vision}encoder.layers.{layer}.", f"vision.layers.{layer}."
        pair(name + "attention_norm", source + "layer_norm1")
        stacked(name + "qkv", source + "self_attn", ("q_proj", "k_proj", "v_proj"))
        pair(name + "attention_out", source + "self_attn.out_proj")
        pair(name + "mlp_norm", source + "layer_norm2")
        pair(name + "fc1", source + "mlp.fc1")
        pair(name + "fc2", source + "mlp.fc2")
        layer += 1
    pair("vision.post_norm", vision + "post_layernorm")
    pair("projection.linear", git + "visual_projection.visual_projection.0")
    pair("projection.norm", git + "visual_projection.visual_projection.1")
    out["decoder.word_embedding"] = state[git + "embeddings.word_embeddings.weight"]
    out["decoder.position_embedding"] = state[git + "embeddings.position_embeddings.weight"]
    pair("decoder.embedding_norm", git + "embeddings.LayerNorm")
    layer = 0
    while f"{git}encoder.layer.{layer}.output.dense.weight" in state:
        source, name = f"{git}encoder.layer.{layer}.", f"decoder.layers.{layer}."
        stacked(name + "qkv", source + "attention.self", ("query", "key", "value"))
        pair(name + "attention_out", source + "attention.output.dense")
        pair(name + "attention_norm", source + "attention.output.LayerNorm")
        pair(name + "fc1", source + "intermediate.dense")
        pair(name + "fc2", source + "output.dense")
        pair(name + "mlp_norm", source + "output.LayerNorm")
        layer += 1
    out["decoder.output_bias"] = state["model.output.bias"]
    return out
