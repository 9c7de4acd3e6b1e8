//! Speech units and the decoder's tokens: the map between them, where a row of tokens ends, and unit lists written as
//! text. Units are 0 to K-1; tokens leave room for three special ones.
//!
//! Unit 100 and [`BOS`] share token 101: every published checkpoint was trained with that, and it is harmless because
//! BOS stands at the start of a row only. Token 103 is never produced.

mod distance;
pub mod image_units;
mod lists;
mod steady;
mod token_files;

pub use distance::edit_distance;
pub use image_units::{ImageRecord, ImageUnits, UnitGrid, UnitWriter};
pub use lists::{MAX_TEXT_BYTES, MAX_UNITS, UnitList, decode_lists, parse, parse_lists, read_lists};
pub use steady::steady;

/// Fills a row after its end.
pub const PAD: u32 = 0;
/// Starts every row.
pub const BOS: u32 = 101;
/// Ends a row.
pub const EOS: u32 = 102;
/// Tokens that are no units: the vocabulary has this many rows more than there are units.
pub const SPECIAL: usize = 3;

/// The token of `unit`.
pub fn to_token(unit: u32) -> u32 {
    if unit <= 100 { unit + 1 } else { unit + 3 }
}

/// The unit of `token`; -1 for [`PAD`], which has none.
pub fn to_unit(token: u32) -> i64 {
    if token <= BOS { i64::from(token) - 1 } else { i64::from(token) - 3 }
}

/// The part of a row, its BOS removed, before the first EOS; the whole row when there is none.
pub fn cut_at_eos(tokens: &[u32]) -> &[u32] {
    tokens.iter().position(|&token| token == EOS).map_or(tokens, |end| &tokens[..end])
}

/// `units` without those that repeat the one before.
pub fn deduplicated<T: Copy + PartialEq>(units: &[T]) -> Vec<T> {
    let mut kept = units.to_vec();
    kept.dedup();
    kept
}

/// The units that a vocoder can speak: those that are not negative.
pub fn speakable(units: &[i64]) -> Vec<u32> {
    units.iter().filter_map(|&unit| u32::try_from(unit).ok()).collect()
}

/// Units of a row of tokens without its BOS.
pub fn units_of(tokens: &[u32]) -> Vec<u32> {
    speakable(&cut_at_eos(tokens).iter().map(|&token| to_unit(token)).collect::<Vec<_>>())
}

/// The part of a row, its BOS removed, before the end that the published evaluation scripts find; to compare with their
/// numbers only. They search for EOS between two spaces, and cut off the last character when they do not find it.
pub fn reference_truncation(tokens: &[u32]) -> Vec<i64> {
    let joined = tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let end = joined.find(&format!(" {EOS} ")).unwrap_or(joined.len().saturating_sub(1));
    joined[..end].split(' ').filter_map(|token| token.parse().ok()).collect()
}

/// Units that the published evaluation scripts read out of a row of tokens without its BOS.
pub fn reference_units_of(tokens: &[u32]) -> Vec<u32> {
    let units = reference_truncation(tokens).into_iter().filter_map(|id| u32::try_from(id).ok()).map(to_unit);
    speakable(&units.collect::<Vec<_>>())
}
