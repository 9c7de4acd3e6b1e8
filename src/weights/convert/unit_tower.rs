//! The vision transformer of a captioner that sees image units: timm's, with a stem over code vectors. The decoder around it is
//! that of [`super::captioner`].

use std::path::Path;

use super::captioner::heads;
use super::{Parts, Planned, Source, tokenizer};
use crate::config::{ImageConfig, UnitInput, VisionConfig};
use crate::weights::names::{UNIT_GRID, UNIT_PIXELS, UNIT_VISION_EPS, VISION, VISION_EPS};
use crate::{Error, Result};

/// Side, distance and margin of the stem's windows, which no shape tells apart.
const PATCH: usize = 4;
const STRIDE: usize = 2;
const PADDING: usize = 1;

/// Whether a captioner sees image units.
pub(super) fn is_there(source: &Source<'_>) -> bool {
    source.tensors.contains_key(&format!("{VISION}patch_embed.proj.weight"))
}

/// Dimensions and preprocessing, and the codes (K, W) as a tensor of the captioner. The last norm and the head, which no caption
/// uses, are left aside.
pub(super) fn plan(
    source: &mut Source<'_>,
    codebook: &Path,
    left_aside: &mut Vec<String>,
) -> Result<(VisionConfig, ImageConfig, Planned)> {
    let path = source.path;
    let unused = ["norm.", "head."].map(|part| format!("{VISION}{part}"));
    left_aside.extend(source.remove(|name| unused.iter().any(|part| name.starts_with(part))));
    let stem = format!("{VISION}patch_embed.proj.weight");
    let [width, code_width, patch, patch_width] = source.shape(&stem)?;
    if [patch, patch_width] != [PATCH; 2] {
        let problem = format!("has windows of {patch}x{patch_width}, expected {PATCH}x{PATCH}");
        return Err(Error::weights(path, stem, problem));
    }
    let (codes, [count, values]) = tokenizer::codebook(codebook)?;
    if values != code_width {
        let problem = format!(
            "has codes of {values} values, but {} takes {code_width}: give the codebook it was trained with",
            path.display()
        );
        return Err(Error::weights(codebook, "codebook", problem));
    }
    let positions = format!("{VISION}pos_embed");
    let [_, tokens, _] = source.shape(&positions)?;
    let side = tokens.saturating_sub(1).isqrt();
    let crop = (side * STRIDE + PATCH).saturating_sub(STRIDE + 2 * PADDING);
    if side == 0 || side * side + 1 != tokens || crop > UNIT_GRID {
        let problem = format!("has {tokens} rows, expected a square number of windows and a class token");
        return Err(Error::weights(path, positions, problem));
    }
    let [mlp, _] = source.shape(&format!("{VISION}blocks.0.mlp.fc1.weight"))?;
    let units = UnitInput {
        grid: UNIT_GRID,
        crop,
        codes: count,
        code_width,
        stride: STRIDE,
        padding: PADDING,
        projection_eps: VISION_EPS,
        token_units: 1,
    };
    let vision = VisionConfig {
        patch,
        width,
        layers: source.count(&format!("{VISION}blocks."), ".mlp.fc1.weight"),
        heads: heads(path, "vision heads", None, width)?,
        mlp,
        eps: UNIT_VISION_EPS,
        units: Some(units),
        efficient_net: None,
    };
    let shape = vec![count, code_width];
    let codes = Planned { name: "vision.codebook".into(), shape, parts: Parts::Joined(vec![codes]) };
    Ok((vision, ImageConfig::plain_square(UNIT_GRID * UNIT_PIXELS), codes))
}
