//! Names for the content of files that were taken for another kind by mistake.

/// Bytes at the start of a file that tell whether it is text.
const MAX_TEXT_START: usize = 512;

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
    } else if text.starts_with("version https://git-lfs.github.com/spec/") {
        Some("is a Git LFS pointer that stands for the file: fetch the file itself with `git lfs pull`".into())
    } else if text.starts_with('<') {
        Some(
            "is a web page or an XML message, not the file: download it again (Google Drive asks a question before it \
              gives a large file away: answer it in a browser)"
                .into(),
        )
    } else {
        let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        Some(format!("is text that begins with {line:?}: download or copy the file itself"))
    }
}
