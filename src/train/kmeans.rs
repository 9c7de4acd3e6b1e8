//! k-means: centres of rows of features, seeded by k-means++ (Arthur and Vassilvitskii, 2007) on a sample and improved by Lloyd's
//! iterations over all rows, on the CPU. Results depend on rows and seed alone.

use rayon::prelude::*;

use crate::backend::Device as _;
use crate::backend::cpu::Cpu;
use crate::model::codebook::{Codebook, Metric};
use crate::random::Random;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// Rows that are compared with all centres together: their features stay in the cache.
const BLOCK: usize = 256;
/// Rows for each centre among which the first centres are drawn.
const SEEDED: usize = 64;

/// How centres are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KMeansOptions {
    /// Centres K.
    pub clusters: usize,
    /// Iterations at most; they end when no row changes its centre.
    pub iterations: usize,
    /// Seed of the drawing of first centres.
    pub seed: u64,
}

/// Centres that were found.
#[derive(Clone, Debug, PartialEq)]
pub struct KMeans {
    /// (K, D).
    pub centres: Vec<f32>,
    /// Mean squared distance of a row to its centre.
    pub distance: f64,
    /// Iterations that were done.
    pub iterations: usize,
}

/// Finds centres of `rows` (N, `width`). `progress` is called with the iterations done.
///
/// # Errors
/// If there are fewer rows than centres, or the numbers make no sense.
pub fn kmeans(rows: &[f32], width: usize, options: KMeansOptions, progress: &mut dyn FnMut(usize)) -> Result<KMeans> {
    let KMeansOptions { clusters, iterations, seed } = options;
    let count = rows.len().checked_div(width).unwrap_or(0);
    if clusters == 0 || clusters > count {
        let problem = format!("is {clusters}, but there are {count} frames: give more recordings or fewer clusters");
        return Err(Error::Option { option: "clusters", problem });
    }
    let mut random = Random::new(seed);
    let mut centres = first_centres(rows, width, clusters, &mut random);
    let (mut nearest, mut done) = (vec![u32::MAX; count], 0);
    while done < iterations {
        let next = assign(rows, width, &centres)?;
        if next == nearest {
            break;
        }
        nearest = next;
        improve(rows, width, &nearest, &mut centres);
        done += 1;
        progress(done);
    }
    let nearest = assign(rows, width, &centres)?;
    let distances =
        rows.par_chunks_exact(width).zip(&nearest).map(|(row, &n)| distance(row, centre(&centres, width, n)));
    let distance = distances.collect::<Vec<f32>>().iter().map(|&d| f64::from(d)).sum::<f64>() / count as f64;
    Ok(KMeans { centres, distance, iterations: done })
}

fn centre(centres: &[f32], width: usize, n: u32) -> &[f32] {
    &centres[n as usize * width..][..width]
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Rows of a sample, each drawn with a chance that grows with its squared distance to those drawn before.
fn first_centres(rows: &[f32], width: usize, clusters: usize, random: &mut Random) -> Vec<f32> {
    let count = rows.len() / width;
    let mut sample: Vec<usize> = (0..count).collect();
    // The first of a random order.
    let kept = count.min(clusters.saturating_mul(SEEDED));
    for at in 0..kept {
        sample.swap(at, at + random.below(count - at));
    }
    sample.truncate(kept);
    let row = |n: usize| &rows[n * width..][..width];
    let mut centres = row(sample[0]).to_vec();
    let mut nearest = vec![f32::INFINITY; sample.len()];
    while centres.len() < clusters * width {
        let last = &centres[centres.len() - width..];
        nearest.par_iter_mut().zip(&sample).for_each(|(nearest, &n)| *nearest = nearest.min(distance(row(n), last)));
        let total: f64 = nearest.iter().map(|&d| f64::from(d)).sum();
        let mut rest = f64::from(random.unit()) * total;
        let drawn = nearest.iter().position(|&d| {
            rest -= f64::from(d);
            rest < 0.0
        });
        // Where all rows are centres already, any will do.
        let drawn = drawn.unwrap_or_else(|| random.below(sample.len()));
        centres.extend_from_slice(row(sample[drawn]));
    }
    centres
}

/// The nearest centre of each row.
fn assign(rows: &[f32], width: usize, centres: &[f32]) -> Result<Vec<u32>> {
    let codes = HostTensor::from_f32(&[centres.len() / width, width], centres.to_vec())
        .ok_or_else(|| Error::internal("centres that are not those of their shape"))?;
    let codebook = Codebook::new(&Cpu, &codes, Metric::Euclidean, None)?;
    let (mut all, mut block) = (Vec::with_capacity(rows.len() / width), Vec::new());
    for rows in rows.chunks(BLOCK * width) {
        let x = Cpu.upload([rows.len() / width, width], rows)?;
        codebook.nearest(&Cpu, &x, &mut block)?;
        all.append(&mut block);
    }
    Ok(all)
}

/// Moves each centre to the mean of its rows. One without rows moves to the row that is farthest from its own centre.
fn improve(rows: &[f32], width: usize, nearest: &[u32], centres: &mut [f32]) {
    let clusters = centres.len() / width;
    let (mut sums, mut counts) = (vec![0.0f64; clusters * width], vec![0usize; clusters]);
    for (row, &n) in rows.chunks_exact(width).zip(nearest) {
        counts[n as usize] += 1;
        sums[n as usize * width..][..width].iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    let empty: Vec<usize> = (0..clusters).filter(|&n| counts[n] == 0).collect();
    let far = if empty.is_empty() { Vec::new() } else { farthest(rows, width, nearest, centres, empty.len()) };
    for (n, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let mean = sums[n * width..][..width].iter().map(|sum| (sum / count as f64) as f32);
        centres[n * width..][..width].iter_mut().zip(mean).for_each(|(centre, mean)| *centre = mean);
    }
    for (n, row) in empty.into_iter().zip(far) {
        centres[n * width..][..width].copy_from_slice(&rows[row * width..][..width]);
    }
}

/// The rows that are farthest from their centres, at most `count`, the farthest first.
fn farthest(rows: &[f32], width: usize, nearest: &[u32], centres: &[f32], count: usize) -> Vec<usize> {
    let of = |(row, &n): (&[f32], &u32)| distance(row, centre(centres, width, n));
    let distances: Vec<f32> = rows.par_chunks_exact(width).zip(nearest).map(of).collect();
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by(|&a, &b| distances[b].total_cmp(&distances[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// A sample of rows that does not grow beyond its size, each row of all with the same chance.
pub struct Reservoir {
    rows: Vec<f32>,
    width: usize,
    size: usize,
    seen: usize,
    random: Random,
}

impl Reservoir {
    /// An empty sample of at most `size` rows of `width` values.
    pub fn new(width: usize, size: usize, seed: u64) -> Reservoir {
        Reservoir { rows: Vec::new(), width, size, seen: 0, random: Random::new(seed) }
    }

    /// Offers rows (N, width).
    pub fn add(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.width) {
            self.seen += 1;
            if self.seen <= self.size {
                self.rows.extend_from_slice(row);
                continue;
            }
            let place = self.random.below(self.seen);
            if place < self.size {
                self.rows[place * self.width..][..self.width].copy_from_slice(row);
            }
        }
    }

    /// Rows that were offered.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// The sample (N, width).
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: KMeansOptions = KMeansOptions { clusters: 4, iterations: 50, seed: 3 };

    /// Rows around four far points.
    fn clouds(count: usize) -> Vec<f32> {
        let mut random = Random::new(5);
        let mut rows = Vec::new();
        for n in 0..count {
            let offset = [(0.0, 0.0), (10.0, 0.0), (0.0, 10.0), (10.0, 10.0)][n % 4];
            let noise = random.values(2);
            rows.extend([offset.0 + 0.1 * noise[0], offset.1 + 0.1 * noise[1]]);
        }
        rows
    }

    #[test]
    fn clouds_are_found_and_every_run_is_the_same() {
        let rows = clouds(2000);
        let found = kmeans(&rows, 2, OPTIONS, &mut |_| {}).unwrap();
        assert!(found.distance < 0.01, "{}", found.distance);
        let mut places: Vec<[i32; 2]> =
            found.centres.chunks_exact(2).map(|c| [c[0].round() as i32, c[1].round() as i32]).collect();
        places.sort();
        assert_eq!(places, [[0, 0], [0, 10], [10, 0], [10, 10]]);
        assert_eq!(kmeans(&rows, 2, OPTIONS, &mut |_| {}).unwrap(), found);
    }

    /// As many centres as rows, rows that are all alike, and more centres than different rows.
    #[test]
    fn edges_and_misfits() {
        let run = |rows: &[f32], clusters| kmeans(rows, 1, KMeansOptions { clusters, ..OPTIONS }, &mut |_| {});
        let mut all = run(&[3.0, 1.0, 2.0], 3).unwrap();
        all.centres.sort_by(f32::total_cmp);
        assert_eq!((all.centres, all.distance), (vec![1.0, 2.0, 3.0], 0.0));
        assert_eq!(run(&[7.0; 9], 2).unwrap().centres, [7.0, 7.0]);
        assert!(run(&[1.0, 2.0], 3).unwrap_err().to_string().contains("2 frames"));
        assert!(run(&[1.0], 0).is_err() && run(&[], 1).is_err());
        let none = kmeans(&[1.0, 5.0], 1, KMeansOptions { clusters: 1, iterations: 0, seed: 0 }, &mut |_| {}).unwrap();
        assert_eq!(none.iterations, 0);
    }

    #[test]
    fn a_reservoir_keeps_its_size() {
        let mut reservoir = Reservoir::new(1, 10, 1);
        (0..1000).for_each(|n| reservoir.add(&[n as f32]));
        assert_eq!((reservoir.seen(), reservoir.rows().len()), (1000, 10));
        let mean = reservoir.rows().iter().sum::<f32>() / 10.0;
        assert!((200.0..800.0).contains(&mean), "{mean}");
    }
}
