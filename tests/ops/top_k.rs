use im2sp::backend::TopValue;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::prelude::*;

use crate::{random, tensor};

fn pairs(row: &[TopValue]) -> Vec<(f32, u32)> {
    row.iter().map(|top| (top.value, top.column)).collect()
}

#[test]
fn takes_the_largest_in_order_the_lowest_column_first_on_ties() {
    let x = tensor(2, 4, &[0.0, 2.0, 2.0, 1.0, f32::NEG_INFINITY, -1.0, f32::INFINITY, -1.0]);
    let top = Cpu.top_k(&x, 3).unwrap();
    assert_eq!(pairs(&top[0]), [(2.0, 1), (2.0, 2), (1.0, 3)]);
    assert_eq!(pairs(&top[1]), [(f32::INFINITY, 2), (-1.0, 1), (-1.0, 3)]);
    assert_eq!(pairs(&Cpu.top_k(&tensor(1, 2, &[-0.0, 0.0]), 2).unwrap()[0])[0].1, 1, "0 is above -0");
}

#[test]
fn all_of_a_row_are_the_row_sorted() {
    let values = random(3).values(300);
    let top = &Cpu.top_k(&tensor(1, 300, &values), 300).unwrap()[0];
    let mut sorted = values.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(top.iter().map(|top| top.value).collect::<Vec<_>>(), sorted);
    assert!(top.iter().all(|top| values[top.column as usize] == top.value));
}

#[test]
fn edges_and_misfits() {
    let x = tensor(2, 2, &[0.0; 4]);
    assert_eq!(Cpu.top_k(&x, 0).unwrap(), [vec![], vec![]]);
    assert!(Cpu.top_k(&tensor(0, 2, &[]), 2).unwrap().is_empty());
    assert!(Cpu.top_k(&x, 3).is_err(), "more than there are");
    assert!(Cpu.top_k(&tensor(1, 2, &[1.0, f32::NAN]), 1).unwrap_err().to_string().contains("NaN"));
}
