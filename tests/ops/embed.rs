use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;
use im2sp::backend::{EmbedTables, Parameter};

use crate::common::assert_close;
use crate::{cases, matrix, narrow_matrix, ops, parameters, random, tensor, values, whole_matrix};

#[test]
fn equals_golden() {
    let golden = ops();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(crate::common::golden("ops.json")).unwrap()).unwrap();
    for case in cases(&golden, "embedding", "ids") {
        let get = |name: &str| golden.get(&format!("{case}.{name}"));
        let ((w_shape, words), (p_shape, places)) = (get("words"), get("positions"));
        let ids = golden.u32(&format!("{case}.ids"));
        let start = index[&case]["parameters"]["start"].as_u64().unwrap() as u32;
        let positions: Vec<u32> = (start..).take(ids.len()).collect();
        let (words, places) = (matrix(w_shape[0], w_shape[1], &words), matrix(p_shape[0], p_shape[1], &places));
        let y = Cpu.embed(&words, &places, &ids, &positions).unwrap();
        assert_close(&case, &values(&y), &get("y").1, 1);
    }
}

#[test]
fn columns_are_stacked_rows() {
    let (a, b) = (matrix(3, 2, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), narrow_matrix(2, 1, &[7.0, 8.0]));
    let y = Cpu.embed_frames(&[(&a, &[2, 0, 1]), (&b, &[1, 1, 0])]).unwrap();
    assert_eq!(Cpu.shape(&y), [3, 3]);
    assert_eq!(values(&y), [4.0, 0.0, 2.0, 5.0, 1.0, 3.0, 8.0, 8.0, 7.0]);
}

#[test]
fn codes_are_read_as_what_they_stand_for() {
    let words: Vec<f32> = (0..37 * 5).map(|i| (i % 127) as f32).collect();
    let (table, wide) = (whole_matrix(37, 5, &words), matrix(37, 5, &words));
    let ids = [36, 0, 17, 15, 16];
    let sums = |words| values(&Cpu.embed(words, &table, &ids, &[1, 2, 3, 4, 5]).unwrap());
    assert_eq!(sums(&table), sums(&wide));
    let columns = |table| values(&Cpu.embed_frames(&[(table, &ids)]).unwrap());
    assert_eq!(columns(&table), columns(&wide));
}

#[test]
fn edges_and_misfits() {
    let table = matrix(3, 2, &[0.0; 6]);
    assert_eq!(Cpu.shape(&Cpu.embed(&table, &table, &[], &[]).unwrap()), [0, 2]);
    assert_eq!(Cpu.shape(&Cpu.embed_frames(&[(&table, &[])]).unwrap()), [2, 0]);
    assert!(Cpu.embed(&table, &table, &[3], &[0]).is_err(), "no such word");
    assert!(Cpu.embed(&table, &table, &[0], &[3]).is_err(), "no such position");
    assert!(Cpu.embed(&table, &matrix(3, 1, &[0.0; 3]), &[0], &[0]).is_err(), "other widths");
    assert!(Cpu.embed_frames(&[(&table, &[0]), (&table, &[0, 1])]).is_err(), "other lengths");
    assert!(Cpu.embed_frames(&[(&table, &[9])]).is_err(), "no such row");
}

/// Every value of the block, the ones between the tables included, in the order of the rows.
#[test]
fn backward_adds_rows_in_their_order() {
    let mut random = random(25);
    for (rows, words, places, columns, ignored) in [
        (1, 1, 1, 1, None),
        (9, 4, 3, 5, Some(0)),
        (200, 203, 40, 33, Some(7)),
        (64, 2, 64, 128, None),
        (3, 2, 2, 4, Some(9)),
    ] {
        let ([table, position], len) = parameters([[words, columns], [places, columns]]);
        let dy = random.values(rows * columns);
        let mut draw = |end| (0..rows).map(|_| random.below(end) as u32).collect::<Vec<u32>>();
        let (ids, positions) = (draw(words), draw(places));
        let mut expected = random.values(len);
        let mut gradients = expected.clone();
        for (row, dy) in dy.chunks_exact(columns).enumerate() {
            let word = (Some(ids[row]) != ignored).then_some((table, ids[row]));
            for (table, id) in word.into_iter().chain([(position, positions[row])]) {
                let start = table.start + id as usize * columns;
                expected[start..][..columns].iter_mut().zip(dy).for_each(|(sum, v)| *sum += v);
            }
        }
        let dy = tensor(rows, columns, &dy);
        Cpu.embed_backward(&dy, &ids, &positions, ignored, &mut gradients, EmbedTables { table, position }).unwrap();
        assert_eq!(gradients, expected, "{rows} of {words}+{places}x{columns}");
    }
}

/// The loss sum(y g) of `y = table[ids] + position[positions]` is linear, so a step of 1 has its slope.
#[test]
fn backward_is_the_slope_of_the_forward_form() {
    let ([table, position], len) = parameters([[3, 2], [2, 2]]);
    let (ids, positions) = ([2, 0, 2, 1], [0, 1, 1, 0]);
    let g = [1.0, -2.0, 3.0, 5.0, -7.0, 11.0, 13.0, 17.0];
    let mut gradients = vec![0.0; len];
    let at = EmbedTables { table, position };
    Cpu.embed_backward(&tensor(4, 2, &g), &ids, &positions, None, &mut gradients, at).unwrap();
    let loss = |block: &[f32]| -> f32 {
        let part = |at: Parameter| matrix(at.rows, at.columns, &block[at.range()]);
        let y = values(&Cpu.embed(&part(table), &part(position), &ids, &positions).unwrap());
        y.iter().zip(g).map(|(y, g)| y * g).sum()
    };
    for index in table.range().chain(position.range()) {
        let mut block = vec![0.0; len];
        block[index] = 1.0;
        assert_eq!(gradients[index], loss(&block), "{index}");
    }
}

#[test]
fn backward_edges_and_misfits() {
    let ([table, position], len) = parameters([[3, 2], [4, 2]]);
    let at = EmbedTables { table, position };
    let run = |rows: usize, ids: &[u32], positions: &[u32], len: usize, at: EmbedTables| {
        let mut gradients = vec![1.0; len];
        let dy = tensor(rows, 2, &vec![0.5; rows * 2]);
        Cpu.embed_backward(&dy, ids, positions, Some(1), &mut gradients, at).map(|()| gradients)
    };
    assert_eq!(run(0, &[], &[], len, at).unwrap(), vec![1.0; len]);
    assert!(run(1, &[2], &[3], len, at).is_ok());
    assert!(run(1, &[3], &[3], len, at).is_err(), "no such word");
    assert!(run(1, &[2], &[4], len, at).is_err(), "no such position");
    assert!(run(2, &[2], &[3], len, at).is_err(), "other lengths");
    assert!(run(1, &[2], &[3], position.start, at).is_err(), "beyond the gradients");
    let narrow = EmbedTables { table: Parameter { columns: 1, ..table }, ..at };
    assert!(run(1, &[2], &[3], len, narrow).is_err(), "another width");
    let odd = EmbedTables { table: Parameter { start: 1, ..table }, ..at };
    assert!(run(1, &[2], &[3], len, odd).is_err(), "not aligned");
}
