//! Draws scenes of coloured shapes, with captions: a small data set of the shape of Flickr8k, to try training and evaluation with.
//!
//!     scenes FOLDER COUNT
//!
//! makes FOLDER/Images/, FOLDER/Flickr8k.token.txt, and the lists FOLDER/Flickr_8k.{train,dev,test}Images.txt: of every ten images
//! the ninth is for validation, the last a test. A model that knows such scenes speaks: `im2sp caption FOLDER/Images -o wavs/`.

use std::path::Path;
use std::process::ExitCode;

use im2sp::random::Random;
use im2sp::{Error, Result, files};

/// Side of an image in pixels.
const SIDE: usize = 160;
const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [208, 32, 36]),
    ("green", [36, 150, 56]),
    ("blue", [36, 72, 208]),
    ("yellow", [246, 216, 40]),
    ("purple", [128, 44, 160]),
    ("white", [246, 246, 246]),
];
/// Names and radii, in sides of an image.
const SIZES: [(&str, f32); 2] = [("small", 0.1), ("large", 0.16)];

/// Whether a point, in radii from the centre, is inside of a shape.
type Shape = fn(f32, f32) -> bool;

const SHAPES: [(&str, Shape); 4] = [
    ("circle", |x, y| x * x + y * y < 1.0),
    ("square", |x, y| x.abs().max(y.abs()) < 0.85),
    ("triangle", |x, y| y < 0.8 && 1.7 * x.abs() < y + 1.0),
    ("cross", |x, y| x.abs().min(y.abs()) < 0.3 && x.abs().max(y.abs()) < 1.0),
];

/// A shape in a scene.
struct Object {
    name: String,
    inside: Shape,
    colour: [u8; 3],
    radius: f32,
    centre: [f32; 2],
}

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
    let images = folder.join("Images");
    std::fs::create_dir_all(&images).map_err(|source| Error::Io { action: "create", path: images.clone(), source })?;
    let (mut captions, mut lists) = (String::new(), [String::new(), String::new(), String::new()]);
    for n in 0..count {
        let name = format!("scene_{n:05}.png");
        let random = &mut Random::new(n + 1);
        let grey = 60.0 + 60.0 * (random.unit() + 1.0);
        let ground = (0..SIDE * SIDE).flat_map(|_| [grey + 6.0 * random.unit(); 3]).collect();
        let scene = scene(random);
        files::write_atomically(&images.join(&name), &png(&painted(ground, &scene))?)?;
        for (k, sentence) in sentences(&scene).iter().enumerate() {
            captions += &format!("{name}#{k}\t{sentence} .\n");
        }
        lists[(n % 10).saturating_sub(7) as usize] += &format!("{name}\n");
    }
    files::write_atomically(&folder.join("Flickr8k.token.txt"), captions.as_bytes())?;
    ["train", "dev", "test"].iter().zip(lists).try_for_each(|(split, list)| {
        files::write_atomically(&folder.join(format!("Flickr_8k.{split}Images.txt")), list.as_bytes())
    })
}

/// One to three shapes, each in a column of its own.
fn scene(random: &mut Random) -> Vec<Object> {
    let count = 1 + random.below(3);
    let object = |n: usize| {
        let (size, radius) = SIZES[random.below(SIZES.len())];
        let column = SIDE as f32 / count as f32;
        let centre = [column * (n as f32 + 0.5), SIDE as f32 * (0.5 + 0.3 * random.unit())];
        let (shape, inside) = SHAPES[random.below(SHAPES.len())];
        let (name, colour) = COLOURS[random.below(COLOURS.len())];
        Object { name: format!("a {size} {name} {shape}"), inside, colour, radius: SIDE as f32 * radius, centre }
    };
    (0..count).map(object).collect()
}

/// The shapes on a ground of pixels.
fn painted(mut pixels: Vec<f32>, scene: &[Object]) -> Vec<u8> {
    for Object { inside, colour, radius, centre, .. } in scene {
        for (place, pixel) in pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let at = |position: usize, axis: usize| (position as f32 + 0.5 - centre[axis]) / radius;
            if inside(at(place % SIDE, 0), at(place / SIDE, 1)) {
                *pixel = colour.map(f32::from);
            }
        }
    }
    pixels.into_iter().map(|value| value.round() as u8).collect()
}

/// Captions of a scene: every shape that stands in one relation to all others, and these in either order.
fn sentences(scene: &[Object]) -> Vec<String> {
    let mut sentences = Vec::new();
    for (n, object) in scene.iter().enumerate() {
        let others: Vec<&Object> = scene.iter().enumerate().filter(|(k, _)| *k != n).map(|(_, other)| other).collect();
        let relations: Vec<&str> = others.iter().map(|other| relation(object, other)).collect();
        let Some(first) = relations.first().filter(|first| relations.iter().all(|other| other == *first)) else {
            continue;
        };
        let names: Vec<&str> = others.iter().map(|other| other.name.as_str()).collect();
        sentences.push(format!("{} {first} {}", object.name, names.join(" and ")));
        if names.len() > 1 {
            let names: Vec<&str> = names.into_iter().rev().collect();
            sentences.push(format!("{} {first} {}", object.name, names.join(" and ")));
        }
    }
    if sentences.is_empty() {
        sentences.push(scene.iter().map(|object| object.name.as_str()).collect::<Vec<_>>().join(" and "));
    }
    sentences
}

/// Where a shape stands, seen from another, along the axis on which they are farther apart.
fn relation(object: &Object, other: &Object) -> &'static str {
    let [x, y] = [object.centre[0] - other.centre[0], object.centre[1] - other.centre[1]];
    match x.abs() > y.abs() {
        true if x < 0.0 => "left of",
        true => "right of",
        false if y < 0.0 => "above",
        false => "below",
    }
}

fn png(rgb: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE as u32, SIDE as u32);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(rgb));
    written.map_err(|error| Error::image(Path::new("scene"), error.to_string()))?;
    Ok(bytes)
}
