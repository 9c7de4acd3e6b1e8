//! The order of samples: shuffled by seed and epoch alone, shared out to ranks as PyTorch's DistributedSampler does.

use crate::random::Philox;

/// Stream of the first epoch.
const STREAM: u64 = 1 << 62;

/// The samples of epoch `epoch`, each once, in random order; then the first of them again until every one of `ranks` has as many.
pub fn epoch_order(count: usize, seed: u64, epoch: u64, ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let words = Philox::new(seed, STREAM + epoch);
    // Fisher and Yates; 64 bits, so that no place is likelier than another by more than 2^-32.
    for last in (1..count).rev() {
        let [a, b, ..] = words.block(last as u64);
        let word = u64::from(a) << 32 | u64::from(b);
        order.swap(last, ((u128::from(word) * (last as u128 + 1)) >> 64) as usize);
    }
    let padded = count.next_multiple_of(ranks.max(1));
    order.extend_from_within(..(padded - count).min(count));
    order
}

/// The batches of one rank after the first `done` samples of all: of each run of `batch * ranks` samples every `ranks`th, so that
/// the batches of all ranks together are one batch of a rank alone.
pub fn rank_batches(order: &[usize], done: u64, batch: usize, [rank, ranks]: [usize; 2]) -> Vec<Vec<usize>> {
    let rest = usize::try_from(done).ok().and_then(|done| order.get(done..)).unwrap_or_default();
    let of_rank = |run: &[usize]| run.iter().copied().skip(rank).step_by(ranks.max(1)).collect();
    rest.chunks((batch * ranks).max(1)).map(of_rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_comes_once_in_an_order_of_its_epoch() {
        for count in [0, 1, 2, 7, 1000] {
            let orders = [0, 1].map(|epoch| epoch_order(count, 5, epoch, 1));
            for order in &orders {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            }
            assert!(count < 7 || orders[0] != orders[1]);
        }
        assert_ne!(epoch_order(100, 5, 0, 1), epoch_order(100, 6, 0, 1));
    }

    /// Each place takes each sample about as often: 5 standard deviations of 24,000 draws of probability 1/4 are 335.
    #[test]
    fn orders_are_uniform() {
        let mut counts = [[0i32; 4]; 4];
        for epoch in 0..24_000 {
            for (place, sample) in epoch_order(4, 1, epoch, 1).into_iter().enumerate() {
                counts[place][sample] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|count| (count - 6000).abs() < 335), "{counts:?}");
    }

    #[test]
    fn ranks_share_what_one_would_take() {
        for (count, batch, ranks) in [(24, 2, 3), (25, 2, 3), (5, 4, 2), (1, 1, 4), (0, 2, 2)] {
            let order = epoch_order(count, 9, 2, ranks);
            let shares: Vec<_> = (0..ranks).map(|rank| rank_batches(&order, 0, batch, [rank, ranks])).collect();
            let alone = rank_batches(&order, 0, batch * ranks, [0, 1]);
            for (step, whole) in alone.iter().enumerate() {
                let mut together: Vec<usize> = shares.iter().flat_map(|share| share[step].clone()).collect();
                let mut whole = whole.clone();
                together.sort_unstable();
                whole.sort_unstable();
                assert_eq!(together, whole);
            }
            assert!(shares.iter().all(|share| share.len() == alone.len()));
            // A resumed epoch has the rest.
            let done = (batch * ranks) as u64;
            assert_eq!(rank_batches(&order, done, batch, [0, ranks]), shares[0].get(1..).unwrap_or_default());
        }
    }
}
