//! Which pictures are to be captioned, and where the sound of each goes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use im2sp::{Error, Result};

use super::super::sound;
use super::Caption;

/// What files in a directory are taken for pictures. Their content decides what they are.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// One picture and where its sound goes; `None` without sound.
pub struct Item {
    pub image: PathBuf,
    pub target: Option<PathBuf>,
    /// It was found in a directory: what has been spoken already is kept.
    found: bool,
}

/// The work of one call.
pub struct Work {
    pub items: Vec<Item>,
    /// Pictures of directories that had been spoken before.
    pub kept: usize,
}

/// All pictures that were asked for, without those of directories whose sound is there already.
pub fn of(asked: &Caption) -> Result<Work> {
    let mut items = Vec::new();
    for path in &asked.images {
        if path.is_dir() {
            items.extend(pictures_in(path)?.into_iter().map(|image| Item { image, target: None, found: true }));
        } else {
            items.push(Item { image: path.clone(), target: None, found: false });
        }
    }
    if !asked.no_audio {
        direct(asked, &mut items)?;
    }
    let all = items.len();
    let spoken = |item: &Item| item.found && item.target.as_deref().is_some_and(Path::exists);
    items.retain(|item| asked.overwrite || !spoken(item));
    Ok(Work { kept: all - items.len(), items })
}

/// The pictures of a directory, not of those inside it, by their names.
fn pictures_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let fail = || Error::io("read", directory);
    let is_picture = |path: &Path| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        PICTURES.contains(&&*extension) && path.is_file()
    };
    let mut pictures = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail())? {
        let path = entry.map_err(fail())?.path();
        if is_picture(&path) {
            pictures.push(path);
        }
    }
    pictures.sort();
    if pictures.is_empty() {
        return Err(Error::image(
            directory,
            format!("no file in it is named as a picture is: {}", PICTURES.join(", ")),
        ));
    }
    Ok(pictures)
}

/// Fills in the targets. No two pictures have the same.
fn direct(asked: &Caption, items: &mut [Item]) -> Result<()> {
    let wrong = |problem: String| Error::Option { option: "output", problem };
    let alone = items.len() == 1 && !asked.images[0].is_dir();
    if asked.output.as_deref().is_some_and(sound::is_standard_output) {
        return match items {
            _ if asked.json => Err(wrong("standard output cannot take both sound and --json".into())),
            [item] => {
                item.target.clone_from(&asked.output);
                Ok(())
            }
            _ => Err(wrong("standard output takes the sound of one picture: give a directory".into())),
        };
    }
    let directory = match &asked.output {
        None => PathBuf::new(),
        Some(output) if output.is_dir() => output.clone(),
        Some(output) if output.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
            output.clone()
        }
        Some(output) if alone => {
            items[0].target = Some(output.clone());
            return Ok(());
        }
        Some(output) => {
            let problem = format!("{} is no directory, but there are several pictures", output.display());
            return Err(wrong(problem));
        }
    };
    let mut seen = HashMap::new();
    for item in items {
        let stem = item.image.file_stem().unwrap_or(item.image.as_os_str());
        let target = directory.join(stem).with_extension(asked.format.extension());
        if let Some(other) = seen.insert(target.clone(), item.image.clone()) {
            let (image, other, target) = (item.image.display(), other.display(), target.display());
            return Err(wrong(format!("{other} and {image} would both be spoken into {target}")));
        }
        item.target = Some(target);
    }
    Ok(())
}
