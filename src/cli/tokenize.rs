//! `im2sp tokenize`: images to image units in one file.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use im2sp::image::folder::Listing;
use im2sp::units::{ImageUnits, UnitGrid, UnitWriter};
use im2sp::{Error, Image, ImageTokenizer, Result};
use serde_json::json;

use super::print::{note, print_error, shown};
use super::progress::Bar;
use super::{ModelArgs, names, print_json, print_line};

/// Bits of an image as a captioner that sees pixels takes it: 224 x 224 pixels of 24 bits.
const RAW_BITS: f64 = 224.0 * 224.0 * 24.0;
/// Images that go through the tokenizer together, on the CPU and on a GPU, where two such batches are under way.
const TOGETHER: [usize; 2] = [8, 32];

/// Images of those that are skipped that are compared with what is stored.
const COMPARED: usize = 8;

/// Store images as image units, 9 bits each
///
/// A tokenizer makes a grid of units of every image; all go into one file, each image with its name and a checksum. Images of
/// a directory are taken, and named, as in im2sp caption. A file that exists already is continued: images whose name it holds
/// are skipped, so the same command resumes after an interruption; a few of them are compared with their units first. A token file of another program (NAME.data.bin.gz, with
/// NAME.index.npy.gz next to it) is copied as it is.
#[derive(Args)]
#[command(after_help = "\
Examples:
  im2sp convert --tokenizer tokenizer.ckpt --codebook codebook.ckpt -o models/tokenizer
  im2sp tokenize photos/ --weights models/tokenizer -o photos.units
  im2sp caption --units photos.units --weights models/deit-token -o spoken/
  im2sp tokenize val.data.bin.gz -o val.units")]
pub struct Tokenize {
    /// Images, directories of them, or one token file
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// The file to write or to continue
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Put this many images through the tokenizer together [default: 8 on the CPU, 32 on a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: Option<u16>,
    /// Print a JSON object on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Numbers of images of one call.
#[derive(Default)]
struct Counts {
    stored: usize,
    skipped: usize,
    failed: usize,
    /// Bytes of what was appended.
    bytes: u64,
}

impl Tokenize {
    /// Appends the units of every image. One that cannot be read is reported and does not stop the others.
    pub fn run(self) -> Result<ExitCode> {
        let clock = Instant::now();
        let mut counts = Counts::default();
        let grid = match &self.images[..] {
            [path] if is_token_file(path) => self.copy(path, &mut counts)?,
            _ => self.tokenize(&mut counts)?,
        };
        self.report(&counts, &grid, clock.elapsed().as_secs_f64())?;
        Ok(if counts.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Images through the tokenizer; gives back the grid of their units.
    fn tokenize(&self, counts: &mut Counts) -> Result<UnitGrid> {
        let images = list(&self.images, counts)?;
        let weights = self.model.weights.as_ref().ok_or_else(|| Error::Option {
            option: "weights",
            problem: "is needed: a directory made by im2sp convert --tokenizer CKPT --codebook CKPT".into(),
        })?;
        let tokenizer = ImageTokenizer::load(weights, self.model.options())?;
        note(format_args!("device {}", tokenizer.device()));
        let (mut writer, mut held) = self.open(tokenizer.grid())?;
        // The file holds names as text: those of other bytes have to differ as text too.
        let texts: Vec<_> = images.iter().map(|image| image.to_string_lossy().into_owned()).collect();
        let (names, renamed) = names::distinct(&texts);
        if let Some(&first) = renamed.first() {
            let (count, image, name) = (renamed.len(), shown(&images[first]), names[first].to_string_lossy());
            note(format_args!("{count} images share a name with another: they get longer ones ({image} is {name})"));
        }
        let given = images.len();
        let names = names.iter().map(|name| name.to_string_lossy().into_owned());
        let (jobs, skipped): (Vec<(String, PathBuf)>, Vec<_>) =
            names.zip(images).partition(|(name, _)| held.insert(name.clone()));
        self.compare(&tokenizer, &skipped)?;
        let together = TOGETHER[usize::from(!tokenizer.device().starts_with("cpu"))];
        let together = self.in_flight.map_or(together, usize::from);
        let before = writer.size()?;
        let (mut bar, mut stopped) = (Bar::new(), Ok(()));
        let source = |index: usize| jobs.get(index).map(|(_, path)| Image::open(path));
        let (mut stored, mut failed) = (0, 0);
        tokenizer.units_of_many(&source, together, &mut |index, units| {
            bar.show("images", index as u64 + 1, jobs.len() as u64);
            match units.map(|units| writer.append(&jobs[index].0, &units)) {
                Ok(Ok(())) => stored += 1,
                Ok(Err(error)) => {
                    stopped = Err(error);
                    return ControlFlow::Break(());
                }
                Err(error) => {
                    print_error(error);
                    failed += 1;
                }
            }
            ControlFlow::Continue(())
        })?;
        stopped?;
        writer.flush()?;
        counts.stored = stored;
        counts.failed += failed;
        counts.bytes = writer.size()? - before;
        counts.skipped = given - jobs.len();
        Ok(tokenizer.grid().clone())
    }

    /// An error if images that are skipped are others than those of the same names in the output: of a few that are compared, more
    /// units differ than another device or type makes differ.
    fn compare(&self, tokenizer: &ImageTokenizer, skipped: &[(String, PathBuf)]) -> Result<()> {
        if skipped.is_empty() {
            return Ok(());
        }
        let held = ImageUnits::open(&self.output)?;
        let chosen: Vec<_> = skipped.iter().step_by(skipped.len().div_ceil(COMPARED)).collect();
        let wanted: HashSet<&str> = chosen.iter().map(|(name, _)| name.as_str()).collect();
        let records =
            (0..held.len()).filter(|&index| held.name(index).is_ok_and(|name| wanted.contains(name.as_str())));
        let records = records.map(|index| held.read(index).map(|record| (record.name, record.units)));
        let records: HashMap<String, Vec<u16>> = records.collect::<Result<_>>()?;
        let source = |index: usize| chosen.get(index).map(|(_, path)| Image::open(path));
        let mut other = None;
        tokenizer.units_of_many(&source, COMPARED, &mut |index, units| {
            let (name, path) = chosen[index];
            // One that cannot be read any more was read when it was stored.
            let (Ok(units), Some(stored)) = (units, records.get(name)) else { return ControlFlow::Continue(()) };
            let same = units.iter().zip(stored).filter(|(own, stored)| own == stored).count();
            if 4 * same < 3 * units.len() {
                other = Some((name, path));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let Some((name, path)) = other else { return Ok(()) };
        let problem = format!("is of another image than {}: write that to a file of its own", shown(path));
        Err(Error::weights(&self.output, name, problem))
    }

    /// The images of a token file; gives back their grid.
    fn copy(&self, path: &Path, counts: &mut Counts) -> Result<UnitGrid> {
        let tokens = ImageUnits::open(path)?;
        let (mut writer, held) = self.open(tokens.grid())?;
        let (before, mut bar) = (writer.size()?, Bar::new());
        for index in 0..tokens.len() {
            bar.show("images", index as u64 + 1, tokens.len() as u64);
            match tokens.read(index) {
                Ok(record) if held.contains(&record.name) => counts.skipped += 1,
                Ok(record) => {
                    writer.append(&record.name, &record.units)?;
                    counts.stored += 1;
                }
                Err(error) => {
                    print_error(error);
                    counts.failed += 1;
                }
            }
        }
        writer.flush()?;
        counts.bytes = writer.size()? - before;
        Ok(tokens.grid().clone())
    }

    /// The output, and the names that it holds already.
    fn open(&self, grid: &UnitGrid) -> Result<(UnitWriter, HashSet<String>)> {
        if self.output.exists() {
            for damage in ImageUnits::open(&self.output)?.damage() {
                note(format_args!("{}: damaged, left out: {damage}", shown(&self.output)));
            }
        }
        let (writer, held) = UnitWriter::open(&self.output, grid)?;
        Ok((writer, held.into_iter().collect()))
    }

    fn report(&self, counts: &Counts, grid: &UnitGrid, seconds: f64) -> Result<()> {
        let Counts { stored, skipped, failed, bytes } = *counts;
        if skipped > 0 {
            note(format_args!("skipping {skipped} images that {} holds already", shown(&self.output)));
        }
        let bits = (grid.units() * grid.bits()) as f64;
        let each = 8.0 * bytes as f64 / stored.max(1) as f64;
        if self.json {
            return print_json(&json!({
                "output": self.output.to_string_lossy(),
                "stored": stored,
                "skipped": skipped,
                "failed": failed,
                "units_per_image": grid.units(),
                "bits_per_unit": grid.bits(),
                "bits_per_image": bits,
                "stored_bits_per_image": each,
                "raw_bits_per_image": RAW_BITS,
                "seconds": seconds,
            }));
        }
        print_line(format_args!(
            "{}: {stored} images in {seconds:.1} s; {} units of {} bits are {bits:.0} bits an image, {:.3} % of 224x224 \
             pixels of 24 bits; with names and checksums {each:.0}, {:.3} %",
            shown(&self.output),
            grid.units(),
            grid.bits(),
            100.0 * bits / RAW_BITS,
            100.0 * each / RAW_BITS
        ))
    }
}

/// All images that are named, those of directories included. A directory without images is an error if it is the only argument.
fn list(paths: &[PathBuf], counts: &mut Counts) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for path in paths {
        if !path.is_dir() {
            images.push(path.clone());
            continue;
        }
        match Listing::of(path) {
            Ok(listing) => {
                if let Some(left_out) = listing.left_out() {
                    note(format_args!("{}: left out {left_out}", shown(path)));
                }
                images.extend(listing.images);
            }
            Err(error) if paths.len() == 1 => return Err(error),
            Err(error) => {
                print_error(error);
                counts.failed += 1;
            }
        }
    }
    Ok(images)
}

fn is_token_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".data.bin.gz"))
}
