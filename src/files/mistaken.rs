//! Names for the content of files that were taken for another kind by mistake.

/// Bytes at the start of a file that tell whether it is text.
const MAX_TEXT_START: usize = 512;
/// Bytes at the start of a file that a placeholder is recognised by.
const MAX_PLACEHOLDER_START: usize = 1024;

/// A text that came in the place of a file of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// A pointer of Git LFS.
    Pointer,
    /// A page for people.
    WebPage,
    /// A message of a server for programs.
    Message,
}

impl Placeholder {
    /// The placeholder that `bytes` are, if they are one.
    pub fn of(bytes: &[u8]) -> Option<Placeholder> {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_PLACEHOLDER_START)]).to_ascii_lowercase();
        let text = start.trim_start_matches(|c: char| c == '\u{FEFF}' || c.is_whitespace());
        let begins = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
        let holds = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if begins(&["version https://git-lfs.github.com/"]) {
            Some(Placeholder::Pointer)
        } else if begins(&["<!doctype html"]) || (begins(&["<"]) && holds(&["<html", "<head", "<body"])) {
            Some(Placeholder::WebPage)
        } else if begins(&["<?xml"]) || (begins(&["<"]) && holds(&["<error", "<message"])) {
            Some(Placeholder::Message)
        } else {
            None
        }
    }

    /// Name and remedy, to be put after the file's name.
    pub fn problem(self) -> &'static str {
        match self {
            Placeholder::Pointer => {
                "is a Git LFS pointer that stands for the file: fetch the file itself with `git lfs pull`"
            }
            Placeholder::WebPage => {
                "is a web page, not the file (Google Drive shows one before it gives a large file away): open the address \
                 in a browser and download the file from there"
            }
            Placeholder::Message => "is an XML text, perhaps a server's error message, not the file: download it again",
        }
    }
}

/// Name and remedy for the content of a file that was expected to be of another kind: an archive, a Git LFS pointer, a
/// web page or other text in place of a download. `None` for bytes that are none of these.
pub fn mistaken_content(bytes: &[u8]) -> Option<String> {
    const BINARY: [(&[u8], &str); 9] = [
        (b"\x1f\x8b", "is compressed with gzip: unpack it with gunzip"),
        (b"\xfd7zXZ\0", "is compressed with xz: unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it with unzstd"),
        (b"BZh", "is compressed with bzip2: unpack it with bunzip2"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
        (b"Rar!\x1a\x07", "is a RAR archive: unpack it"),
        (b"PK\x03\x04", "is a zip archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, which is not read: give the original"),
        (b"GGUF", "is a GGUF file, which is not read: give the original"),
    ];
    if let Some((_, problem)) = BINARY.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(problem.to_string());
    }
    if let Some(placeholder) = Placeholder::of(bytes) {
        return Some(placeholder.problem().into());
    }
    let start = &bytes[..bytes.len().min(MAX_TEXT_START)];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    // A character may be cut off at the end.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if text.is_empty() || text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace()) {
        None
    } else {
        let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        Some(format!("is text that begins with {line:?}: download or copy the file itself"))
    }
}
