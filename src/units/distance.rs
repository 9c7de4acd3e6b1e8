//! The edit distance of unit sequences, and the error rate made of it.

/// Fewest insertions, deletions and substitutions that turn `a` into `b` (Levenshtein, 1966), in memory of one row.
pub fn edit_distance<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, recursively.
    fn slow(a: &[u8], b: &[u8]) -> usize {
        match (a, b) {
            ([], rest) | (rest, []) => rest.len(),
            ([x, a @ ..], [y, b @ ..]) if x == y => slow(a, b),
            ([_, c @ ..], [_, d @ ..]) => 1 + slow(c, b).min(slow(a, d)).min(slow(c, d)),
        }
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        let mut random = crate::random::Random::new(5);
        for _ in 0..200 {
            let mut draw = || {
                let len = random.below(7);
                (0..len).map(|_| random.below(3) as u8).collect::<Vec<_>>()
            };
            let (a, b) = (draw(), draw());
            assert_eq!(edit_distance(&a, &b), slow(&a, &b), "{a:?} {b:?}");
        }
        assert_eq!(edit_distance(b"kitten", b"sitting"), 3);
    }
}
