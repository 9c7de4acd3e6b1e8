//! ROUGE-L (Lin, 2004) as pycocoevalcap computes it: the best precision and the best recall of all references, which need not
//! be those of the same one.

use super::Words;

/// Weight of the recall.
const BETA: f64 = 1.2;

/// Scores one caption.
pub(super) fn score(caption: &Words, references: &[Words]) -> f64 {
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in references {
        let common = longest_common_subsequence(&caption.pieces, &reference.pieces) as f64;
        precision = precision.max(common / caption.pieces.len() as f64);
        recall = recall.max(common / reference.pieces.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    let weight = BETA * BETA;
    (1.0 + weight) * precision * recall / (recall + weight * precision)
}

/// Length of the longest list of words that both hold in the same order.
fn longest_common_subsequence(a: &[u32], b: &[u32]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
