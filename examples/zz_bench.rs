use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::*;
use im2sp::random::Philox;
use std::time::Instant;
fn best(mut f: impl FnMut()) -> f64 {
    f();
    let mut t = f64::MAX;
    for _ in 0..15 {
        let s = Instant::now();
        f();
        t = t.min(s.elapsed().as_secs_f64());
    }
    t * 1e3
}
fn main() {
    for (batch, heads, tokens, prefix) in [(8, 12, 407, 407), (8, 12, 407, 257), (8, 3, 200, 200)] {
        let shape = AttentionShape { batch, tokens, heads, prefix };
        let w = heads * 64;
        let v = |n: usize, s| Philox::new(1, s).values(n);
        let qkv = Cpu.upload([batch * tokens, 3 * w], &v(batch * tokens * 3 * w, 0)).unwrap();
        let dy = Cpu.upload([batch * tokens, w], &v(batch * tokens * w, 1)).unwrap();
        let mask = Some(DropoutMask { probability: 0.1, seed: 1, stream: 2 });
        for mask in [None, mask] {
            let (y, l) = Cpu.attention_saving(&qkv, shape, mask).unwrap();
            let f = best(|| {
                Cpu.attention_saving(&qkv, shape, mask).unwrap();
            });
            let b = best(|| {
                Cpu.attention_backward(&dy, &qkv, &y, &l, shape, mask).unwrap();
            });
            println!(
                "attention B{batch} H{heads} T{tokens} prefix {prefix} dropout {}: forward {f:.2} ms, backward {b:.2} ms",
                mask.is_some()
            );
        }
    }
    for (m, c) in [(8 * 407, 768), (1600, 192)] {
        let v = |n: usize, s| Philox::new(1, s).values(n);
        let x = Cpu.upload([m, c], &v(m * c, 0)).unwrap();
        let dy = Cpu.upload([m, c], &v(m * c, 1)).unwrap();
        let norm = LayerNormWeights::<Cpu> {
            weight: Cpu.upload([1, c], &v(c, 2)).unwrap(),
            bias: Cpu.upload([1, c], &v(c, 3)).unwrap(),
            eps: 1e-5,
        };
        let (_, saved) = Cpu.layer_norm_saving(&x, &norm).unwrap();
        let mut g = vec![0.0; 4096];
        let p = |start| Parameter { start, rows: 1, columns: c };
        let f = best(|| {
            Cpu.layer_norm_saving(&x, &norm).unwrap();
        });
        let b = best(|| {
            Cpu.layer_norm_backward(
                &dy,
                &x,
                &norm,
                &saved,
                Some(&x),
                Some((&mut g, WeightAndBias { weight: p(0), bias: p(1024) })),
            )
            .unwrap();
        });
        let d = best(|| {
            Cpu.dropout(&x, DropoutMask { probability: 0.1, seed: 1, stream: 2 }, Some(&dy)).unwrap();
        });
        println!("{m}x{c}: layer norm forward {f:.3} ms, backward {b:.3} ms; dropout+residual {d:.3} ms");
    }
}
