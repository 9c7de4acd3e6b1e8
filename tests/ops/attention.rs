use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{AttentionShape, DropoutMask, Sequences};

use crate::common::assert_close;
use crate::{cases, ops, random, slopes, tensor, values};

#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "attention", "qkv") {
        let (shape, qkv) = golden.get(&format!("{case}.qkv"));
        let (batch, tokens, heads) = (shape[0], shape[1], shape[2] / 192);
        let y = Cpu
            .attention(&tensor(batch * tokens, shape[2], &qkv), AttentionShape { batch, tokens, heads, prefix: tokens })
            .unwrap();
        assert_close(&case, &values(&y), &golden.f32(&format!("{case}.y")), 64 + tokens);
    }
}

/// Batch, tokens, heads, head size, prefix: head sizes and lengths that golden data does not have, around every block.
const SHAPES: [[usize; 5]; 9] = [
    [1, 1, 1, 1, 1],
    [2, 5, 3, 7, 5],
    [1, 130, 2, 32, 130],
    [3, 257, 1, 64, 257],
    [2, 9, 2, 8, 4],
    [1, 150, 1, 16, 131],
    [1, 6, 1, 4, 0],
    [1, 289, 1, 19, 145],
    [1, 300, 2, 64, 3],
];

/// The definition in f64.
#[derive(Clone, Copy)]
struct Twin {
    shape: AttentionShape,
    size: usize,
    mask: Option<DropoutMask>,
}

impl Twin {
    fn new([batch, tokens, heads, size, prefix]: [usize; 5], mask: Option<DropoutMask>) -> Twin {
        Twin { shape: AttentionShape { batch, tokens, heads, prefix }, size, mask }
    }

    fn rows(&self) -> usize {
        self.shape.batch * self.shape.tokens
    }

    fn width(&self) -> usize {
        self.shape.heads * self.size
    }

    /// The values of one head in a row of query, key or value.
    fn part<'a>(&self, qkv: &'a [f64], row: usize, part: usize, head: usize) -> &'a [f64] {
        &qkv[row * 3 * self.width() + part * self.width() + head * self.size..][..self.size]
    }

    /// Probabilities of a query, and the log-sum-exp of its scores.
    fn softmax(&self, qkv: &[f64], b: usize, h: usize, q: usize) -> (Vec<f64>, f64) {
        let AttentionShape { tokens, prefix, .. } = self.shape;
        let visible = if q < prefix { prefix } else { q + 1 };
        let query = self.part(qkv, b * tokens + q, 0, h);
        let score = |k: usize| dot(query, self.part(qkv, b * tokens + k, 1, h)) / (self.size as f64).sqrt();
        let scores: Vec<f64> = (0..visible).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum_exp = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        (scores.iter().map(|s| (s - log_sum_exp).exp()).collect(), log_sum_exp)
    }

    /// Factor of a probability: 0 where it is dropped.
    fn factor(&self, b: usize, h: usize, q: usize, k: usize) -> f64 {
        let AttentionShape { tokens, heads, .. } = self.shape;
        let word = ((b * heads + h) * tokens + q) * tokens.next_multiple_of(4) + k;
        self.mask.map_or(1.0, |mask| {
            let kept = mask.words().word(word as u64) >= mask.threshold();
            if kept { 1.0 / (1.0 - f64::from(mask.probability)) } else { 0.0 }
        })
    }

    /// Result and log-sum-exp.
    fn forward(&self, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut y, mut saved) = (vec![0.0; self.rows() * self.width()], vec![0.0; self.rows() * self.shape.heads]);
        self.each_query(|b, h, q| {
            let (p, log_sum_exp) = self.softmax(qkv, b, h, q);
            saved[(b * self.shape.heads + h) * self.shape.tokens + q] = log_sum_exp;
            let row = (b * self.shape.tokens + q) * self.width() + h * self.size;
            for (k, p) in p.iter().enumerate() {
                let value = self.part(qkv, b * self.shape.tokens + k, 2, h);
                add(&mut y[row..][..self.size], p * self.factor(b, h, q, k), value);
            }
        });
        (y, saved)
    }

    /// The gradient at qkv: with g = factor (dy . value) at the probabilities, p (g - sum p g) / sqrt D at the scores.
    fn backward(&self, qkv: &[f64], dy: &[f64]) -> Vec<f64> {
        let mut dqkv = vec![0.0; qkv.len()];
        let (width, scale) = (self.width(), 1.0 / (self.size as f64).sqrt());
        self.each_query(|b, h, q| {
            let (p, _) = self.softmax(qkv, b, h, q);
            let row = |k: usize| b * self.shape.tokens + k;
            let place = |k: usize, part: usize| row(k) * 3 * width + part * width + h * self.size;
            let dy = &dy[row(q) * width + h * self.size..][..self.size];
            let g = |k: usize| self.factor(b, h, q, k) * dot(dy, self.part(qkv, row(k), 2, h));
            let g: Vec<f64> = (0..p.len()).map(g).collect();
            let mean = dot(&p, &g);
            for k in 0..p.len() {
                let dscore = scale * p[k] * (g[k] - mean);
                add(&mut dqkv[place(q, 0)..][..self.size], dscore, self.part(qkv, row(k), 1, h));
                add(&mut dqkv[place(k, 1)..][..self.size], dscore, self.part(qkv, row(q), 0, h));
                add(&mut dqkv[place(k, 2)..][..self.size], p[k] * self.factor(b, h, q, k), dy);
            }
        });
        dqkv
    }

    fn each_query(&self, mut f: impl FnMut(usize, usize, usize)) {
        let AttentionShape { batch, tokens, heads, .. } = self.shape;
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            (0..tokens).for_each(|q| f(b, h, q));
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], scale: f64, values: &[f64]) {
    sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += scale * v);
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn masks() -> [Option<DropoutMask>; 2] {
    [None, Some(DropoutMask { probability: 0.3, seed: 5, stream: 1 << 33 })]
}

/// The gradient at qkv of the CPU form, from what its own forward pass saves.
fn cpu_backward(twin: Twin, qkv: &[f32], dy: &[f32]) -> Vec<f32> {
    let (qkv, dy) = (tensor(twin.rows(), 3 * twin.width(), qkv), tensor(twin.rows(), twin.width(), dy));
    let (y, saved) = Cpu.attention_saving(&qkv, twin.shape, twin.mask).unwrap();
    values(&Cpu.attention_backward(&dy, &qkv, &y, &saved, twin.shape, twin.mask).unwrap())
}

#[test]
fn equals_the_definition() {
    let mut random = random(3);
    for (shape, mask) in SHAPES.iter().flat_map(|&shape| masks().map(|mask| (shape, mask))) {
        let twin = Twin::new(shape, mask);
        let qkv: Vec<f32> = random.values(twin.rows() * 3 * twin.width()).into_iter().map(|v| 3.0 * v).collect();
        let (y, saved) = twin.forward(&wide(&qkv));
        let qkv = tensor(twin.rows(), 3 * twin.width(), &qkv);
        let results = Cpu.attention_saving(&qkv, twin.shape, mask).unwrap();
        let name = format!("{shape:?}, dropout {}", mask.is_some());
        let length = 16 * (twin.size + twin.shape.tokens);
        // Scores of about 9 sqrt(size) pass through an exponential.
        assert_close(&name, &values(&results.0), &narrow(&y), length);
        assert_close(&format!("{name}, log-sum-exp"), &values(&results.1), &narrow(&saved), length);
        if mask.is_none() {
            assert_eq!(values(&Cpu.attention(&qkv, twin.shape).unwrap()), values(&results.0), "{name}");
        }
    }
}

#[test]
fn backward_equals_the_formula() {
    let mut random = random(4);
    for (shape, mask) in SHAPES.iter().flat_map(|&shape| masks().map(|mask| (shape, mask))) {
        let twin = Twin::new(shape, mask);
        let qkv: Vec<f32> = random.values(twin.rows() * 3 * twin.width()).into_iter().map(|v| 2.0 * v).collect();
        let dy = random.values(twin.rows() * twin.width());
        let expected = narrow(&twin.backward(&wide(&qkv), &wide(&dy)));
        let name = format!("{shape:?}, dropout {}", mask.is_some());
        assert_close(&name, &cpu_backward(twin, &qkv, &dy), &expected, 16 * (twin.size + twin.shape.tokens));
    }
}

#[test]
fn backward_is_the_slope() {
    let mut random = random(8);
    for (shape, mask) in
        [[2, 5, 2, 4, 3], [1, 4, 1, 3, 4], [1, 6, 1, 2, 0]].iter().flat_map(|&s| masks().map(|mask| (s, mask)))
    {
        let twin = Twin::new(shape, mask);
        let (qkv, dy) = (random.values(twin.rows() * 3 * twin.width()), random.values(twin.rows() * twin.width()));
        let loss = |qkv: &[f64]| dot(&twin.forward(qkv).0, &wide(&dy));
        let name = format!("{shape:?}, dropout {}", mask.is_some());
        assert_close(&name, &cpu_backward(twin, &qkv, &dy), &slopes(&qkv, loss), 256);
    }
}

/// Whoever pads a sequence at its end, and gives the padding no gradient, changes no other's.
#[test]
fn padding_has_no_gradient() {
    let mut random = random(9);
    let (twin, longer) = (Twin::new([1, 9, 2, 8, 4], None), Twin::new([1, 12, 2, 8, 4], None));
    let mut qkv = random.values(longer.rows() * 3 * longer.width());
    let mut dy = random.values(twin.rows() * twin.width());
    let expected = cpu_backward(twin, &qkv[..twin.rows() * 3 * twin.width()], &dy);
    dy.resize(longer.rows() * longer.width(), 0.0);
    for scale in [1.0, -40.0] {
        qkv[expected.len()..].iter_mut().for_each(|v| *v *= scale);
        let padded = cpu_backward(longer, &qkv, &dy);
        assert_close("padded", &padded[..expected.len()], &expected, 8);
        assert!(padded[expected.len()..].iter().all(|&v| v == 0.0), "{padded:?}");
    }
}

#[test]
fn edges_and_misfits() {
    let of = |batch, tokens, heads, prefix| AttentionShape { batch, tokens, heads, prefix };
    for (batch, tokens) in [(0, 5), (3, 0)] {
        let shape = of(batch, tokens, 2, 0);
        let (x, y) = (tensor(0, 12, &[]), tensor(0, 4, &[]));
        assert_eq!(Cpu.shape(&Cpu.attention(&x, shape).unwrap()), [0, 4]);
        let (_, saved) = Cpu.attention_saving(&x, shape, None).unwrap();
        assert_eq!(Cpu.shape(&saved), [2 * batch, tokens]);
        assert_eq!(Cpu.shape(&Cpu.attention_backward(&y, &x, &y, &saved, shape, None).unwrap()), [0, 12]);
    }
    let x = tensor(2, 12, &[0.0; 24]);
    for (batch, tokens, heads) in [(1, 3, 2), (2, 1, 3), (2, 1, 0)] {
        assert!(Cpu.attention(&x, of(batch, tokens, heads, tokens)).is_err());
    }
    let mask = |probability| Some(DropoutMask { probability, seed: 1, stream: 2 });
    let (y, saved, shape) = (tensor(2, 4, &[0.0; 8]), tensor(2, 2, &[0.0; 4]), of(1, 2, 2, 2));
    assert!(Cpu.attention_saving(&x, shape, mask(1.0)).is_err());
    let back = |dy, y, saved, mask| Cpu.attention_backward(dy, &x, y, saved, shape, mask).map(drop);
    assert!(back(&y, &y, &saved, mask(0.5)).is_ok());
    for (dy, y, saved, mask) in
        [(&x, &y, &saved, None), (&y, &saved, &saved, None), (&y, &y, &y, None), (&y, &y, &saved, mask(f32::NAN))]
    {
        assert!(back(dy, y, saved, mask).is_err());
    }
}

/// Sequences of different lengths give what each gives alone, bit for bit; rows of none are zeros.
#[test]
fn sequences_of_different_lengths_are_independent() {
    let (heads, size) = (2, 5);
    let (parts, columns, width) = (vec![1..131, 131..132, 133..133, 140..145], 3 * heads * size, heads * size);
    let qkv = random(25).values(150 * columns);
    let sequences = Sequences::new(150, parts.clone()).unwrap();
    let y = values(&Cpu.attention_ragged(&tensor(150, columns, &qkv), heads, &sequences).unwrap());
    let mut expected = vec![0.0; y.len()];
    for part in parts {
        let tokens = part.len();
        let alone = tensor(tokens, columns, &qkv[part.start * columns..part.end * columns]);
        let shape = AttentionShape { batch: 1, tokens, heads, prefix: tokens };
        let alone = values(&Cpu.attention(&alone, shape).unwrap());
        expected[part.start * width..part.end * width].copy_from_slice(&alone);
    }
    assert_eq!(y, expected);
    let x = tensor(149, columns, &qkv[..149 * columns]);
    assert!(Cpu.attention_ragged(&x, heads, &sequences).is_err(), "sequences of other rows");
    assert!(Cpu.attention_ragged(&x, 7, &Sequences::one(149)).is_err(), "heads that do not divide the columns");
}
