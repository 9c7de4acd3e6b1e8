//! The image tokenizer: the encoder of a ViT-VQGAN with the layer before its quantizer, as a whole pickled module or a state
//! dict, and a codebook. Tensors are known by the ends of their names, whatever training code put before those; dimensions are
//! read off shapes.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::select::{self, Opened};
use super::{Parts, Planned, Source};
use crate::config::{FORMAT, ImageConfig, TokenizerConfig};
use crate::weights::names::HEAD_SIZE;
use crate::weights::stored::StoredTensor;
use crate::weights::torch::StateDict;
use crate::{Error, Result};

/// Epsilon of the encoder's norms, PyTorch's default.
const EPS: f32 = 1e-5;
/// End of the name that every such encoder has and nothing else.
const MARKER: &str = "en_pos_embedding";

/// Everything known about a tokenizer before its data is read.
pub(super) struct TokenizerPlan {
    pub config: TokenizerConfig,
    pub tensors: Vec<Planned>,
    /// Names in the source that are not part of the tokenizer.
    pub left_aside: Vec<String>,
}

/// Opens a tokenizer and a codebook and plans the tensors of `tokenizer.safetensors`.
pub(super) fn plan(path: &Path, codebook: &Path) -> Result<TokenizerPlan> {
    let (codes, [count, code_width]) = self::codebook(codebook)?;
    let mut source = Source::new(path, tensors(path)?)?;
    let marker = source.tensors.keys().find(|name| is_named(name, MARKER)).cloned();
    let marker = marker.ok_or_else(|| {
        Error::weights(path, MARKER, "is not there: expected a ViT-VQGAN encoder, a whole module or its state_dict()")
    })?;
    let prefix = marker.strip_suffix(MARKER).unwrap_or_default().to_owned();
    let config = config(&source, &prefix, [count, code_width])?;
    let linear = projection(&source, &prefix, [code_width, config.width], codebook)?;
    let mut tensors = planned(&mut source, &prefix, &linear, &config)?;
    tensors.push(Planned {
        name: "codebook".into(),
        shape: vec![count, code_width],
        parts: Parts::Joined(vec![codes]),
    });
    let left_aside = source.tensors.into_keys().collect();
    Ok(TokenizerPlan { config, tensors, left_aside })
}

/// Whether `name` ends with the components `end`.
fn is_named(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// All tensors of a file: of a whole module, of safetensors, or of the dict that holds the encoder.
fn tensors(path: &Path) -> Result<StateDict> {
    let checkpoint = match select::open(path)? {
        Opened::Tensors(tensors) => return Ok(tensors),
        Opened::Checkpoint(checkpoint) => checkpoint,
    };
    if let Some(tensors) = checkpoint.module()? {
        return Ok(tensors);
    }
    let dicts = checkpoint.dicts()?;
    let holder = dicts.iter().find(|dict| dict.names().iter().any(|name| is_named(name, MARKER)));
    match holder.or(dicts.first()) {
        Some(dict) => {
            // A captioner saved with its tokenizer has other tensors too.
            let names = dict.names();
            let marker = names.iter().find(|name| is_named(name, MARKER)).copied().unwrap_or_default();
            let parent = parent(marker.strip_suffix(MARKER).unwrap_or_default());
            dict.tensors(|name| name.starts_with(parent))
        }
        None => Ok(StateDict::new()),
    }
}

/// Names around an encoder whose own have `prefix`: "tokenizer." of "tokenizer.0.".
fn parent(prefix: &str) -> &str {
    let inner = prefix.strip_suffix('.').unwrap_or(prefix);
    inner.rfind('.').map_or("", |dot| &inner[..=dot])
}

/// The codes (K, W) of a file that holds nothing else: a bare tensor or parameter, a dict or a safetensors file of one matrix.
pub(super) fn codebook(path: &Path) -> Result<((String, StoredTensor), [usize; 2])> {
    let tensors = match select::open(path)? {
        Opened::Tensors(tensors) => tensors,
        Opened::Checkpoint(checkpoint) if checkpoint.is_dict() => {
            let dicts = checkpoint.dicts()?;
            dicts.first().map(|dict| dict.tensors(|_| true)).transpose()?.unwrap_or_default()
        }
        Opened::Checkpoint(checkpoint) => vec![("codebook".to_owned(), checkpoint.tensor()?)],
    };
    let matrices = tensors.into_iter().filter(|(_, tensor)| tensor.shape().len() == 2);
    let [codes] = <[_; 1]>::try_from(matrices.collect::<Vec<_>>()).map_err(|matrices| {
        Error::weights(path, "codebook", format!("is {} matrices, expected one of (codes, values)", matrices.len()))
    })?;
    let shape = codes.1.shape();
    let shape = [shape[0], shape[1]];
    Ok((codes, shape))
}

/// The layer before the quantizer: of the matrices next to the encoder the only one that makes codes.
fn projection(source: &Source<'_>, prefix: &str, shape: [usize; 2], codebook: &Path) -> Result<String> {
    let parent = parent(prefix);
    let encoder = ["to_patch_embedding.", "transformer.", MARKER].map(|part| format!("{prefix}{part}"));
    let outside =
        |name: &&String| name.starts_with(parent) && !encoder.iter().any(|part| name.starts_with(part.as_str()));
    let layers = source.tensors.iter().filter(|(name, tensor)| {
        outside(name) && is_named(name, "weight") && tensor.shape().len() == 2 && tensor.shape()[1] == shape[1]
    });
    let layers: Vec<(&String, usize)> = layers.map(|(name, tensor)| (name, tensor.shape()[0])).collect();
    let fits: Vec<&String> = layers.iter().filter(|(_, outputs)| *outputs == shape[0]).map(|(name, _)| *name).collect();
    match (&fits[..], &layers[..]) {
        ([name], _) => Ok(name.strip_suffix(".weight").unwrap_or_default().to_owned()),
        ([], [(name, outputs)]) => {
            let problem = format!(
                "its codes have {} values, but {name} of {} makes {outputs}: they do not belong together",
                shape[0],
                source.path.display()
            );
            Err(Error::weights(codebook, "codebook", problem))
        }
        (fits, _) => {
            let problem = format!(
                "{} linear layers from {} to {} values are next to the encoder, expected one",
                fits.len(),
                shape[1],
                shape[0]
            );
            Err(Error::weights(source.path, "pre-quantization layer", problem))
        }
    }
}

fn config(source: &Source<'_>, prefix: &str, [codes, code_width]: [usize; 2]) -> Result<TokenizerConfig> {
    let wrong = |name: &str, problem: String| Err(Error::weights(source.path, format!("{prefix}{name}"), problem));
    let [one, units, width] = source.shape(&format!("{prefix}{MARKER}"))?;
    let grid = units.isqrt();
    if one != 1 || grid == 0 || grid * grid != units {
        return wrong(MARKER, format!("has {one} times {units} rows, expected those of a square"));
    }
    let kernel = "to_patch_embedding.0.weight";
    let [_, colours, patch, patch_width] = source.shape(&format!("{prefix}{kernel}"))?;
    if colours != 3 || patch != patch_width || !(1..=1024).contains(&patch) {
        return wrong(kernel, format!("is for {colours} colours in {patch}x{patch_width}, expected 3 in a square"));
    }
    let qkv = "transformer.layers.0.0.fn.to_qkv.weight";
    let [rows, _] = source.shape(&format!("{prefix}{qkv}"))?;
    let inner = rows / 3;
    if inner == 0 || rows != 3 * inner || !inner.is_multiple_of(HEAD_SIZE) {
        return wrong(qkv, format!("has {rows} rows, expected three times a multiple of {HEAD_SIZE}"));
    }
    let [mlp, _] = source.shape(&format!("{prefix}transformer.layers.0.1.fn.net.0.weight"))?;
    let size = grid.saturating_mul(patch);
    Ok(TokenizerConfig {
        format: FORMAT.into(),
        image: ImageConfig::plain_square(size),
        patch,
        width,
        layers: source.count(&format!("{prefix}transformer.layers."), ".0.fn.to_qkv.weight"),
        heads: inner / HEAD_SIZE,
        inner,
        mlp,
        eps: EPS,
        efficient_net: None,
        token_units: 1,
        codes,
        code_width,
    })
}

/// The tensors of the encoder and the layer after it.
fn planned(source: &mut Source<'_>, prefix: &str, linear: &str, config: &TokenizerConfig) -> Result<Vec<Planned>> {
    let &TokenizerConfig { patch, width, inner, mlp, code_width, .. } = config;
    let (units, depth) = (config.units(), 3 * patch * patch);
    let mut tensors = Vec::new();
    let mut same = |from: String, to: String, shape: &[usize]| -> Result<()> {
        tensors.push(source.plan(&from, &to, shape, shape)?);
        Ok(())
    };
    for n in 0..config.layers {
        let (from, to) = (format!("{prefix}transformer.layers.{n}"), format!("layers.{n}"));
        for (block, norm) in [(0, "attention_norm"), (1, "mlp_norm")] {
            for kind in ["weight", "bias"] {
                same(format!("{from}.{block}.norm.{kind}"), format!("{to}.{norm}.{kind}"), &[width])?;
            }
        }
        same(format!("{from}.0.fn.to_qkv.weight"), format!("{to}.qkv.weight"), &[3 * inner, width])?;
        for (name, own, [rows, columns]) in [
            ("0.fn.to_out", "attention_out", [width, inner]),
            ("1.fn.net.0", "fc1", [mlp, width]),
            ("1.fn.net.2", "fc2", [width, mlp]),
        ] {
            same(format!("{from}.{name}.weight"), format!("{to}.{own}.weight"), &[rows, columns])?;
            same(format!("{from}.{name}.bias"), format!("{to}.{own}.bias"), &[rows])?;
        }
    }
    for kind in ["weight", "bias"] {
        same(format!("{prefix}transformer.norm.{kind}"), format!("norm.{kind}"), &[width])?;
    }
    same(format!("{prefix}to_patch_embedding.0.bias"), "patch_embedding.bias".into(), &[width])?;
    same(format!("{linear}.weight"), "projection.weight".into(), &[code_width, width])?;
    same(format!("{linear}.bias"), "projection.bias".into(), &[code_width])?;
    // The layers of this encoder have none, those of im2sp one.
    tensors.extend((0..config.layers).map(|n| Planned {
        name: format!("layers.{n}.qkv.bias"),
        shape: vec![3 * inner],
        parts: Parts::Zeros,
    }));
    let kernel = [width, 3, patch, patch];
    let from = format!("{prefix}to_patch_embedding.0.weight");
    tensors.push(source.plan(&from, "patch_embedding.weight", &kernel, &[width, depth])?);
    let positions = [1, units, width];
    tensors.push(source.plan(&format!("{prefix}{MARKER}"), "position_embedding", &positions, &positions[1..])?);
    Ok(tensors)
}

/// First bytes of the SHA-256 of codes as little-endian f32: units of other codes mean something else.
pub fn fingerprint(codes: &[f32]) -> [u8; 16] {
    let mut hash = Sha256::new();
    codes.iter().for_each(|code| hash.update(code.to_le_bytes()));
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}
