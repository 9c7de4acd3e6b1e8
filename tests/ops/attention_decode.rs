use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{CacheRow, CacheShape, LinearWeights};
use im2sp::tensor::HostTensor;

use crate::common::assert_close;
use crate::{cases, ops, random, tensor, values};

/// A layer that leaves its input of so many columns as it is.
fn identity(columns: usize) -> LinearWeights<Cpu> {
    let weight: Vec<f32> = (0..columns * columns).map(|i| f32::from(i % (columns + 1) == 0)).collect();
    let weight = Cpu.matrix(HostTensor::from_f32(&[columns, columns], weight).unwrap()).unwrap();
    LinearWeights { weight, bias: tensor(1, columns, &vec![0.0; columns]) }
}

const START: CacheRow = CacheRow { image: 0, parent: None };

/// Tokens after an image prefix, one token at a time, gives what masked attention over everything gives.
#[test]
fn equals_golden() {
    let golden = ops();
    for case in cases(&golden, "prefix_attention", "qkv") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((shape, qkv), (prefix_shape, prefix_qkv), (_, y)) = (get("qkv"), get("prefix_qkv"), get("y"));
        let (images, tokens, columns, prefix) = (shape[0], shape[1], shape[2], prefix_shape[1]);
        let heads = columns / 192;
        let cache_shape = CacheShape { layers: 2, heads, head_size: 64, images, prefix, max_new_tokens: tokens };
        let mut cache = Cpu.kv_cache(cache_shape).unwrap();
        let slots: Vec<usize> = (0..images).collect();
        let x = tensor(images * prefix, columns, &prefix_qkv);
        let packed = Cpu.prefill_qkv(&mut cache, &slots, 1, &x, &identity(columns)).unwrap();
        assert_eq!(values(&packed), *prefix_qkv);
        let rows: Vec<_> = (0..images).map(|image| CacheRow { image, parent: None }).collect();
        Cpu.kv_reorder(&mut cache, &rows).unwrap();
        for t in 0..tokens {
            let pick = |values: &[f32], width: usize| -> Vec<f32> {
                (0..images).flat_map(|b| values[(b * tokens + t) * width..][..width].to_vec()).collect()
            };
            assert_eq!(Cpu.kv_append(&mut cache).unwrap(), vec![t as u32; images]);
            let out = Cpu.attention_decode(&tensor(images, columns, &pick(&qkv, columns)), &mut cache, 1).unwrap();
            assert_close(&format!("{case} token {t}"), &values(&out), &pick(&y, columns / 3), 64 + prefix + tokens);
        }
    }
}

/// Rows that fork, swap and vanish continue their parents' sequences bit for bit, next to others that have just begun.
#[test]
fn rows_continue_their_parents() {
    let mut random = random(4);
    let (columns, prefix) = (3 * 2 * 8, 5);
    let shape = CacheShape { layers: 1, heads: 2, head_size: 8, images: 2, prefix, max_new_tokens: 40 };
    let prefix_qkv = random.values(2 * prefix * columns);
    let new = || {
        let mut cache = Cpu.kv_cache(shape).unwrap();
        // The images in one call each, and not in their order.
        for image in [1, 0] {
            let qkv = &prefix_qkv[image * prefix * columns..][..prefix * columns];
            let x = tensor(prefix, columns, qkv);
            Cpu.prefill_qkv(&mut cache, &[image], 0, &x, &identity(columns)).unwrap();
        }
        cache
    };
    // Each sequence is the list of its tokens' rows of qkv; the beams' cache is compared with a fresh one fed the same sequence.
    let mut cache = new();
    let mut sequences: Vec<(usize, Vec<Vec<f32>>)> = vec![(0, vec![]), (1, vec![])];
    let mut rows: Vec<CacheRow> = vec![START, CacheRow { image: 1, parent: None }];
    for t in 0..60 {
        Cpu.kv_reorder(&mut cache, &rows).unwrap();
        let tokens: Vec<Vec<f32>> = sequences.iter().map(|_| random.values(columns)).collect();
        sequences.iter_mut().zip(&tokens).for_each(|((_, sequence), token)| sequence.push(token.clone()));
        let positions: Vec<u32> = sequences.iter().map(|(_, sequence)| sequence.len() as u32 - 1).collect();
        assert_eq!(Cpu.kv_append(&mut cache).unwrap(), positions);
        let out =
            values(&Cpu.attention_decode(&tensor(sequences.len(), columns, &tokens.concat()), &mut cache, 0).unwrap());
        for ((image, sequence), out) in sequences.iter().zip(out.chunks_exact(columns / 3)) {
            let mut fresh = new();
            Cpu.kv_reorder(&mut fresh, &[CacheRow { image: *image, parent: None }]).unwrap();
            let last = sequence.iter().map(|token| {
                Cpu.kv_append(&mut fresh).unwrap();
                values(&Cpu.attention_decode(&tensor(1, columns, token), &mut fresh, 0).unwrap())
            });
            assert_eq!(last.last().unwrap(), out, "token {t}");
        }
        let parents: Vec<usize> = (0..1 + random.below(4)).map(|_| random.below(sequences.len())).collect();
        rows = parents.iter().map(|&p| CacheRow { image: sequences[p].0, parent: Some(p) }).collect();
        sequences = parents.iter().map(|&p| sequences[p].clone()).collect();
        // Now and then a sequence that has ended, or grown to the limit, makes room for another.
        for (row, (image, sequence)) in rows.iter_mut().zip(&mut sequences) {
            if random.below(10) == 0 || sequence.len() == shape.max_new_tokens {
                *image = random.below(2);
                *row = CacheRow { image: *image, parent: None };
                sequence.clear();
            }
        }
    }
}

#[test]
fn edges_and_misfits() {
    let shape = CacheShape { layers: 1, heads: 1, head_size: 2, images: 1, prefix: 0, max_new_tokens: 1 };
    let mut cache = Cpu.kv_cache(shape).unwrap();
    Cpu.kv_reorder(&mut cache, &[START]).unwrap();
    // Without a prefix, the first token sees only itself.
    let token = tensor(1, 6, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert!(Cpu.attention_decode(&token, &mut cache, 0).is_err(), "no room was made");
    assert_eq!(Cpu.kv_append(&mut cache).unwrap(), [0]);
    assert_eq!(values(&Cpu.attention_decode(&token, &mut cache, 0).unwrap()), [5.0, 6.0]);
    assert!(Cpu.kv_append(&mut cache).is_err(), "beyond the room");
    assert!(Cpu.attention_decode(&token, &mut cache, 1).is_err(), "no such layer");
    assert!(Cpu.kv_reorder(&mut cache, &[CacheRow { image: 1, parent: None }]).is_err(), "no such image");
    assert!(Cpu.kv_reorder(&mut cache, &[CacheRow { image: 0, parent: Some(3) }]).is_err(), "no such parent");
    let mut prefix = |images: &[usize], x| Cpu.prefill_qkv(&mut cache, images, 0, &x, &identity(6));
    assert!(prefix(&[0], tensor(1, 6, &[0.0; 6])).is_err(), "no room for a prefix");
    assert!(prefix(&[1], tensor(0, 6, &[])).is_err(), "no such image");
}
