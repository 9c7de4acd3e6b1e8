//! Image preprocessing as Hugging Face processors do it: resize, centre square, scale, normalise. The resize is Pillow's on
//! 8-bit data, bit for bit: a horizontal and a vertical pass, each in fixed point and rounded back to bytes. Only
//! what the square needs is computed, so an image of one row costs no more memory than any other.

use std::f64::consts::PI;
use std::ops::Range;

use rayon::prelude::*;

use super::Image;
use crate::config::{Filter, ImageConfig, Resize};

/// Fraction bits of a weight.
const PRECISION: u32 = 22;
/// One half, added before the shift.
const HALF: i32 = 1 << (PRECISION - 1);
/// Weights per horizontal window are padded with zeros to a multiple of this, for loops without a remainder.
const LANES: usize = 8;
/// Multiplications that are worth a task of their own.
const WORK_PER_TASK: usize = 1 << 18;
/// Positions of the nearest input that are summed up; as one axis of an image they would be more than memories hold.
const MAX_RUNNING_SUM: usize = 1 << 24;

impl Image {
    /// The pixels (3, size, size) that the vision transformer takes.
    pub fn preprocess(&self, config: &ImageConfig) -> Vec<f32> {
        normalise(&self.centre_square(config), config)
    }

    /// Resizes and keeps the centre: (size, size, 3).
    fn centre_square(&self, config: &ImageConfig) -> Vec<u8> {
        let size = config.size;
        if size == 0 {
            return Vec::new();
        }
        let side = config.resized().max(size);
        let short = self.width.min(self.height);
        let (width, height) = match config.resize {
            Resize::ShortSide => (side * self.width / short, side * self.height / short),
            Resize::Square => (side, side),
        };
        let columns = Taps::new(self.width, width, size, config.filter);
        let rows = Taps::new(self.height, height, size, config.filter);
        let stride = self.width * 3;
        // The order is Pillow's (since release 13): each pass rounds, so it shows in the last bit.
        let fewer = |from: usize, to: usize| from as i64 - to as i64;
        let (fewer_rows, fewer_columns) = (fewer(self.height, height), fewer(self.width, width));
        if fewer_rows > 0 && fewer_rows > 2 * fewer_columns {
            let used = columns.used();
            let short = vertical_pass(&self.rgb[used.start * 3..], stride, &rows, 0, used.len() * 3);
            horizontal_pass(&short, used.len() * 3, &columns.padded_for_rgb(used))
        } else {
            let used = rows.used();
            let source = &self.rgb[used.start * stride..used.end * stride];
            let narrow = horizontal_pass(source, stride, &columns.padded_for_rgb(0..self.width));
            vertical_pass(&narrow, size * 3, &rows, used.start, size * 3)
        }
    }
}

/// Takes each row of `source`, `stride` bytes long, through `columns`, which are padded: (rows, columns, 3).
fn horizontal_pass(source: &[u8], stride: usize, columns: &Taps) -> Vec<u8> {
    let width = columns.windows.len() * 3;
    let mut narrow = vec![0; source.len() / stride * width];
    let min_rows = WORK_PER_TASK.div_ceil(columns.weights.len() + width);
    (narrow.par_chunks_mut(width), source.par_chunks(stride))
        .into_par_iter()
        .with_min_len(min_rows)
        .for_each(|(out, row)| horizontal(row, columns, out));
    narrow
}

/// Takes the first `width` bytes of rows that begin every `stride` bytes of `source`, with row `first`, through `rows`:
/// (rows, width).
fn vertical_pass(source: &[u8], stride: usize, rows: &Taps, first: usize, width: usize) -> Vec<u8> {
    let mut short = vec![0; rows.windows.len() * width];
    let min_rows = WORK_PER_TASK.div_ceil(width * rows.weights.len().div_ceil(rows.windows.len()));
    short.par_chunks_mut(width).zip(&rows.windows).with_min_len(min_rows).for_each_init(
        || vec![0; width],
        |sums, (out, window)| vertical(&source[(window.start - first) * stride..], stride, rows.of(window), sums, out),
    );
    short
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
        let mut taps = Taps { windows: Vec::with_capacity(outputs.len()), weights: vec![1 << PRECISION] };
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

    /// The same windows over rows of RGB that hold the pixels `columns`: every weight three times, counts and starts in
    /// bytes, and each window widened with zeros to a multiple of [`LANES`] pixels where the row is long enough.
    fn padded_for_rgb(&self, columns: Range<usize>) -> Taps {
        let input = columns.len();
        let mut padded = Taps { windows: Vec::with_capacity(self.windows.len()), weights: Vec::new() };
        for window in &self.windows {
            let wide = window.count.next_multiple_of(LANES);
            let first = window.start - columns.start;
            let (start, count) = if wide <= input { (first.min(input - wide), wide) } else { (first, window.count) };
            padded.windows.push(Window { start: start * 3, count: count * 3, weights: padded.weights.len() });
            let before = first - start;
            padded.weights.extend((0..count).flat_map(|x| {
                let weight = x.checked_sub(before).and_then(|x| self.of(window).get(x)).copied().unwrap_or(0);
                [weight; 3]
            }));
        }
        padded
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

/// One row of RGB through the windows of `taps`, with AVX2 where the processor has it.
fn horizontal(row: &[u8], taps: &Taps, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked for AVX2, the only thing this function asks of its caller.
        return unsafe { horizontal_avx2(row, taps, out) };
    }
    horizontal_plain(row, taps, out);
}

/// The sums stay inside an i32: the weights of a window add up to 1, and their magnitudes to less than 1.5.
fn horizontal_plain(row: &[u8], taps: &Taps, out: &mut [u8]) {
    for (pixel, window) in out.as_chunks_mut::<3>().0.iter_mut().zip(&taps.windows) {
        let mut sums = [HALF; 3];
        let bytes = &row[window.start..window.start + window.count];
        for (bytes, weights) in bytes.as_chunks::<3>().0.iter().zip(taps.of(window).as_chunks::<3>().0) {
            for c in 0..3 {
                sums[c] += i32::from(bytes[c]) * weights[c];
            }
        }
        *pixel = sums.map(to_byte);
    }
}

/// As [`horizontal_plain`], [`LANES`] pixels at a time. Written out because compilers vectorise the plain form across
/// the wrong axis, four times slower.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn horizontal_avx2(row: &[u8], taps: &Taps, out: &mut [u8]) {
    use std::arch::x86_64::*;
    for (pixel, window) in out.as_chunks_mut::<3>().0.iter_mut().zip(&taps.windows) {
        let (bytes, last_bytes) = row[window.start..window.start + window.count].as_chunks::<{ 3 * LANES }>();
        let (weights, last_weights) = taps.of(window).as_chunks::<{ 3 * LANES }>();
        let mut sums = [_mm256_setzero_si256(); 3];
        for (bytes, weights) in bytes.iter().zip(weights) {
            let parts = bytes.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0);
            for (sum, (bytes, weights)) in sums.iter_mut().zip(parts) {
                let bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
                let weights: __m256i = bytemuck::cast(*weights);
                *sum = _mm256_add_epi32(*sum, _mm256_mullo_epi32(bytes, weights));
            }
        }
        let sums: [i32; 3 * LANES] = bytemuck::cast(sums);
        let mut total = [HALF; 3];
        for c in 0..3 * LANES {
            total[c % 3] += sums[c];
        }
        // Only rows shorter than a window leave a remainder.
        for (c, (byte, weight)) in last_bytes.iter().zip(last_weights).enumerate() {
            total[c % 3] += i32::from(*byte) * weight;
        }
        *pixel = total.map(to_byte);
    }
}

/// One row of the result: a weight for each row that begins every `stride` bytes of `rows`; `sums` is room to work in.
fn vertical(rows: &[u8], stride: usize, weights: &[i32], sums: &mut [i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn vertical_avx2(rows: &[u8], stride: usize, weights: &[i32], sums: &mut [i32], out: &mut [u8]) {
            vertical_plain(rows, stride, weights, sums, out);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as in `horizontal`.
            return unsafe { vertical_avx2(rows, stride, weights, sums, out) };
        }
    }
    vertical_plain(rows, stride, weights, sums, out);
}

/// Inlined, so that the compiler vectorises it for what its caller may use.
#[inline(always)]
fn vertical_plain(rows: &[u8], stride: usize, weights: &[i32], sums: &mut [i32], out: &mut [u8]) {
    sums.fill(HALF);
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
fn normalise(square: &[u8], config: &ImageConfig) -> Vec<f32> {
    let mut pixels = Vec::with_capacity(square.len());
    for (channel, (mean, std)) in config.mean.iter().zip(&config.std).enumerate() {
        let values: [f32; 256] = std::array::from_fn(|byte| ((byte as f64 * config.scale) as f32 - mean) / std);
        pixels.extend(square.iter().skip(channel).step_by(3).map(|byte| values[usize::from(*byte)]));
    }
    pixels
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
    fn every_form_of_the_horizontal_pass_gives_the_same_bytes() {
        let sizes = [(1, 5, 5), (7, 30, 4), (31, 31, 31), (200, 16, 16), (203, 150, 90), (1000, 9, 3)];
        for ((input, output, crop), filter) in sizes.into_iter().flat_map(|size| FILTERS.map(|filter| (size, filter))) {
            let row: Vec<u8> = (0..input * 3).map(|i| (i * i * 31 % 256) as u8).collect();
            let taps = Taps::new(input, output, crop, filter).padded_for_rgb(0..input);
            let (mut fast, mut plain) = (vec![0; crop * 3], vec![0; crop * 3]);
            horizontal(&row, &taps, &mut fast);
            horizontal_plain(&row, &taps, &mut plain);
            assert_eq!(fast, plain, "{input} to {output}, {filter:?}");
        }
    }
}
