//! Speech units and the decoder's tokens: the map between them, where a row of tokens ends, and unit lists written as
//! text. Units are 0 to K-1; tokens leave room for three special ones.
//!
//! Unit 100 and [`BOS`] share token 101: every published checkpoint was trained with that, and it is harmless because
//! BOS stands at the start of a row only. Token 103 is never produced.

use std::path::Path;

use crate::{Error, Result, files};

/// Fills a row after its end.
pub const PAD: u32 = 0;
/// Starts every row.
pub const BOS: u32 = 101;
/// Ends a row.
pub const EOS: u32 = 102;
/// Tokens that are no units: the vocabulary has this many rows more than there are units.
pub const SPECIAL: usize = 3;

/// Longest list of units that is accepted: about half an hour of speech.
pub const MAX_UNITS: usize = 1 << 16;
/// Most bytes of a text with units.
pub const MAX_TEXT_BYTES: u64 = 1 << 20;

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

/// What a row of tokens, its BOS removed, says.
pub fn spoken(tokens: &[u32]) -> Vec<u32> {
    speakable(&cut_at_eos(tokens).iter().map(|&token| to_unit(token)).collect::<Vec<_>>())
}

/// Where the published evaluation scripts end a row, its BOS removed; to compare with their numbers only. They search
/// for EOS between two spaces, and cut off the last character when they do not find it.
pub fn reference_truncation(tokens: &[u32]) -> Vec<i64> {
    let joined = tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let end = joined.find(&format!(" {EOS} ")).unwrap_or(joined.len().saturating_sub(1));
    joined[..end].split(' ').filter_map(|token| token.parse().ok()).collect()
}

/// Reads units written as numbers with white space or commas between them, all below `count`.
pub fn parse(text: &str, count: usize) -> Result<Vec<u32>> {
    let refuse = |problem: String| Err(Error::Units { problem });
    let mut units = Vec::new();
    for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()) {
        if units.len() == MAX_UNITS {
            return refuse(format!("there are more than {MAX_UNITS}: speak them in parts"));
        }
        match word.parse::<u32>() {
            Ok(unit) if (unit as usize) < count => units.push(unit),
            _ => {
                let place = units.len() + 1;
                let shown: String = word.chars().take(40).collect();
                return refuse(format!(
                    "number {place} is {shown:?}: a unit is a whole number from 0 to {}",
                    count.saturating_sub(1)
                ));
            }
        }
    }
    if units.is_empty() {
        return refuse("there are none: give numbers such as \"71 12 4\"".into());
    }
    Ok(units)
}

/// As [`parse`], for the text in the file at `path`.
pub fn read(path: &Path, count: usize) -> Result<Vec<u32>> {
    let bytes = files::read_at_most(path, MAX_TEXT_BYTES)?;
    let in_file = |problem: &str| Error::Units { problem: format!("{}: {problem}", path.display()) };
    let text =
        std::str::from_utf8(&bytes).map_err(|_| in_file("is no text: expected numbers with spaces between them"))?;
    parse(text, count).map_err(|error| match error {
        Error::Units { problem } => in_file(&problem),
        other => other,
    })
}
