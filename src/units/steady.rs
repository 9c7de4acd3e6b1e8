//! Units that do not flicker: of all ways to give every frame a unit, the cheapest.

/// A unit for each of the frames (T, `width`): the sum of squared distances from the centres (K, `width`), and of `price` for every
/// change from frame to frame, is least (Viterbi 1967). The first of equally cheap units; with a price of 0 the nearest centre.
pub fn steady(frames: &[f32], centres: &[f32], width: usize, price: f64) -> Vec<u32> {
    let count = centres.len() / width;
    let squared = |frame: &[f32], centre: &[f32]| -> f64 {
        frame.iter().zip(centre).map(|(f, c)| f64::from(f - c).powi(2)).sum()
    };
    // Before the first frame all units cost the same; `origins` are those from which the units of the next frame came.
    let (mut total, mut origins) = (vec![0.0; count], Vec::new());
    for frame in frames.chunks_exact(width) {
        let best = first_least(&total);
        let change = total.get(best).copied().unwrap_or(0.0) + price;
        for (unit, (total, centre)) in total.iter_mut().zip(centres.chunks_exact(width)).enumerate() {
            origins.push(if *total > change { best } else { unit } as u32);
            *total = total.min(change) + squared(frame, centre);
        }
    }
    let mut unit = first_least(&total) as u32;
    let mut units: Vec<u32> = origins
        .chunks_exact(count.max(1))
        .rev()
        .map(|origins| {
            let origin = origins[unit as usize];
            std::mem::replace(&mut unit, origin)
        })
        .collect();
    units.reverse();
    units
}

fn first_least(values: &[f64]) -> usize {
    (0..values.len()).reduce(|best, at| if values[at] < values[best] { at } else { best }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Cost of a choice of units.
    fn cost(frames: &[f32], centres: &[f32], width: usize, price: f64, units: &[u32]) -> f64 {
        let distance = |(frame, &unit): (&[f32], &u32)| -> f64 {
            let centre = &centres[unit as usize * width..][..width];
            frame.iter().zip(centre).map(|(f, c)| f64::from(f - c).powi(2)).sum()
        };
        let changes = units.windows(2).filter(|pair| pair[0] != pair[1]).count();
        frames.chunks_exact(width).zip(units).map(distance).sum::<f64>() + price * changes as f64
    }

    /// Every way to give six frames one of three units.
    #[test]
    fn nothing_is_cheaper() {
        let mut random = Random::new(5);
        for width in [1, 3] {
            let (frames, centres) = (random.values(6 * width), random.values(3 * width));
            for price in [0.0, 0.1, 0.5, 9.0] {
                let found = steady(&frames, &centres, width, price);
                let ways = (0..3u32.pow(6)).map(|way| (0..6).map(|n| way / 3u32.pow(n) % 3).collect::<Vec<_>>());
                let least =
                    ways.map(|units| cost(&frames, &centres, width, price, &units)).fold(f64::INFINITY, f64::min);
                let cost = cost(&frames, &centres, width, price, &found);
                assert!((cost - least).abs() < 1e-9, "{cost} against {least} at {price}: {found:?}");
            }
            let constant = steady(&frames, &centres, width, 1e9);
            assert!(constant.iter().all(|unit| *unit == constant[0]));
        }
    }

    #[test]
    fn edges() {
        assert!(steady(&[], &[1.0, 2.0], 1, 1.0).is_empty());
        assert_eq!(steady(&[5.0], &[1.0, 2.0, 2.0], 1, 1.0), [1]);
        assert_eq!(steady(&[1.0, 1.6, 1.0], &[1.0, 2.0], 1, 0.5), [0, 0, 0]);
        assert_eq!(steady(&[1.0, 1.6, 1.0], &[1.0, 2.0], 1, 0.0), [0, 1, 0]);
    }
}
