//! `im2sp convert --calibrate`: eight-bit weights that know what they are multiplied with. Every matrix of the decoder is
//! rounded for the inputs it has while a set of pictures is captioned. Two runs over the captions of the unrounded model
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
use crate::model::captioner::Captioner;
use crate::model::loader::Loader;
use crate::random::Random;
use crate::tensor::{DType, HostTensor};
use crate::weights::directory::{CAPTIONER, ModelFiles, StagedDirectory, VOCODER, write_tensors};
use crate::weights::{ConvertOptions, ConvertReport, convert};
use crate::{Error, Result};

pub use self::report::{CalibrateReport, MatrixReport};

/// Pictures that go through the models together.
const BATCH: usize = 8;
/// Endings of picture files; others of a folder are left alone.
const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];

/// As [`convert()`] to eight bits, rounded for the pictures in `folder`. `progress` hears what is being done, and how much
/// of it of how much.
///
/// # Errors
/// As [`convert()`], and if a picture cannot be read or there is none.
pub fn convert_calibrated(
    options: &ConvertOptions,
    folder: &Path,
    progress: &mut dyn FnMut(&'static str, u64, u64),
) -> Result<(ConvertReport, CalibrateReport)> {
    if options.quantize != Some(DType::F8E4M3) {
        return Err(Error::Option { option: "calibrate", problem: "goes with --quantize fp8".into() });
    }
    let pictures = pictures(folder)?;
    let staged = StagedDirectory::create(&options.output, options.force)?;
    let wide = staged.path().join("wide");
    let unrounded = ConvertOptions { quantize: None, output: wide.clone(), force: false, ..options.clone() };
    let mut report = convert(&unrounded, &mut |done, total| progress("convert", done >> 20, total >> 20))?;
    let mut files = ModelFiles::open(&wide)?;
    let mut tensors: BTreeMap<String, HostTensor> =
        files.captioner.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let (rounded, calibrated) = calibrate(&mut files, Weights(tensors.clone()), &pictures, progress)?;
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

/// The picture files of a folder, by name.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        if ENDINGS.contains(&ending.as_str()) {
            pictures.push(path);
        }
    }
    if pictures.is_empty() {
        let problem = format!("{} holds no picture: expected files ending in {}", folder.display(), ENDINGS.join(", "));
        return Err(Error::Option { option: "calibrate", problem });
    }
    pictures.sort();
    Ok(pictures)
}

/// Rounds the decoder of `files`, whose captioner is `weights`: the tensors that change.
fn calibrate(
    files: &mut ModelFiles,
    weights: Weights,
    pictures: &[PathBuf],
    progress: &mut dyn FnMut(&'static str, u64, u64),
) -> Result<(BTreeMap<String, HostTensor>, CalibrateReport)> {
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype: None };
    let captioner = Captioner::load(&mut loader, &files.config)?;
    let (mut batches, mut sums, mut random) = (Vec::<Batch>::new(), Sensitivities::new(), Random::new(1));
    for (n, paths) in pictures.chunks(BATCH).enumerate() {
        progress("captions", (n * BATCH) as u64, pictures.len() as u64);
        let batch = batch(&captioner, &files.config, paths)?;
        sensitivity(&captioner, &weights, &batch, &mut random, &mut sums)?;
        batches.push(batch);
    }
    let layers = captioner.decoder.layers();
    let mut rounding = Rounding { weights, sensitivities: sums, changed: BTreeMap::new(), matrices: Vec::new() };
    for (n, layer) in layers.iter().enumerate() {
        progress("layers", n as u64, layers.len() as u64);
        rounding.layer(n, layer, &mut batches)?;
    }
    let report = report::report(&captioner, &batches, pictures.len(), rounding.matrices)?;
    Ok((rounding.changed, report))
}
