//! Draws scenes of coloured shapes: a small data set to try `im2sp train` with.
//!
//!     scenes FOLDER COUNT
//!
//! The units come from a model that knows such scenes: `im2sp caption FOLDER --no-audio --json > scenes.jsonl`.

use std::path::Path;
use std::process::ExitCode;

use im2sp::random::Random;
use im2sp::{Error, Result, files};

/// Side of an image in pixels.
const SIDE: usize = 160;
const COLOURS: [[u8; 3]; 6] =
    [[208, 32, 36], [36, 150, 56], [36, 72, 208], [246, 216, 40], [128, 44, 160], [246, 246, 246]];

/// Whether a point, in radii from the centre, is inside of a shape.
type Shape = fn(f32, f32) -> bool;

const SHAPES: [Shape; 4] = [
    |x, y| x * x + y * y < 1.0,
    |x, y| x.abs().max(y.abs()) < 0.85,
    |x, y| y < 0.8 && 1.7 * x.abs() < y + 1.0,
    |x, y| x.abs().min(y.abs()) < 0.3 && x.abs().max(y.abs()) < 1.0,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some(folder), Some(Ok(count))) = (arguments.get(1), arguments.get(2).map(|count| count.parse())) else {
        eprintln!("usage: scenes FOLDER COUNT");
        return ExitCode::from(2);
    };
    match draw_all(Path::new(folder), count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenes: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn draw_all(folder: &Path, count: u64) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Io {
        action: "create",
        path: folder.to_owned(),
        source,
    })?;
    for n in 0..count {
        let path = folder.join(format!("scene_{n:05}.png"));
        files::write_atomically(&path, &png(&scene(&mut Random::new(n + 1)))?)?;
    }
    Ok(())
}

/// Grey ground with noise; one to three shapes, each in a column of its own.
fn scene(random: &mut Random) -> Vec<u8> {
    let grey = 60.0 + 60.0 * (random.unit() + 1.0);
    let mut pixels: Vec<f32> = (0..SIDE * SIDE).flat_map(|_| [grey + 6.0 * random.unit(); 3]).collect();
    let shapes = 1 + random.below(3);
    for n in 0..shapes {
        let radius = SIDE as f32 * if random.below(2) == 0 { 0.1 } else { 0.16 };
        let column = SIDE as f32 / shapes as f32;
        let centre = [column * (n as f32 + 0.5), SIDE as f32 * (0.5 + 0.3 * random.unit())];
        let (inside, colour) = (SHAPES[random.below(SHAPES.len())], COLOURS[random.below(COLOURS.len())]);
        for (place, pixel) in pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let at = |position: usize, axis: usize| (position as f32 + 0.5 - centre[axis]) / radius;
            if inside(at(place % SIDE, 0), at(place / SIDE, 1)) {
                *pixel = colour.map(f32::from);
            }
        }
    }
    pixels.into_iter().map(|value| value.round() as u8).collect()
}

fn png(rgb: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE as u32, SIDE as u32);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(rgb));
    written.map_err(|error| Error::image(Path::new("scene"), error.to_string()))?;
    Ok(bytes)
}
