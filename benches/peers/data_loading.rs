//! The im2sp side of `data_loading.py`: decodes, resizes and normalises every file of a folder on one thread, a round for
//! every line of its standard input, and prints one JSON object a round: images, and seconds that the thread ran.
//!
//!     data_loading FOLDER SIZE ROUNDS

use std::path::Path;
use std::process::ExitCode;

use im2sp::config::ImageConfig;
use im2sp::image::{Image, folder};
use im2sp::{Error, Result};
use serde_json::json;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok());
    let (Some(folder), Some(size), Some(rounds)) = (arguments.get(1), number(2), number(3)) else {
        eprintln!("usage: data_loading FOLDER SIZE ROUNDS");
        return ExitCode::from(2);
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let measured = match pool {
        Ok(pool) => pool.install(|| measure(Path::new(folder), size, rounds)),
        Err(error) => Err(Error::internal(error.to_string())),
    };
    if let Err(error) = measured {
        eprintln!("data_loading: error: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(path: &Path, size: usize, rounds: usize) -> Result<()> {
    let config = ImageConfig::clip(size);
    let read = |path: std::path::PathBuf| Ok((std::fs::read(&path).map_err(Error::io("read", &path))?, path));
    let files = folder::Listing::of(path)?.images.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut pixels = vec![0.0; 3 * size * size];
    for _ in 0..rounds {
        // A line for each round, so that the other side has its turn in between.
        std::io::stdin().read_line(&mut String::new()).map_err(Error::io("read", Path::new("<stdin>")))?;
        let (start, mut sum) = (seconds_run(), 0.0);
        for (bytes, path) in &files {
            Image::decode(bytes, path)?.preprocess_into(&config, &mut pixels);
            sum += pixels[0];
        }
        println!("{}", json!({ "images": files.len(), "seconds": seconds_run() - start, "sum": sum }));
    }
    Ok(())
}

/// Seconds that this thread has run, whatever else runs; those of the clock where the system does not count them.
fn seconds_run() -> f64 {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = counted.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64());
    nanoseconds.map_or_else(clock, |nanoseconds| nanoseconds * 1e-9)
}
