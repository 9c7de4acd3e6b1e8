//! A codebook: the nearest of K codes for each vector. The nearest by Euclidean distance has the largest `x c - |c|^2 / 2`, so
//! the search is a matrix product in f32 and an argmax; of equally near codes it is the first. Codes are f32, or where
//! matrices are bf16 rounded to that, squares and all: then it is the nearest of the rounded codes.

use half::bf16;

use super::loader::Loader;
use crate::backend::{Activation, Backend, LinearWeights};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// How near a code is to a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// `|x - c|`: k-means.
    Euclidean,
    /// `|x/|x| - c/|c||`, so the largest cosine: ViT-VQGAN. No code may be zero.
    Cosine,
}

/// K codes of D values on a backend.
pub struct Codebook<B: Backend> {
    search: LinearWeights<B>, // (K, D)
}

impl<B: Backend> Codebook<B> {
    /// Takes the codes `name` (K, D).
    pub fn load(loader: &mut Loader<'_, B>, name: &str, shape: [usize; 2], metric: Metric) -> Result<Codebook<B>> {
        let codes = loader.store.take(name, &shape)?;
        Codebook::new(loader.backend, &codes, metric, loader.dtype)
    }

    /// Makes it of codes (K, D), as a device holds them whose matrices are in `dtype`.
    ///
    /// # Errors
    /// If they are no matrix, or a code is zero and only its direction counts.
    pub fn new(backend: &B, codes: &HostTensor, metric: Metric, dtype: Option<DType>) -> Result<Codebook<B>> {
        let &[count, width] = codes.shape() else {
            return Err(Error::shape("codebook", format!("codes of shape {:?}, expected (K, D)", codes.shape())));
        };
        let mut values = codes.to_f32().into_owned();
        let mut bias = vec![0.0; count];
        for (n, (code, bias)) in values.chunks_exact_mut(width.max(1)).zip(&mut bias).enumerate() {
            let square = |code: &[f32]| code.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            if metric == Metric::Cosine {
                let length = square(code).sqrt();
                if length == 0.0 {
                    return Err(Error::shape("codebook", format!("code {n} is zero and has no direction")));
                }
                code.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            }
            if dtype == Some(DType::BF16) {
                code.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
            }
            if metric == Metric::Euclidean {
                *bias = (-0.5 * square(code)) as f32;
            }
        }
        let values = HostTensor::from_f32(&[count, width], values)
            .ok_or_else(|| Error::internal("codes that are not those of their shape"))?;
        Ok(Codebook {
            search: LinearWeights { weight: backend.matrix(values)?, bias: backend.upload([1, count], &bias)? },
        })
    }

    /// The number of the nearest code of each row of x (N, D), into `codes`.
    pub fn nearest(&self, backend: &B, x: &B::Tensor, codes: &mut Vec<u32>) -> Result<()> {
        // The form for decode steps keeps f32 on every device.
        let near = backend.linear_decode(x, &self.search, Activation::None, None)?;
        backend.argmax(&near, codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Device as _;
    use crate::backend::cpu::Cpu;
    use crate::random::Random;

    /// The definition in f64; the first of equally near codes.
    fn nearest(x: &[f32], codes: &[f32], metric: Metric) -> usize {
        let scaled = |v: &[f32]| -> Vec<f64> {
            let norm = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
            v.iter().map(|&v| f64::from(v) / if metric == Metric::Cosine { norm } else { 1.0 }).collect()
        };
        let distance = |code: &[f32]| scaled(x).iter().zip(scaled(code)).map(|(x, c)| (x - c).powi(2)).sum::<f64>();
        let distances: Vec<f64> = codes.chunks_exact(x.len()).map(distance).collect();
        (0..distances.len()).min_by(|&a, &b| distances[a].total_cmp(&distances[b])).unwrap()
    }

    #[test]
    fn the_nearest_code_is_that_of_the_definition() {
        let mut random = Random::new(3);
        for (rows, count, width) in [(1, 1, 1), (7, 2, 3), (300, 391, 32), (50, 200, 70), (0, 5, 4)] {
            let (x, codes) = (random.values(rows * width), random.values(count * width));
            for metric in [Metric::Euclidean, Metric::Cosine] {
                let tensor = HostTensor::from_f32(&[count, width], codes.clone()).unwrap();
                let codebook = Codebook::new(&Cpu, &tensor, metric, None).unwrap();
                let mut found = vec![9];
                codebook.nearest(&Cpu, &Cpu.upload([rows, width], &x).unwrap(), &mut found).unwrap();
                let expected: Vec<u32> = x.chunks_exact(width).map(|x| nearest(x, &codes, metric) as u32).collect();
                assert_eq!(found, expected, "{rows} rows, {count} codes of {width}, {metric:?}");
            }
        }
    }

    /// Rounded codes with the squares of the codes before rounding would prefer whichever was rounded up.
    #[test]
    fn rounded_codes_are_those_that_are_near() {
        let mut random = Random::new(5);
        let (rows, count, width) = (200, 50, 24);
        // Far from zero, where codes are rounded most.
        let far = |v: &f32| 8.0 + v;
        let x: Vec<f32> = random.values(rows * width).iter().map(far).collect();
        let codes: Vec<f32> = random.values(count * width).iter().map(far).collect();
        let tensor = HostTensor::from_f32(&[count, width], codes.clone()).unwrap();
        let codebook = Codebook::new(&Cpu, &tensor, Metric::Euclidean, Some(DType::BF16)).unwrap();
        let mut found = Vec::new();
        codebook.nearest(&Cpu, &Cpu.upload([rows, width], &x).unwrap(), &mut found).unwrap();
        let rounded: Vec<f32> = codes.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        let near = |x: &[f32]| nearest(x, &rounded, Metric::Euclidean) as u32;
        assert_eq!(found, x.chunks_exact(width).map(near).collect::<Vec<_>>());
    }

    #[test]
    fn ties_and_misfits() {
        let codes = HostTensor::from_f32(&[4, 2], vec![4.0, 0.0, 0.0, 1.0, 1.0, 0.0, 2.0, 0.0]).unwrap();
        let x = Cpu.upload([3, 2], &[1.5, 0.0, 0.0, 0.5, 9.0, 0.0]).unwrap();
        for (metric, expected) in [(Metric::Euclidean, [2, 1, 0]), (Metric::Cosine, [0, 1, 0])] {
            let mut found = Vec::new();
            Codebook::new(&Cpu, &codes, metric, None).unwrap().nearest(&Cpu, &x, &mut found).unwrap();
            assert_eq!(found, expected, "{metric:?}");
        }
        let zero = HostTensor::from_f32(&[2, 1], vec![1.0, 0.0]).unwrap();
        assert!(Codebook::new(&Cpu, &zero, Metric::Euclidean, None).is_ok());
        let error = Codebook::new(&Cpu, &zero, Metric::Cosine, None).err().unwrap().to_string();
        assert!(error.contains("code 1"), "{error}");
        let cube = HostTensor::from_f32(&[1, 1, 1], vec![1.0]).unwrap();
        assert!(Codebook::new(&Cpu, &cube, Metric::Euclidean, None).is_err());
        let codebook = Codebook::new(&Cpu, &codes, Metric::Euclidean, None).unwrap();
        let wide = Cpu.upload([1, 3], &[0.0; 3]).unwrap();
        assert!(codebook.nearest(&Cpu, &wide, &mut Vec::new()).is_err());
    }
}
