//! Images to image units, many at a time: the tokenizer alone, without a captioner.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use rayon::prelude::*;

use super::load::{self, Tokenize};
use super::{ImageSource, LoadOptions};
use crate::config::{ImageConfig, TokenizerConfig};
use crate::image::Image;
use crate::units::UnitGrid;
use crate::weights::convert::fingerprint;
use crate::weights::directory::TokenizerFiles;
use crate::{Error, Result};

/// Callback for every image, in their order, with its number and its units; `Break` ends the whole.
pub type OnUnits<'a> = &'a mut dyn FnMut(usize, Result<Vec<u16>>) -> ControlFlow<()>;

/// A loaded image tokenizer on a device.
pub struct ImageTokenizer {
    config: TokenizerConfig,
    grid: UnitGrid,
    device: String,
    /// One for each stream of the device.
    lanes: Vec<Tokenize>,
}

impl ImageTokenizer {
    /// Loads the tokenizer of a directory made by `im2sp convert`: one of its own, or that of a captioner.
    ///
    /// # Errors
    /// If there is none, a file is malformed, or the device cannot be used.
    pub fn load(directory: impl AsRef<Path>, options: LoadOptions) -> Result<ImageTokenizer> {
        let files = TokenizerFiles::open_with(directory.as_ref(), !options.no_mmap)?;
        let config = files.config.clone();
        let codes = files.store.iter().find(|(name, _)| *name == "codebook");
        let codebook = codes.map_or([0; 16], |(_, codes)| fingerprint(&codes.to_f32()));
        let grid = UnitGrid { rows: config.grid(), columns: config.grid(), codes: config.codes, codebook };
        let (device, lanes) = load::tokenizer(files, options)?;
        Ok(ImageTokenizer { config, grid, device, lanes })
    }

    /// The dimensions.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Dimensions of the units of an image, as a file of units has them.
    pub fn grid(&self) -> &UnitGrid {
        &self.grid
    }

    /// The device in use, in words.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The units of an image, row by row.
    ///
    /// # Errors
    /// If the weights are damaged or the device fails.
    pub fn units(&self, image: &Image) -> Result<Vec<u16>> {
        let units = (self.lanes[0])(&image.preprocess(&self.config.image), 1)?;
        units.into_iter().next().ok_or_else(|| Error::internal("an image without units"))
    }

    /// The units of any number of images, `together` of them at a time: the next are read meanwhile, and on a GPU two batches are
    /// under way, so that one is copied while the other is computed. An image that cannot be read costs no other.
    ///
    /// # Errors
    /// If the weights are damaged or the device fails: that ends all.
    pub fn units_of_many(&self, images: ImageSource<'_>, together: usize, on_units: OnUnits<'_>) -> Result<()> {
        let reader = Reader { images, together: together.max(1), config: &self.config.image };
        std::thread::scope(|scope| {
            let start = |lane| start_lane(scope, lane);
            let (queues, lanes): (Vec<_>, Vec<_>) = self.lanes.iter().map_while(start).unzip();
            let (lanes, mut threads): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
            let (spare, spares) = channel();
            let reading = &reader;
            let read = move || {
                for (number, queue) in queues.iter().cycle().enumerate() {
                    let batch = reading.batch(number, spares.try_recv().unwrap_or_default());
                    if batch.read.is_empty() || queue.send(batch).is_err() {
                        return;
                    }
                }
            };
            match Builder::new().name("im2sp-read".into()).spawn_scoped(scope, read) {
                Ok(thread) if !lanes.is_empty() => threads.push(thread),
                // A limit of threads: this one does everything. Those that did start end with the channels of the others.
                _ => return in_turn(&self.lanes[0], &reader, on_units),
            }
            let result = deliver_all(&lanes, &spare, &reader, on_units);
            // Then all threads end.
            drop(lanes);
            // A panic is a mistake in `images`, whose it is.
            threads.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            result
        })
    }
}

/// Hands the units of all batches to `on_units`, in their order, and the memory of batches back to `spare`, for later ones.
fn deliver_all(
    lanes: &[Receiver<Tokenized>],
    spare: &Sender<Vec<f32>>,
    reader: &Reader<'_>,
    on_units: OnUnits<'_>,
) -> Result<()> {
    for (number, lane) in lanes.iter().cycle().enumerate() {
        let Ok((batch, units)) = lane.recv() else { break };
        if reader.deliver(number, batch.read, units?, on_units).is_break() {
            break;
        }
        // The thread that reads may have come to the end.
        let _ = spare.send(batch.pixels);
    }
    Ok(())
}

/// Images that go through the tokenizer together.
struct Batch {
    /// Whether each was read.
    read: Vec<Result<()>>,
    /// Values of those that were read, one image after the other.
    pixels: Vec<f32>,
}

/// A batch with the units of the images that were read.
type Tokenized = (Batch, Result<Vec<Vec<u16>>>);
/// Receiver of a lane's batches, and its thread.
type Lane<'scope> = (Receiver<Tokenized>, ScopedJoinHandle<'scope, ()>);

/// Starts a thread that tokenizes batches until no more come, or nobody wants their units; none if the system gives none.
fn start_lane<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    tokenize: &'a Tokenize,
) -> Option<(SyncSender<Batch>, Lane<'scope>)> {
    // One batch is read ahead for all lanes together.
    let ((queue, batches), (results, made)) = (sync_channel(0), sync_channel(1));
    let work = move || {
        for batch in batches {
            let units = units(tokenize, &batch);
            if results.send((batch, units)).is_err() {
                return;
            }
        }
    };
    Builder::new().name("im2sp-units".into()).spawn_scoped(scope, work).ok().map(|thread| (queue, (made, thread)))
}

/// The units of a batch.
fn units(tokenize: &Tokenize, batch: &Batch) -> Result<Vec<Vec<u16>>> {
    let count = batch.read.iter().filter(|image| image.is_ok()).count();
    let len = batch.pixels.len() / batch.read.len().max(1);
    if count > 0 { tokenize(&batch.pixels[..count * len], count) } else { Ok(Vec::new()) }
}

/// All batches on this thread.
fn in_turn(tokenize: &Tokenize, reader: &Reader<'_>, on_units: OnUnits<'_>) -> Result<()> {
    for number in 0.. {
        let batch = reader.batch(number, Vec::new());
        let units = units(tokenize, &batch)?;
        if batch.read.is_empty() || reader.deliver(number, batch.read, units, on_units).is_break() {
            break;
        }
    }
    Ok(())
}

/// Reads images on all threads, and gives units back to them.
struct Reader<'a> {
    images: ImageSource<'a>,
    together: usize,
    config: &'a ImageConfig,
}

impl Reader<'_> {
    /// The batch of a number: an empty one after the last. `pixels` is memory that may be used again.
    fn batch(&self, number: usize, mut pixels: Vec<f32>) -> Batch {
        let (first, len) = (number * self.together, 3 * self.config.size * self.config.size);
        if pixels.len() < self.together * len {
            // Fresh zeros cost nothing where no image comes.
            pixels = vec![0.0; self.together * len];
        }
        let own = |(place, out): (usize, &mut [f32])| {
            (self.images)(first + place).map(|image| image.map(|image| image.preprocess_into(self.config, out)))
        };
        // In the order of the images; those beyond the last give `None`.
        let all: Vec<_> = pixels.par_chunks_mut(len.max(1)).enumerate().map(own).collect();
        let read: Vec<Result<()>> = all.into_iter().map_while(|image| image).collect();
        // Those that were read move together.
        for (count, place) in (0..read.len()).filter(|&place| read[place].is_ok()).enumerate() {
            if place > count {
                pixels.copy_within(place * len..(place + 1) * len, count * len);
            }
        }
        pixels.truncate(read.len() * len);
        Batch { read, pixels }
    }

    /// Calls `on_units` for the images of a batch.
    fn deliver(
        &self,
        number: usize,
        read: Vec<Result<()>>,
        units: Vec<Vec<u16>>,
        on_units: OnUnits<'_>,
    ) -> ControlFlow<()> {
        let mut units = units.into_iter();
        for (number, image) in (number * self.together..).zip(read) {
            let missing = || Error::internal("an image without units");
            on_units(number, image.and_then(|()| units.next().ok_or_else(missing)))?;
        }
        ControlFlow::Continue(())
    }
}
