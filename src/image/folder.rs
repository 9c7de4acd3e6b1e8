//! Image files of a folder, by their names: which are taken, which are left out and why.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Suffixes, in lower case, of the files that are taken from a folder.
pub const SUFFIXES: [&str; 9] = ["jpg", "jpeg", "jpe", "jif", "jfif", "png", "webp", "bmp", "gif"];
/// Suffixes of images in formats that are not read.
const UNREADABLE: [&str; 22] = [
    "heic", "heif", "avif", "tif", "tiff", "jp2", "j2k", "jxl", "svg", "ico", "pnm", "ppm", "pgm", "pbm", "tga", "psd",
    "dng", "cr2", "nef", "arw", "exr", "hdr",
];

/// The files of a folder, not of the folders inside it.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files that are named as images, by name. Their content decides what they are.
    pub images: Vec<PathBuf>,
    /// Numbers of files in image formats that are not read, by suffix.
    unreadable: BTreeMap<String, usize>,
    /// Numbers of files not named as images, by suffix; hidden ones are not counted.
    others: BTreeMap<String, usize>,
    /// Files of attributes that macOS adds to others (`._NAME`): they hold no image.
    apple_double: usize,
    /// Links whose target does not exist.
    dangling: usize,
    /// Folders, which are not searched.
    folders: usize,
    /// Pipes, sockets and devices: a read of them may never end.
    special: usize,
}

impl Listing {
    /// Lists `folder`.
    ///
    /// # Errors
    /// If it cannot be read or no file in it is named as an image.
    pub fn of(folder: &Path) -> Result<Listing> {
        let fail = || Error::io("read", folder);
        let mut listing = Listing::default();
        for entry in fs::read_dir(folder).map_err(fail())? {
            listing.add(entry.map_err(fail())?.path());
        }
        listing.images.sort();
        if listing.images.is_empty() {
            let left_out = listing.left_out().map_or(String::new(), |left_out| format!(" (left out: {left_out})"));
            let problem = format!("holds no file named as an image: expected .{}{left_out}", SUFFIXES.join(", ."));
            return Err(Error::image(folder, problem));
        }
        Ok(listing)
    }

    fn add(&mut self, path: PathBuf) {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let apple_double = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"._"));
        let suffix = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let named = SUFFIXES.contains(&&*suffix);
        match fs::metadata(&path) {
            _ if apple_double => self.apple_double += 1,
            Ok(about) if about.is_dir() => self.folders += usize::from(!hidden),
            Ok(about) if !about.is_file() => self.special += usize::from(!hidden),
            Ok(_) if named => self.images.push(path),
            Err(_) if named => self.dangling += 1,
            _ if UNREADABLE.contains(&&*suffix) => *self.unreadable.entry(suffix).or_default() += 1,
            _ if !hidden => *self.others.entry(suffix).or_default() += 1,
            _ => (),
        }
    }

    /// How many were left out because they are no files and no folders, in words; `None` if none.
    pub fn special(&self) -> Option<String> {
        (self.special > 0).then(|| format!("{} that are pipes, sockets or devices", self.special))
    }

    /// How many files were left out and why, in words; `None` if none.
    pub fn left_out(&self) -> Option<String> {
        let counted = |files: &BTreeMap<String, usize>| {
            let count = |(suffix, count): (&String, &usize)| match &**suffix {
                "" => format!("{count} without a suffix"),
                suffix => format!("{count} .{suffix}"),
            };
            (files.values().sum(), files.iter().map(count).collect::<Vec<_>>().join(", "))
        };
        let mut reasons = Vec::new();
        if let (count @ 1usize.., suffixes) = counted(&self.unreadable) {
            reasons.push(format!("{count} in formats that are not read ({suffixes}): save as JPEG or PNG"));
        }
        if let (count @ 1usize.., suffixes) = counted(&self.others) {
            reasons.push(format!("{count} not named as images ({suffixes})"));
        }
        for (count, what) in [
            (self.apple_double, "with attributes that macOS adds to files (._*)"),
            (self.dangling, "that are broken links"),
            (self.folders, "that are folders"),
        ] {
            if count > 0 {
                reasons.push(format!("{count} {what}"));
            }
        }
        reasons.extend(self.special());
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// The part of a file's name before the suffix of an image format, as in `photo.jpg` or `photo.jpg_large`: all of a name that
/// has none.
pub fn stem(name: &OsStr) -> &OsStr {
    let path = Path::new(name);
    let suffix = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let format = suffix.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let known = SUFFIXES.contains(&format) || UNREADABLE.contains(&format);
    path.file_stem().filter(|_| known).unwrap_or(name)
}
