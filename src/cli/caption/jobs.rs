//! The images to caption, and where the result of each goes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use im2sp::files::FileId;
use im2sp::image::folder::Listing;
use im2sp::units::ImageUnits;
use im2sp::{Error, Result};

use super::super::names;
use super::super::output::{self, Destination, is_dash};
use super::super::print::{note, print_error, shown};
use super::Caption;

/// One image and where its result goes: sound, or units with `--no-audio`; `None` for units on standard output.
pub struct Job {
    /// "-" is standard input.
    pub image: PathBuf,
    pub destination: Option<Destination>,
    /// It was found in a folder, or in a file of units: a result that exists already is kept.
    found: bool,
    /// Its number in a file of units; `image` then is only a name.
    pub record: Option<usize>,
}

/// The jobs of one call.
pub struct Jobs {
    pub jobs: Vec<Job>,
    /// Images of folders whose result existed already.
    pub skipped: usize,
    /// One of several arguments was a folder without images, or one that cannot be read; its error was printed.
    pub failed: bool,
}

/// All images named by `args` or in its file of units, without those of folders whose result exists already.
pub fn of(args: &Caption, stored: Option<&ImageUnits>) -> Result<Jobs> {
    let (mut jobs, mut failed) = (Vec::new(), false);
    for path in &args.images {
        if !is_dash(path) && path.is_dir() {
            let listing = match Listing::of(path) {
                Err(error) if args.images.len() > 1 => {
                    print_error(error);
                    failed = true;
                    continue;
                }
                listing => listing?,
            };
            if let Some(left_out) = listing.left_out() {
                note(format_args!("{}: left out {left_out}", shown(path)));
            }
            jobs.extend(listing.images.into_iter().map(|image| Job {
                image,
                destination: None,
                found: true,
                record: None,
            }));
        } else {
            jobs.push(Job { image: path.clone(), destination: None, found: false, record: None });
        }
    }
    for damage in stored.iter().flat_map(|stored| stored.damage()) {
        print_error(format_args!(
            "{}: damaged, left out: {damage}",
            shown(args.units.as_deref().unwrap_or(Path::new("")))
        ));
        failed = true;
    }
    for record in 0..stored.map_or(0, ImageUnits::len) {
        let name = stored.map(|stored| stored.name(record)).transpose()?.unwrap_or_default();
        jobs.push(Job { image: name.into(), destination: None, found: true, record: Some(record) });
    }
    if jobs.iter().filter(|job| is_dash(&job.image)).count() > 1 {
        return Err(Error::Option { option: "image", problem: "- stands for standard input: give it once".into() });
    }
    if jobs.is_empty() {
        return Ok(Jobs { jobs, skipped: 0, failed });
    }
    direct(args, &mut jobs)?;
    keep_inputs(&jobs)?;
    let all = jobs.len();
    let exists = |job: &Job| match &job.destination {
        Some(Destination::File(path)) => job.found && path.exists(),
        _ => false,
    };
    jobs.retain(|job| args.overwrite || !exists(job));
    Ok(Jobs { skipped: all - jobs.len(), jobs, failed })
}

/// Fills in the destinations. No two jobs have the same.
fn direct(args: &Caption, jobs: &mut Vec<Job>) -> Result<()> {
    let wrong = |problem: String| Error::Option { option: "output", problem };
    let alone = match &args.images[..] {
        [] => jobs.len() == 1,
        [image] => is_dash(image) || !image.is_dir(),
        _ => false,
    };
    let what = if args.no_audio { "units" } else { "sound" };
    let folder = match &args.output {
        None if args.no_audio => return Destination::of(Path::new("-")).map(drop),
        None => PathBuf::new(),
        Some(output) => match (output::folder(output)?, Destination::of(output)?) {
            (Some(folder), _) => folder,
            (None, Destination::Standard) if args.json => {
                return Err(wrong(format!("standard output cannot take both {what} and --json")));
            }
            (None, Destination::Standard) if args.no_audio => return Ok(()),
            (None, destination) if alone => {
                jobs[0].destination = Some(destination);
                return Ok(());
            }
            (None, Destination::Standard) => {
                return Err(wrong("standard output takes the sound of one image: give a directory".into()));
            }
            (None, Destination::File(path)) => {
                let problem = format!("{} is no directory, but there are several images: add a /", path.display());
                return Err(wrong(problem));
            }
        },
    };
    let suffix = if args.no_audio { "units" } else { args.format.suffix() };
    let duplicates = drop_duplicates(jobs);
    if let Some(first) = duplicates.first() {
        let (count, first) = (duplicates.len(), shown(first));
        note(format_args!(
            "left out {count} that are other images again, under the same name ({first}): give links names of their own"
        ));
    }
    let images: Vec<&Path> = jobs.iter().map(|job| &*job.image).collect();
    let (names, renamed) = names::distinct(&images);
    let targets: Vec<PathBuf> = names.into_iter().map(|name| folder.join(with_suffix(name, suffix))).collect();
    if let Some(&first) = renamed.first() {
        let (count, image, target) = (renamed.len(), shown(images[first]), shown(&targets[first]));
        note(format_args!(
            "{count} images share a name with another: their results have longer ones ({image} -> {target})"
        ));
    }
    for (job, target) in jobs.iter_mut().zip(targets) {
        job.destination = Some(Destination::File(target));
    }
    Ok(())
}

fn with_suffix(mut name: OsString, suffix: &str) -> OsString {
    name.push(".");
    name.push(suffix);
    name
}

/// Removes images that were named twice: by two arguments, by a folder and an argument, which then counts, or by links of
/// the same name. Gives back those that were removed.
fn drop_duplicates(jobs: &mut Vec<Job>) -> Vec<PathBuf> {
    let mut known = HashMap::new();
    let mut distinct: Vec<Job> = Vec::with_capacity(jobs.len());
    let mut removed = Vec::new();
    for job in jobs.drain(..) {
        let file = if job.record.is_none() { FileId::of(&job.image) } else { None };
        let key = file.map(|id| (id, job.image.file_name().map(OsString::from)));
        let first = key.map_or(distinct.len(), |key| *known.entry(key).or_insert(distinct.len()));
        match distinct.get_mut(first) {
            Some(first) => {
                first.found &= job.found;
                removed.push(job.image);
            }
            None => distinct.push(job),
        }
    }
    *jobs = distinct;
    removed
}

/// Refuses to write a result over an image, under whatever names.
fn keep_inputs(jobs: &[Job]) -> Result<()> {
    let targets = jobs.iter().filter_map(|job| match &job.destination {
        Some(Destination::File(path)) => Some((path, FileId::of(path)?)),
        _ => None,
    });
    let mut targets = targets.peekable();
    if targets.peek().is_none() {
        return Ok(());
    }
    let images: HashMap<FileId, &Path> = jobs
        .iter()
        .filter(|job| job.record.is_none())
        .filter_map(|job| Some((FileId::of(&job.image)?, &*job.image)))
        .collect();
    for (target, id) in targets {
        if let Some(image) = images.get(&id).filter(|_| target.is_file()) {
            let problem = format!("{} is the image {}: choose another", target.display(), image.display());
            return Err(Error::Option { option: "output", problem });
        }
    }
    Ok(())
}
