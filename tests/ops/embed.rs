use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::common::assert_close;
use crate::{cases, matrix, narrow_matrix, ops, values, whole_matrix};

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
