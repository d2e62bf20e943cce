//! Reduces a long, noisy series to at most [`MAX_POINTS`] points. One function keeps the extremes, another the mean.

/// Largest number of points of a drawn line.
pub(super) const MAX_POINTS: usize = 400;

/// Largest number of points of a smooth line.
const MEANS: usize = 200;

/// Width of the smoothing window as a fraction of the series.
const WINDOW: f64 = 0.05;

/// Points `(x, y)`, finite and ascending in x.
pub(super) type Points = Vec<(f64, f64)>;

/// Reduces a series to at most [`MAX_POINTS`] points. Each interval keeps its lowest and its highest point, so a spike
/// of one step stays visible.
pub(super) fn thin(points: &[(f64, f64)]) -> Points {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    stretches(points, MAX_POINTS / 2).flat_map(extremes).collect()
}

/// A moving average: the mean of each interval, then a centred window of 5 % of the series.
pub(super) fn smooth(points: &[(f64, f64)]) -> Points {
    let means: Points = stretches(points, MEANS).map(mean).collect();
    let reach = (means.len() as f64 * WINDOW / 2.0).round() as usize;
    (0..means.len())
        .map(|i| {
            let window = &means[i.saturating_sub(reach)..(i + reach + 1).min(means.len())];
            (means[i].0, level(window, means[i].0))
        })
        .collect()
}

/// Value at `x` of a least-squares line through a window, clamped to the window's extremes. Within the series it equals
/// the window's mean. At the ends, where the window is one-sided, it does not lag behind a falling loss as the mean
/// would.
fn level(window: &[(f64, f64)], x: f64) -> f64 {
    let centre = mean(window);
    let (rise, run) = window.iter().fold((0.0, 0.0), |(rise, run), p| {
        let dx = p.0 - centre.0;
        (rise + dx * (p.1 - centre.1), run + dx * dx)
    });
    let slope = if run > 0.0 { rise / run } else { 0.0 };
    let (low, high) =
        window.iter().fold((centre.1, centre.1), |(low, high), p| (low.min(p.1), high.max(p.1)));
    (centre.1 + slope * (x - centre.0)).max(low).min(high)
}

/// Splits a series into at most `count` intervals of about equal length.
fn stretches(points: &[(f64, f64)], count: usize) -> impl Iterator<Item = &[(f64, f64)]> {
    points.chunks(points.len().div_ceil(count).max(1))
}

/// Lowest and highest point of an interval, in ascending x.
fn extremes(stretch: &[(f64, f64)]) -> Points {
    let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
    let low = stretch.iter().min_by(by_height);
    let high = stretch.iter().max_by(by_height);
    let mut ends: Points = low.into_iter().chain(high).copied().collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    ends
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len().max(1) as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / count, sum.1 + p.1 / count));
    (x, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_a_single_spike_and_the_bound() {
        let mut points: Points = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        points[54_321].1 = 9.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= MAX_POINTS);
        assert!(thinned.contains(&(54_321.0, 9.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn smoothing_leaves_a_straight_line_straight() {
        for count in [1, 2, 7, 399, 4_001] {
            let line: Points = (0..count).map(|i| (i as f64, 3.0 * i as f64 - 1.0)).collect();
            let smoothed = smooth(&line);
            assert!(!smoothed.is_empty() && smoothed.len() <= MEANS);
            for (x, y) in &smoothed {
                assert!((y - (3.0 * x - 1.0)).abs() < 1e-6, "{count}: ({x}, {y})");
            }
        }
    }

    #[test]
    fn smoothing_takes_alternating_noise_away() {
        let noisy: Points = (0..2_000).map(|i| (i as f64, if i % 2 == 0 { 4.0 } else { 6.0 })).collect();
        assert!(smooth(&noisy).iter().all(|p| (p.1 - 5.0).abs() < 1e-9));
    }

    #[test]
    fn a_steep_start_never_smooths_below_the_data() {
        let steep: Points = (0..100).map(|i| (f64::from(i), 0.01 + 0.1f64.powi(i))).collect();
        assert!(smooth(&steep).iter().all(|p| p.1 >= 0.01));
    }

    #[test]
    fn an_empty_series_stays_empty() {
        assert!(thin(&[]).is_empty() && smooth(&[]).is_empty());
    }
}
