//! Image preprocessing as Hugging Face processors do it: resize, centre square, scale, normalise. The resize is Pillow's on
//! 8-bit data, bit for bit: a horizontal and a vertical pass, each in fixed point and rounded back to bytes. Only
//! what the square needs is computed, so an image of one row costs no more memory than any other.

use std::borrow::Cow;
use std::f64::consts::PI;
use std::ops::Range;

use rayon::prelude::*;

use super::{Image, avx2};
use crate::config::{Filter, ImageConfig, Resize};

/// Fraction bits of a weight.
pub(super) const PRECISION: u32 = 22;
/// A weight of one.
const ONE: i32 = 1 << PRECISION;
/// One half, added before the shift.
const HALF: i32 = 1 << (PRECISION - 1);
/// Multiplications that are worth a task of their own.
const WORK_PER_TASK: usize = 1 << 18;
/// Positions of the nearest input that are summed up; as one axis of an image they would be more than memories hold.
const MAX_RUNNING_SUM: usize = 1 << 24;

impl Image {
    /// The pixels (3, size, size) that the vision transformer takes.
    pub fn preprocess(&self, config: &ImageConfig) -> Vec<f32> {
        let mut pixels = vec![0.0; 3 * config.size * config.size];
        self.preprocess_into(config, &mut pixels);
        pixels
    }

    /// As [`Image::preprocess`], into `out`, which has room for as many pixels.
    pub fn preprocess_into(&self, config: &ImageConfig, out: &mut [f32]) {
        if config.size > 0 {
            normalise(&self.centre_square(config), config, out);
        }
    }

    /// Resizes and keeps the centre: (size, size, 3).
    fn centre_square(&self, config: &ImageConfig) -> Rows<'_> {
        let size = config.size;
        let side = config.resized().max(size);
        let short = self.width.min(self.height);
        let (width, height) = match config.resize {
            Resize::ShortSide => (side * self.width / short, side * self.height / short),
            Resize::Square => (side, side),
        };
        let columns = Taps::new(self.width, width, size, config.filter);
        let rows = Taps::new(self.height, height, size, config.filter);
        let image = Rows { bytes: Cow::Borrowed(&self.rgb), start: 0, stride: self.width * 3 };
        // The order is Pillow's (since release 13): each pass rounds, so it shows in the last bit.
        let fewer = |from: usize, to: usize| from as i64 - to as i64;
        let (fewer_rows, fewer_columns) = (fewer(self.height, height), fewer(self.width, width));
        if fewer_rows > 0 && fewer_rows > 2 * fewer_columns {
            let used = columns.used();
            let short = vertical_pass(image.from(0, used.start), &rows, 0, used.len() * 3);
            horizontal_pass(short, &columns, used.start, size)
        } else {
            let used = rows.used();
            let narrow = horizontal_pass(image.from(used.start, 0), &columns, 0, used.len());
            vertical_pass(narrow, &rows, used.start, size * 3)
        }
    }
}

/// Rows of RGB that begin every `stride` bytes from byte `start` on.
struct Rows<'a> {
    bytes: Cow<'a, [u8]>,
    start: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// The same without the first rows and columns.
    fn from(self, row: usize, column: usize) -> Rows<'a> {
        Rows { start: self.start + row * self.stride + column * 3, ..self }
    }

    /// Row `y` and those after it.
    fn at(&self, y: usize) -> &[u8] {
        &self.bytes[self.start + y * self.stride..]
    }
}

/// Takes `height` rows, from pixel `first` on, through `columns`: (rows, columns, 3).
fn horizontal_pass<'a>(source: Rows<'a>, columns: &Taps, first: usize, height: usize) -> Rows<'a> {
    if let Some(copied) = columns.copied() {
        return source.from(0, copied - first);
    }
    let (width, grouped) = (columns.windows.len() * 3, columns.grouped(first));
    let mut narrow = vec![0; height * width];
    let min_rows = WORK_PER_TASK.div_ceil(3 * columns.weights.len() + width);
    narrow.par_chunks_mut(width).enumerate().with_min_len(min_rows).for_each(|(y, out)| {
        horizontal(source.at(y), columns, first, &grouped, out.as_chunks_mut::<3>().0);
    });
    Rows { bytes: narrow.into(), start: 0, stride: width }
}

/// Takes the first `width` bytes of rows, which begin with row `first`, through `rows`: (rows, width).
fn vertical_pass<'a>(source: Rows<'a>, rows: &Taps, first: usize, width: usize) -> Rows<'a> {
    if let Some(copied) = rows.copied() {
        return source.from(copied - first, 0);
    }
    let mut short = vec![0; rows.windows.len() * width];
    let min_rows = WORK_PER_TASK.div_ceil(width * rows.weights.len().div_ceil(rows.windows.len()));
    let outputs = short.par_chunks_mut(width).zip(&rows.windows).with_min_len(min_rows);
    outputs.for_each_init(Vec::new, |sums, (out, window)| {
        vertical(source.at(window.start - first), source.stride, rows.of(window), sums, out);
    });
    Rows { bytes: short.into(), start: 0, stride: width }
}

/// The inputs that one output looks at.
struct Window {
    /// First input.
    start: usize,
    /// Number of inputs.
    count: usize,
    /// Where its weights start.
    weights: usize,
}

/// The windows and weights of the outputs in the middle of one resized axis.
struct Taps {
    windows: Vec<Window>,
    weights: Vec<i32>,
}

impl Taps {
    /// The middle `crop` outputs of an axis that goes from `input` to `output` pixels.
    fn new(input: usize, output: usize, crop: usize, filter: Filter) -> Taps {
        let first = (output - crop) / 2;
        let (support, function): (f64, fn(f64) -> f64) = match filter {
            // Every filter is zero at whole distances from its centre.
            _ if input == output => return Taps::nearest(input, output, first..first + crop),
            Filter::Nearest => return Taps::nearest(input, output, first..first + crop),
            Filter::Box => (0.5, boxed),
            Filter::Bilinear => (1.0, triangle),
            Filter::Hamming => (1.0, hamming),
            Filter::Bicubic => (2.0, cubic),
            Filter::Lanczos => (3.0, lanczos),
        };
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = support * filter_scale;
        let shrink = 1.0 / filter_scale;
        let mut taps = Taps { windows: Vec::with_capacity(crop), weights: Vec::new() };
        let mut exact = Vec::new();
        for i in first..first + crop {
            let centre = (i as f64 + 0.5) * scale;
            // The casts truncate, and take what is negative to 0.
            let start = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((start..end).map(|x| function((x as f64 - centre + 0.5) * shrink)));
            let sum: f64 = exact.iter().sum();
            taps.windows.push(Window { start, count: end - start, weights: taps.weights.len() });
            taps.weights.extend(exact.iter().map(|weight| to_fixed(if sum == 0.0 { *weight } else { weight / sum })));
        }
        taps
    }

    /// One input with all the weight for each of `outputs`. The position is a running sum, as in Pillow, over as many
    /// outputs as Pillow could hold; from there on it is a product.
    fn nearest(input: usize, output: usize, outputs: Range<usize>) -> Taps {
        let step = input as f64 / output as f64;
        let mut taps = Taps { windows: Vec::with_capacity(outputs.len()), weights: vec![ONE] };
        let mut position = step * 0.5;
        if outputs.start <= MAX_RUNNING_SUM {
            (0..outputs.start).for_each(|_| position += step);
        } else {
            position += step * outputs.start as f64;
        }
        for _ in outputs {
            taps.windows.push(Window { start: (position as usize).min(input - 1), count: 1, weights: 0 });
            position += step;
        }
        taps
    }

    /// The weights of `window`.
    fn of(&self, window: &Window) -> &[i32] {
        &self.weights[window.weights..window.weights + window.count]
    }

    /// The inputs that any window looks at. Windows start and end in rising order.
    fn used(&self) -> Range<usize> {
        let start = self.windows.first().map_or(0, |window| window.start);
        start..self.windows.last().map_or(start, |window| window.start + window.count)
    }

    /// The first input, where every output is one input as it is: this one and those that follow.
    fn copied(&self) -> Option<usize> {
        let input = |window: &Window| {
            let mut kept = self.of(window).iter().enumerate().filter(|(_, weight)| **weight != 0);
            match (kept.next(), kept.next()) {
                (Some((at, &ONE)), None) => Some(window.start + at),
                _ => None,
            }
        };
        let first = input(self.windows.first()?)?;
        self.windows.iter().zip(first..).all(|(window, at)| input(window) == Some(at)).then_some(first)
    }

    /// The same windows over the bytes of an RGB row from pixel `first` on.
    fn grouped(&self, first: usize) -> avx2::Windows {
        let widest = self.windows.iter().map(|window| window.count).max().unwrap_or(1);
        let (groups, count) = (widest.div_ceil(avx2::GROUP), self.windows.len().next_multiple_of(avx2::PIXELS));
        let mut starts: Vec<usize> = self.windows.iter().map(|window| (window.start - first) * 3).collect();
        starts.resize(count, 0);
        let mut weights = vec![avx2::split(&[]); count * groups];
        for (groups, window) in weights.chunks_exact_mut(groups).zip(&self.windows) {
            for (group, weights) in groups.iter_mut().zip(self.of(window).chunks(avx2::GROUP)) {
                *group = avx2::split(weights);
            }
        }
        avx2::Windows { groups, starts, weights }
    }
}

/// The box filter, open below.
fn boxed(t: f64) -> f64 {
    if t > -0.5 && t <= 0.5 { 1.0 } else { 0.0 }
}

/// Linear interpolation.
fn triangle(t: f64) -> f64 {
    (1.0 - t.abs()).max(0.0)
}

/// A sinc of one lobe under a Hamming window.
fn hamming(t: f64) -> f64 {
    let t = t.abs();
    if t < 1.0 { sinc(t) * (0.54 + 0.46 * (t * PI).cos()) } else { 0.0 }
}

/// A sinc of three lobes under the first lobe of a wider one.
fn lanczos(t: f64) -> f64 {
    if (-3.0..3.0).contains(&t) { sinc(t) * sinc(t / 3.0) } else { 0.0 }
}

fn sinc(t: f64) -> f64 {
    if t == 0.0 { 1.0 } else { (t * PI).sin() / (t * PI) }
}

/// Cubic convolution with a = -0.5.
fn cubic(t: f64) -> f64 {
    const A: f64 = -0.5;
    let t = t.abs();
    if t < 1.0 {
        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        (((t - 5.0) * t + 8.0) * t - 4.0) * A
    } else {
        0.0
    }
}

/// To fixed point, half away from zero.
fn to_fixed(weight: f64) -> i32 {
    (weight * f64::from(1u32 << PRECISION) + 0.5f64.copysign(weight)) as i32
}

/// A sum of weighted bytes back to a byte.
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// A row of RGB from pixel `first` on, which may go on in `source`, through the windows of `taps`; `grouped` holds them too.
fn horizontal(source: &[u8], taps: &Taps, first: usize, grouped: &avx2::Windows, out: &mut [[u8; 3]]) {
    // Bytes that follow have no weight, but are read.
    let used = (taps.used().end - first) * 3;
    let longer;
    let row = if source.len() >= used + grouped.slack() {
        source
    } else {
        longer = [&source[..used], &vec![0; grouped.slack()]].concat();
        &longer
    };
    if !avx2::horizontal(row, grouped, HALF, out) {
        horizontal_plain(row, taps, first, out);
    }
}

/// The sums stay inside an i32: the weights of a window add up to 1, and their magnitudes to less than 1.5.
fn horizontal_plain(row: &[u8], taps: &Taps, first: usize, out: &mut [[u8; 3]]) {
    let row = row.as_chunks::<3>().0;
    for (out, window) in out.iter_mut().zip(&taps.windows) {
        let mut sums = [HALF; 3];
        for (pixel, weight) in row[window.start - first..].iter().zip(taps.of(window)) {
            for c in 0..3 {
                sums[c] += i32::from(pixel[c]) * weight;
            }
        }
        *out = sums.map(to_byte);
    }
}

/// One row of the result: a weight for each row that begins every `stride` bytes of `rows`; `sums` is room to work in.
fn vertical(rows: &[u8], stride: usize, weights: &[i32], sums: &mut Vec<i32>, out: &mut [u8]) {
    if !avx2::vertical(rows, stride, weights, HALF, out) {
        vertical_plain(rows, stride, weights, sums, out);
    }
}

fn vertical_plain(rows: &[u8], stride: usize, weights: &[i32], sums: &mut Vec<i32>, out: &mut [u8]) {
    sums.clear();
    sums.resize(out.len(), HALF);
    for (row, weight) in rows.chunks(stride).zip(weights) {
        for (sum, byte) in sums.iter_mut().zip(row) {
            *sum += i32::from(*byte) * weight;
        }
    }
    for (byte, sum) in out.iter_mut().zip(sums) {
        *byte = to_byte(*sum);
    }
}

/// (size, size, 3) bytes to (3, size, size): times the scale in double, then minus mean and over std in single precision.
fn normalise(square: &Rows, config: &ImageConfig, out: &mut [f32]) {
    let map = |c: usize| avx2::Affine { scale: config.scale, mean: config.mean[c], std: config.std[c] };
    let maps = [map(0), map(1), map(2)];
    let values = maps.map(values);
    let is_exact = is_exact(&maps, &values);
    let size = config.size;
    let (red, rest) = out.split_at_mut(size * size);
    let (green, blue) = rest.split_at_mut(size * size);
    let planes = red.chunks_mut(size).zip(green.chunks_mut(size)).zip(blue.chunks_mut(size));
    for (y, ((red, green), blue)) in planes.enumerate() {
        let row = &square.at(y).as_chunks::<3>().0[..size];
        if !is_exact || !avx2::normalise(row, &maps, [&mut *red, &mut *green, &mut *blue]) {
            for (((pixel, red), green), blue) in row.iter().zip(red).zip(green).zip(blue) {
                let [r, g, b] = pixel.map(usize::from);
                (*red, *green, *blue) = (values[0][r], values[1][g], values[2][b]);
            }
        }
    }
}

/// The values of all bytes.
fn values(map: avx2::Affine) -> [f32; 256] {
    std::array::from_fn(|byte| ((byte as f64 * map.scale) as f32 - map.mean) / map.std)
}

/// Whether [`avx2::normalise`] gives `values` to the last bit, for all bytes.
fn is_exact(maps: &[avx2::Affine; 3], values: &[[f32; 256]; 3]) -> bool {
    let bytes: [[u8; 3]; 256] = std::array::from_fn(|byte| [byte as u8; 3]);
    let mut made = [[0.0; 256]; 3];
    let [red, green, blue] = &mut made;
    avx2::normalise(&bytes, maps, [red, green, blue])
        && made.as_flattened().iter().zip(values.as_flattened()).all(|(made, value)| made.to_bits() == value.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 6] =
        [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

    #[test]
    fn nearest_is_as_fast_on_the_longest_axis() {
        let (input, output, crop) = (1 << 27, 224 << 27, 224);
        let start = std::time::Instant::now();
        let taps = Taps::new(input, output, crop, Filter::Nearest);
        assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
        let expected: Vec<usize> = (0..crop).map(|i| ((output - crop) / 2 + i) / 224).collect();
        assert_eq!(taps.windows.iter().map(|window| window.start).collect::<Vec<_>>(), expected);
        // The sum where Pillow has one, with its rounding.
        let (input, output, crop) = (1_000_003, 3_000_001, 1_000);
        let taps = Taps::new(input, output, crop, Filter::Nearest);
        let (step, first) = (input as f64 / output as f64, (output - crop) / 2);
        let sums: Vec<f64> =
            std::iter::successors(Some(step * 0.5), |sum| Some(sum + step)).take(first + crop).collect();
        let expected: Vec<usize> = sums[first..].iter().map(|&sum| sum as usize).collect();
        assert_eq!(taps.windows.iter().map(|window| window.start).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_form_of_a_pass_gives_the_same_bytes() {
        let sizes = [(1, 5, 5), (7, 30, 4), (31, 31, 31), (200, 16, 16), (203, 150, 90), (1000, 9, 3), (40, 37, 37)];
        for ((input, output, crop), filter) in sizes.into_iter().flat_map(|size| FILTERS.map(|filter| (size, filter))) {
            let bytes: Vec<u8> = (0..input * 3 * 40).map(|i| (i * i * 31 % 256) as u8).collect();
            let taps = Taps::new(input, output, crop, filter);
            let (mut fast, mut plain) = (vec![[0; 3]; crop], vec![[0; 3]; crop]);
            horizontal(&bytes[..input * 3], &taps, 0, &taps.grouped(0), &mut fast);
            horizontal_plain(&bytes, &taps, 0, &mut plain);
            assert_eq!(fast, plain, "{input} to {output}, {filter:?}");
            for (window, width) in
                taps.windows.iter().flat_map(|window| [1, 31, 32, 75, 120].map(|width| (window, width)))
            {
                let rows = &bytes[window.start * 120..];
                let (mut fast, mut plain) = (vec![0; width], vec![0; width]);
                vertical(rows, 120, taps.of(window), &mut Vec::new(), &mut fast);
                vertical_plain(rows, 120, taps.of(window), &mut Vec::new(), &mut plain);
                assert_eq!(fast, plain, "{input} to {output}, {filter:?}, {width} columns");
            }
        }
    }

    #[test]
    fn every_form_of_the_normalisation_gives_the_same_values() {
        let square = 16 * 16;
        let bytes: Vec<u8> = (0..3 * square).map(|i| (i * i * 7 / 5 % 256) as u8).collect();
        let usual = ImageConfig::clip(16);
        // Steps that no reciprocal divides by in the same way, and ones that no correction mends.
        let others =
            [(1.0 / 127.5, 1.0, 1.0), (1.0 / 255.0, 0.5, 0.5), (1.0, 0.0, 1e-42), (3e38, 0.1, 0.3), (1.0, 1.0, 0.0)];
        let others =
            others.map(|(scale, mean, std)| ImageConfig { scale, mean: [mean; 3], std: [std; 3], ..usual.clone() });
        for config in others.into_iter().chain([usual]) {
            let mut out = vec![0.0; 3 * square];
            normalise(&Rows { bytes: Cow::Borrowed(&bytes), start: 0, stride: 48 }, &config, &mut out);
            for (c, plane) in out.chunks(square).enumerate() {
                for (value, pixel) in plane.iter().zip(bytes.chunks(3)) {
                    let scaled = (f64::from(pixel[c]) * config.scale) as f32;
                    let expected = (scaled - config.mean[c]) / config.std[c];
                    assert_eq!(value.to_bits(), expected.to_bits(), "{} of {config:?}", pixel[c]);
                }
            }
        }
    }
}
