//! Unit lists as people and programs write them: numbers; a line for each caption, with or without a name before it; JSON,
//! also what `im2sp caption --json` prints; the manifests of Python dictionaries that unit vocoders are trained from. UTF-8
//! with or without a byte order mark, or UTF-16 with one.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use crate::files::{self, Placeholder};
use crate::{Error, Result};

/// Longest list of units that is accepted: about half an hour of speech.
pub const MAX_UNITS: usize = 1 << 16;
/// Maximum bytes of a text with units.
pub const MAX_TEXT_BYTES: u64 = 1 << 26;

/// Fields of a record that hold its units: those of this program, then those of unit manifests.
const UNIT_FIELDS: [&str; 6] = ["units", "hubert", "unit", "code", "codes", "cpc_km100"];
/// Fields of a record that name it.
const NAME_FIELDS: [&str; 8] = ["image", "audio", "name", "id", "file", "path", "wav", "output"];
/// Characters of a wrong number that an error shows.
const SHOWN: usize = 40;

/// The units of one caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitList {
    /// Name that was written with the units, as it was written: often a path.
    pub name: Option<String>,
    /// Line of the text that it begins at, from 1; in a JSON text the number of its record.
    pub line: usize,
    /// Each below the vocoder's number of units.
    pub units: Vec<u32>,
}

/// Parses one list of units below `count`; several lines are one list.
pub fn parse(text: &str, count: usize) -> Result<Vec<u32>> {
    let units = parse_lists(text, count)?.into_iter().flat_map(|list| list.units).collect::<Vec<_>>();
    check_length(units.len()).map_err(|problem| Error::Units { problem })?;
    Ok(units)
}

/// Parses the unit lists of a text, units below `count`. A line is a list, except where every line has one number and
/// nothing else: such a column is one list.
///
/// # Errors
/// If there is no unit, one is out of range, or a line is none of the forms above.
pub fn parse_lists(text: &str, count: usize) -> Result<Vec<UnitList>> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let records = || json_records(text).or_else(|| json_records(&json_of_python(text)));
    let lists = match text.starts_with(['[', '{', '"']).then(records).flatten() {
        Some(records) => from_json(&records, count),
        None => from_lines(text, count),
    };
    let lists = lists.map_err(|problem| Error::Units { problem })?;
    if lists.iter().all(|list| list.units.is_empty()) {
        return Err(Error::Units { problem: "there are none: give numbers such as \"71 12 4\"".into() });
    }
    Ok(lists)
}

/// As [`parse_lists`], for the content of a file; `name` is what errors call it.
pub fn decode_lists(bytes: &[u8], name: &Path, count: usize) -> Result<Vec<UnitList>> {
    let in_file = |problem: String| Error::Units { problem: format!("{}: {problem}", name.display()) };
    let text = decode(bytes).map_err(in_file)?;
    parse_lists(&text, count).map_err(|error| match error {
        Error::Units { problem } => in_file(problem),
        other => other,
    })
}

/// As [`decode_lists`], for the file at `path`.
pub fn read_lists(path: &Path, count: usize) -> Result<Vec<UnitList>> {
    decode_lists(&files::read_at_most(path, MAX_TEXT_BYTES)?, path, count)
}

/// The text in `bytes`: UTF-16 after its byte order mark, otherwise UTF-8.
fn decode(bytes: &[u8]) -> std::result::Result<Cow<'_, str>, String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let text = char::decode_utf16(pairs.iter().map(|&pair| unit(pair))).collect::<std::result::Result<_, _>>();
        text.ok().filter(|_| rest.is_empty()).map(Cow::Owned)
    };
    let text = match bytes {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
    };
    match text {
        None => Err("is no text: expected numbers with spaces between them".into()),
        Some(text) => match Placeholder::of(text.as_bytes()) {
            Some(placeholder) => Err(placeholder.problem().into()),
            None => Ok(text),
        },
    }
}

/// The values of a text that is JSON from its beginning to its end: one, or one after another. Bare numbers are not JSON
/// here: a line of them is a list.
fn json_records(text: &str) -> Option<Vec<Value>> {
    let records: Option<Vec<Value>> =
        serde_json::Deserializer::from_str(text).into_iter().map(|value| value.ok()).collect();
    records.filter(|records| !records.iter().any(Value::is_number))
}

/// The lists of JSON values: an array of numbers is one; of an array of other things, each.
fn from_json(values: &[Value], count: usize) -> std::result::Result<Vec<UnitList>, String> {
    let records: Vec<&Value> = match values {
        [Value::Array(records)] if records.iter().any(|record| record.is_array() || record.is_object()) => {
            records.iter().collect()
        }
        values => values.iter().collect(),
    };
    let named = |(index, record): (usize, &&Value)| {
        let line = index + 1;
        let list = list_of(record, line, count);
        list.map_err(|problem| if records.len() > 1 { format!("record {line}: {problem}") } else { problem })
    };
    records.iter().enumerate().map(named).collect()
}

/// The list of one JSON value.
fn list_of(record: &Value, line: usize, count: usize) -> std::result::Result<UnitList, String> {
    let Value::Object(fields) = record else {
        return Ok(UnitList { name: None, line, units: units_of(record, count)? });
    };
    let Some(units) = UNIT_FIELDS.iter().find_map(|field| fields.get(*field)) else {
        return Err(format!("has no field of units: expected one of {}", UNIT_FIELDS.join(", ")));
    };
    let name = NAME_FIELDS.iter().find_map(|field| fields.get(*field)?.as_str());
    Ok(UnitList { name: name.map(str::to_owned), line, units: units_of(units, count)? })
}

/// The units in an array of numbers or a string of them.
fn units_of(value: &Value, count: usize) -> std::result::Result<Vec<u32>, String> {
    match value {
        Value::String(text) => numbers(text, count),
        Value::Array(values) => {
            check_length(values.len())?;
            let unit = |(index, value): (usize, &Value)| match value.as_u64().map(u32::try_from) {
                Some(Ok(unit)) if (unit as usize) < count => Ok(unit),
                _ => Err(wrong_number(index, &value.to_string(), count)),
            };
            values.iter().enumerate().map(unit).collect()
        }
        other => Err(format!("{} is no list of units", other.to_string().chars().take(SHOWN).collect::<String>())),
    }
}

/// The lists of a text that is not JSON as a whole.
fn from_lines(text: &str, count: usize) -> std::result::Result<Vec<UnitList>, String> {
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if lines().all(|(_, line)| line.trim().parse::<u64>().is_ok()) {
        let units = numbers(text, count)?;
        return Ok(vec![UnitList { name: None, line: 1, units }]);
    }
    let several = lines().nth(1).is_some();
    let list = |(index, text): (usize, &str)| {
        let list = from_line(text.trim(), index + 1, count);
        list.map_err(|problem| if several { format!("line {}: {problem}", index + 1) } else { problem })
    };
    lines().map(list).collect()
}

/// The list of one line: JSON, a Python dictionary or list, `name|units`, `name<TAB>units`, or numbers.
fn from_line(text: &str, line: usize, count: usize) -> std::result::Result<UnitList, String> {
    if text.starts_with(['[', '{', '"']) {
        let value = serde_json::from_str(text).or_else(|_| serde_json::from_str(&json_of_python(text)));
        return list_of(&value.map_err(|error| format!("is neither JSON nor a Python value: {error}"))?, line, count);
    }
    let several = |text: &str| numbers(text, count).is_ok_and(|units| units.len() > 1);
    let named = match text.split_once('|') {
        Some((name, units)) => Some((name, units)).filter(|(name, _)| !several(name)),
        // Numbers may have tabs between them, but none begins with a zero: 0007 is a name.
        None => text.split_once('\t').filter(|(name, _)| {
            let padded = name.len() > 1 && name.starts_with('0') && !name.contains([',', ' ']);
            padded || numbers(name, count).is_err()
        }),
    };
    let (name, units) = named.map_or((None, text), |(name, units)| (Some(name.trim().to_owned()), units));
    Ok(UnitList { name, line, units: numbers(units.trim(), count)? })
}

/// A Python literal as JSON: quotes of both kinds, `None`, `True`, `False` and parentheses.
fn json_of_python(text: &str) -> String {
    let mut json = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' | '"' => {
                let mut content = String::new();
                while let Some(inside) = rest.next().filter(|&inside| inside != c) {
                    content.extend(if inside == '\\' { rest.next() } else { Some(inside) });
                }
                json += &Value::String(content).to_string();
            }
            'A'..='Z' => {
                let mut word = String::from(c);
                while let Some(next) = rest.next_if(char::is_ascii_alphabetic) {
                    word.push(next);
                }
                json += match &*word {
                    "None" => "null",
                    "True" => "true",
                    "False" => "false",
                    other => other,
                };
            }
            '(' => json.push('['),
            ')' => json.push(']'),
            other => json.push(other),
        }
    }
    json
}

/// Numbers with white space or commas between them.
fn numbers(text: &str, count: usize) -> std::result::Result<Vec<u32>, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let mut units = Vec::new();
    for word in words {
        match word.parse::<u32>() {
            Ok(unit) if (unit as usize) < count => units.push(unit),
            _ => return Err(wrong_number(units.len(), word, count)),
        }
        check_length(units.len())?;
    }
    Ok(units)
}

fn check_length(length: usize) -> std::result::Result<(), String> {
    match length {
        0..=MAX_UNITS => Ok(()),
        _ => Err(format!("there are more than {MAX_UNITS}: speak them in parts")),
    }
}

fn wrong_number(index: usize, word: &str, count: usize) -> String {
    let shown: String = word.chars().take(SHOWN).collect();
    format!("number {} is {shown:?}: a unit is a whole number from 0 to {}", index + 1, count.saturating_sub(1))
}
