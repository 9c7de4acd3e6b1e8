//! Configurations as Python writes them: JSON with `NaN` and `Infinity`, perhaps after a byte order mark. Fields are
//! taken one by one, so that an error names the field and what nobody needs cannot be wrong.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result, files};

/// An object of a configuration file.
#[derive(Clone, Debug)]
pub struct Json {
    path: PathBuf,
    /// Names of the objects around this one, each with a dot after it.
    prefix: String,
    fields: Map<String, Value>,
}

impl Json {
    /// Reads and parses the file at `path`.
    pub fn read(path: &Path) -> Result<Json> {
        Json::parse(path, &super::directory::read_small(path)?)
    }

    /// Parses `text`, which has to be one object; `path` only names it in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Json> {
        let wrong = |problem: String| Error::weights(path, "configuration", problem);
        let text = text.trim_start_matches('\u{feff}');
        match serde_json::from_str(&without_python_numbers(text)) {
            Ok(Value::Object(fields)) => Ok(Json { path: path.to_owned(), prefix: String::new(), fields }),
            Ok(_) => Err(wrong("is JSON, but not an object {…}".into())),
            Err(error) => {
                let other = files::mistaken_content(text.as_bytes()).filter(|_| !text.trim_start().starts_with('{'));
                Err(wrong(other.unwrap_or_else(|| format!("is not valid JSON: {error}"))))
            }
        }
    }

    /// The file it comes from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about `field`.
    pub fn wrong(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::weights(&self.path, format!("{}{field}", self.prefix), problem)
    }

    /// Names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The value of `field`, unless that is absent or null.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether `field` is there and null.
    pub fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    /// The value of `field`, unless that is absent. Null has to be one of the values of `T`.
    pub fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        match T::deserialize(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) if value.is_null() => Err(self.wrong(field, "is null, NaN or infinite: give it a value")),
            Err(error) => Err(self.wrong(field, error.to_string())),
        }
    }

    /// The value of `field`, which has to be there.
    pub fn need<T: DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?.ok_or_else(|| self.wrong(field, "is missing"))
    }

    /// The object under `field`; an empty one if it is absent or null.
    pub fn object(&self, field: &str) -> Result<Json> {
        let fields = match self.value(field) {
            None => Map::new(),
            Some(Value::Object(fields)) => fields.clone(),
            Some(_) => return Err(self.wrong(field, "is no object {…}")),
        };
        Ok(Json { path: self.path.clone(), prefix: format!("{}{field}.", self.prefix), fields })
    }

    /// Truth as Python has it (`if value:`); false if `field` is absent.
    pub fn is_truthy(&self, field: &str) -> bool {
        match self.value(field) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(elements)) => !elements.is_empty(),
            Some(Value::Object(entries)) => !entries.is_empty(),
        }
    }
}

/// `text` with null for the numbers that Python's JSON has and JSON has not, outside of strings.
fn without_python_numbers(text: &str) -> Cow<'_, str> {
    const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !NUMBERS.iter().any(|number| text.contains(number)) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    let mut quoted = false;
    while let Some(character) = rest.chars().next() {
        let number = NUMBERS.iter().find(|number| !quoted && rest.starts_with(**number));
        let taken = match number {
            Some(number) => number.len(),
            // An escape and what it escapes.
            None if quoted && character == '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            None => character.len_utf8(),
        };
        quoted ^= character == '"';
        plain.push_str(if number.is_some() { "null" } else { &rest[..taken] });
        rest = &rest[taken..];
    }
    Cow::Owned(plain)
}
