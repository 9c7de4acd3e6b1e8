//! Names and shapes of a captioner's tensors, in a model directory and in the GIT checkpoints that they are made of and
//! exported to. Names of checkpoints are those of `transformers`; the reference puts `model.` before them.

use crate::config::{DecoderConfig, EfficientNetConfig, STEM_TAPS, VisionConfig};

/// Channels of one head, where nothing says how many heads there are.
pub const HEAD_SIZE: usize = 64;
/// Epsilon of the vision transformer's norms, where nothing says it.
pub const VISION_EPS: f32 = 1e-5;
/// Epsilon of the decoder's norms, where nothing says it.
pub const DECODER_EPS: f32 = 1e-12;
/// Epsilon of the norms of a vision transformer over image units, which is timm's.
pub const UNIT_VISION_EPS: f32 = 1e-6;
/// Side of the grid of units of an image, where no tokenizer says it.
pub const UNIT_GRID: usize = 32;
/// Side of a unit in pixels, where no tokenizer says it.
pub const UNIT_PIXELS: usize = 8;
/// Before the names of the vision transformer.
pub const VISION: &str = "git.image_encoder.vision_model.";
/// Before the names of an EfficientNet, which are those of the package `efficientnet_lite_pytorch`.
pub const EFFICIENT_NET: &str = "git.image_encoder.";
/// The word embedding.
pub const WORDS: &str = "git.embeddings.word_embeddings.weight";
/// The position embedding of the decoder.
pub const POSITIONS: &str = "git.embeddings.position_embeddings.weight";
/// The output matrix, which is the word embedding.
pub const OUTPUT: &str = "output.weight";
/// The bias of the output.
pub const OUTPUT_BIAS: &str = "output.bias";
/// The tensors that depend on the vocabulary, by their names in a model directory.
pub const HEAD: [&str; 2] = ["decoder.word_embedding", "decoder.output_bias"];

/// A tensor of a model directory: the parts that follow one another in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Names of its parts in a checkpoint.
    pub parts: Vec<String>,
    /// Shape of each part there.
    pub part: Vec<usize>,
}

/// All tensors of a captioner whose images become `image_tokens` tokens.
pub fn captioner(vision: &VisionConfig, decoder: &DecoderConfig, image_tokens: usize) -> Vec<Mapped> {
    let mut table = Table(Vec::new());
    match (&vision.efficient_net, &vision.units) {
        (Some(net), _) => table.efficient_net(net, vision.width),
        (None, Some(_)) => table.unit_vision(vision, image_tokens),
        (None, None) => table.vision(vision, image_tokens),
    }
    let from = "git.visual_projection.visual_projection";
    table.linear(&format!("{from}.0"), "projection.linear", decoder.width, vision.width);
    table.norm(&format!("{from}.1"), "projection.norm", decoder.width);
    table.decoder(decoder);
    table.0
}

struct Table(Vec<Mapped>);

impl Table {
    /// A tensor of one part, stored with the shape `part`.
    fn put(&mut self, from: &str, name: &str, part: &[usize], shape: &[usize]) {
        let (name, shape) = (name.to_string(), shape.to_vec());
        self.0.push(Mapped { name, shape, parts: vec![from.to_string()], part: part.to_vec() });
    }

    fn same(&mut self, from: &str, name: &str, shape: &[usize]) {
        self.put(from, name, shape, shape);
    }

    /// Weight (rows, columns) and bias (rows) of a linear layer.
    fn linear(&mut self, from: &str, name: &str, rows: usize, columns: usize) {
        self.same(&format!("{from}.weight"), &format!("{name}.weight"), &[rows, columns]);
        self.same(&format!("{from}.bias"), &format!("{name}.bias"), &[rows]);
    }

    /// Weight and bias (width) of a layer norm.
    fn norm(&mut self, from: &str, name: &str, width: usize) {
        self.same(&format!("{from}.weight"), &format!("{name}.weight"), &[width]);
        self.same(&format!("{from}.bias"), &format!("{name}.bias"), &[width]);
    }

    /// Query, key and value of one width as one linear layer.
    fn qkv(&mut self, from: [String; 3], name: &str, width: usize) {
        for (kind, part, shape) in
            [("weight", vec![width, width], vec![3 * width, width]), ("bias", vec![width], vec![3 * width])]
        {
            let parts = from.iter().map(|from| format!("{from}.{kind}")).collect();
            self.0.push(Mapped { name: format!("{name}.{kind}"), shape, parts, part });
        }
    }

    fn vision(&mut self, vision: &VisionConfig, image_tokens: usize) {
        let (width, patch) = (vision.width, vision.patch);
        let embeddings = format!("{VISION}embeddings.");
        self.same(&format!("{embeddings}class_embedding"), "vision.class_embedding", &[width]);
        let (kernel, flat) = ([width, 3, patch, patch], [width, 3 * patch * patch]);
        self.put(&format!("{embeddings}patch_embedding.weight"), "vision.patch_embedding.weight", &kernel, &flat);
        let positions = [image_tokens, width];
        self.same(&format!("{embeddings}position_embedding.weight"), "vision.position_embedding", &positions);
        // Spelling as in the published checkpoints.
        self.norm(&format!("{VISION}pre_layrnorm"), "vision.pre_norm", width);
        for layer in 0..vision.layers {
            let from = format!("{VISION}encoder.layers.{layer}");
            let name = format!("vision.layers.{layer}");
            let projections = ["q", "k", "v"].map(|p| format!("{from}.self_attn.{p}_proj"));
            self.norm(&format!("{from}.layer_norm1"), &format!("{name}.attention_norm"), width);
            self.qkv(projections, &format!("{name}.qkv"), width);
            self.linear(&format!("{from}.self_attn.out_proj"), &format!("{name}.attention_out"), width, width);
            self.norm(&format!("{from}.layer_norm2"), &format!("{name}.mlp_norm"), width);
            self.linear(&format!("{from}.mlp.fc1"), &format!("{name}.fc1"), vision.mlp, width);
            self.linear(&format!("{from}.mlp.fc2"), &format!("{name}.fc2"), width, vision.mlp);
        }
        self.norm(&format!("{VISION}post_layernorm"), "vision.post_norm", width);
    }

    /// timm's vision transformer over code vectors. Its class token and positions have one more dimension.
    fn unit_vision(&mut self, vision: &VisionConfig, image_tokens: usize) {
        let (width, patch) = (vision.width, vision.patch);
        let inputs = vision.units.as_ref().map_or(3, |units| units.code_width);
        self.put(&format!("{VISION}cls_token"), "vision.class_embedding", &[1, 1, width], &[width]);
        let (positions, flat) = ([1, image_tokens, width], [image_tokens, width]);
        self.put(&format!("{VISION}pos_embed"), "vision.position_embedding", &positions, &flat);
        let (kernel, flat) = ([width, inputs, patch, patch], [width, inputs * patch * patch]);
        self.put(&format!("{VISION}patch_embed.proj.weight"), "vision.patch_embedding.weight", &kernel, &flat);
        self.same(&format!("{VISION}patch_embed.proj.bias"), "vision.patch_embedding.bias", &[width]);
        for layer in 0..vision.layers {
            let (from, name) = (format!("{VISION}blocks.{layer}"), format!("vision.layers.{layer}"));
            self.norm(&format!("{from}.norm1"), &format!("{name}.attention_norm"), width);
            self.linear(&format!("{from}.attn.qkv"), &format!("{name}.qkv"), 3 * width, width);
            self.linear(&format!("{from}.attn.proj"), &format!("{name}.attention_out"), width, width);
            self.norm(&format!("{from}.norm2"), &format!("{name}.mlp_norm"), width);
            self.linear(&format!("{from}.mlp.fc1"), &format!("{name}.fc1"), vision.mlp, width);
            self.linear(&format!("{from}.mlp.fc2"), &format!("{name}.fc2"), width, vision.mlp);
        }
    }

    /// Convolutions with their batch norms folded in: a weight (outputs, inputs, taps, taps) and a bias each.
    fn efficient_net(&mut self, net: &EfficientNetConfig, width: usize) {
        let mut convolution = |from: String, name: String, [outputs, inputs, taps]: [usize; 3]| {
            let from = format!("{EFFICIENT_NET}{from}");
            let (part, flat) = ([outputs, inputs, taps, taps], [outputs, inputs * taps * taps]);
            self.put(&format!("{from}.weight"), &format!("{name}.weight"), &part, &flat);
            self.same(&format!("{from}.bias"), &format!("{name}.bias"), &[outputs]);
        };
        convolution("_conv_stem".into(), "vision.stem".into(), [net.stem, 3, STEM_TAPS]);
        for (number, block) in net.blocks().enumerate() {
            let (from, name) = (format!("_blocks.{number}"), format!("vision.blocks.{number}"));
            if block.expands() {
                convolution(format!("{from}._expand_conv"), format!("{name}.expand"), [block.hidden, block.inputs, 1]);
            }
            let taps = block.taps;
            convolution(format!("{from}._depthwise_conv"), format!("{name}.depthwise"), [block.hidden, 1, taps]);
            convolution(format!("{from}._project_conv"), format!("{name}.project"), [block.outputs, block.hidden, 1]);
        }
        convolution("_conv_head".into(), "vision.head".into(), [width, net.last(), 1]);
    }

    fn decoder(&mut self, decoder: &DecoderConfig) {
        let width = decoder.width;
        let [words, bias] = HEAD;
        self.same(WORDS, words, &[decoder.vocabulary, width]);
        self.same(POSITIONS, "decoder.position_embedding", &[decoder.max_positions, width]);
        self.norm("git.embeddings.LayerNorm", "decoder.embedding_norm", width);
        for layer in 0..decoder.layers {
            let from = format!("git.encoder.layer.{layer}");
            let name = format!("decoder.layers.{layer}");
            let projections = ["query", "key", "value"].map(|p| format!("{from}.attention.self.{p}"));
            self.qkv(projections, &format!("{name}.qkv"), width);
            let out = format!("{from}.attention.output");
            self.linear(&format!("{out}.dense"), &format!("{name}.attention_out"), width, width);
            self.norm(&format!("{out}.LayerNorm"), &format!("{name}.attention_norm"), width);
            self.linear(&format!("{from}.intermediate.dense"), &format!("{name}.fc1"), decoder.mlp, width);
            self.linear(&format!("{from}.output.dense"), &format!("{name}.fc2"), width, decoder.mlp);
            self.norm(&format!("{from}.output.LayerNorm"), &format!("{name}.mlp_norm"), width);
        }
        self.same(OUTPUT_BIAS, bias, &[decoder.vocabulary]);
    }
}
