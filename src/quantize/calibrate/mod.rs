//! `im2sp convert --calibrate`: eight-bit weights that know what they are multiplied with. Every matrix of the decoder is
//! rounded for the inputs it has while a set of images is captioned. Two runs over the captions of the unrounded model
//! go side by side, layer by layer: that of the unrounded model, whose outputs are the target, and that of everything
//! rounded so far, whose inputs the next matrix will really have. So later matrices make up for what earlier ones lost.

mod gradient;
mod layers;
mod product;
mod report;
mod sequences;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use self::layers::Rounding;
use self::product::Weights;
use self::sequences::{Batch, Sensitivities, batch, sensitivity};
use crate::backend::cpu::Cpu;
use crate::image::Image;
use crate::image::folder::Listing;
use crate::model::captioner::Captioner;
use crate::model::loader::Loader;
use crate::random::Random;
use crate::tensor::{DType, HostTensor};
use crate::weights::directory::{CAPTIONER, ModelFiles, StagedDirectory, VOCODER, write_tensors};
use crate::weights::{ConvertOptions, ConvertReport, convert};
use crate::{Error, Result};

pub use self::report::{CalibrateReport, MatrixReport};

/// Images that go through the models together.
const BATCH: usize = 8;

/// As [`convert()`] to eight bits, rounded for the images in `folder`. `progress` takes the stage, and how much of it of how
/// much is done. An image that cannot be read is left out and reported.
///
/// # Errors
/// As [`convert()`], and if there is no image that can be read.
pub fn convert_calibrated(
    options: &ConvertOptions,
    folder: &Path,
    progress: &mut dyn FnMut(&'static str, u64, u64),
) -> Result<(ConvertReport, CalibrateReport)> {
    if options.quantize != Some(DType::F8E4M3) {
        return Err(Error::Option { option: "calibrate", problem: "goes with --quantize fp8".into() });
    }
    let listing = Listing::of(folder)?;
    let staged = StagedDirectory::create(&options.output, options.force)?;
    let wide = staged.path().join("wide");
    let unrounded = ConvertOptions { quantize: None, output: wide.clone(), force: false, ..options.clone() };
    let mut report = convert(&unrounded, &mut |done, total| progress("convert", done >> 20, total >> 20))?;
    let mut files = ModelFiles::open(&wide)?;
    if files.config.vision.units.is_some() {
        let problem = "is for captioners that see pixels: quantize this one without it";
        return Err(Error::Option { option: "calibrate", problem: problem.into() });
    }
    let mut tensors: BTreeMap<String, HostTensor> =
        files.captioner.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let (rounded, mut calibrated) = calibrate(&mut files, Weights(tensors.clone()), &listing.images, progress)?;
    let left_out = listing.special().map(|special| format!("{}: {special}", folder.display()));
    calibrated.unreadable.extend(left_out);
    let size = |tensors: &BTreeMap<String, HostTensor>| -> u64 {
        tensors.values().map(|tensor| tensor.bytes().len() as u64).sum()
    };
    report.bytes -= size(&tensors);
    tensors.extend(rounded);
    report.bytes += size(&tensors);
    write_tensors(&staged.path().join(CAPTIONER), &tensors)?;
    if report.config.vocoder.is_some() {
        let place = staged.path().join(VOCODER);
        fs::rename(wide.join(VOCODER), &place).map_err(Error::io("move a file to", &place))?;
    }
    drop((files, tensors));
    fs::remove_dir_all(&wide).map_err(Error::io("remove", &wide))?;
    staged.commit(&report.config)?;
    Ok((report, calibrated))
}

/// Rounds the decoder of `files`, whose captioner is `weights`: the tensors that change.
fn calibrate(
    files: &mut ModelFiles,
    weights: Weights,
    paths: &[PathBuf],
    progress: &mut dyn FnMut(&'static str, u64, u64),
) -> Result<(BTreeMap<String, HostTensor>, CalibrateReport)> {
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
    let captioner = Captioner::load(&mut loader, &files.config)?;
    let (mut batches, mut sums, mut random) = (Vec::<Batch>::new(), Sensitivities::new(), Random::new(1));
    let mut unreadable = Vec::new();
    for (n, part) in paths.chunks(BATCH).enumerate() {
        progress("captions", (n * BATCH) as u64, paths.len() as u64);
        let open = |path: &PathBuf| Image::open(path).map_err(|error| unreadable.push(error)).ok();
        let images: Vec<Image> = part.iter().filter_map(open).collect();
        if images.is_empty() {
            continue;
        }
        let batch = batch(&captioner, &files.config, &images)?;
        sensitivity(&captioner, &batch, &mut random, &mut sums)?;
        batches.push(batch);
    }
    if batches.is_empty() {
        return Err(unreadable.swap_remove(0));
    }
    let layers = captioner.decoder.layers();
    let mut rounding = Rounding { weights, sensitivities: sums, changed: BTreeMap::new(), matrices: Vec::new() };
    for (n, layer) in layers.iter().enumerate() {
        progress("layers", n as u64, layers.len() as u64);
        rounding.layer(n, layer, &mut batches)?;
    }
    let unreadable = unreadable.iter().map(ToString::to_string).collect();
    let report = report::report(&captioner, &batches, unreadable, rounding.matrices)?;
    Ok((rounding.changed, report))
}
