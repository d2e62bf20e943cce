//! Axes of a chart: range, ticks and labels. [`Axis`] is a custom coordinate of plotters, because plotters draws almost
//! no ticks on a logarithmic axis of less than a decade and does not abbreviate thousands.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Values with a larger magnitude, or a smaller one on a logarithmic axis, are treated as infinite: differences of them
/// would overflow.
const FAR: f64 = 1e30;

/// Approximate number of ticks.
const TICKS: f64 = 6.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Log,
}

impl Scale {
    /// The position of a value on the axis; `None` if it cannot be drawn.
    pub(super) fn place(self, value: f64) -> Option<f64> {
        match self {
            Scale::Linear => (value.abs() <= FAR).then_some(value),
            Scale::Log => (1.0 / FAR..=FAR).contains(&value).then(|| value.log10()),
        }
    }
}

/// An axis of values. Its range is finite and not empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    /// Range of positions, as given by [`Scale::place`].
    places: Range<f64>,
    /// Values and labels, ascending.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis whose range is exactly that of the values; `None` if no value can be drawn.
    pub(super) fn tight(scale: Scale, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Some(Self::new(scale, extent(scale, values)?))
    }

    /// An axis with margins below and above the values. A linear axis that starts at zero has no margin below.
    pub(super) fn padded(scale: Scale, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let Range { start, end } = extent(scale, values)?;
        let air = (end - start) * 0.06;
        let below = if scale == Scale::Linear && start == 0.0 { 0.0 } else { air };
        Some(Self::new(scale, start - below..end + air))
    }

    fn new(scale: Scale, places: Range<f64>) -> Self {
        let ticks = match scale {
            Scale::Linear => linear_ticks(&places),
            Scale::Log => log_ticks(&places),
        };
        Self { scale, places, ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        // Values without a position are filtered out before; map others to the start.
        let place = self.scale.place(*value).unwrap_or(self.places.start);
        let part = (place - self.places.start) / (self.places.end - self.places.start);
        from + (f64::from(to - from) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|tick| tick.0).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        match self.scale {
            Scale::Linear => self.places.clone(),
            Scale::Log => 10f64.powf(self.places.start)..10f64.powf(self.places.end),
        }
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|tick| tick.0 == *value);
        // Only ticks have labels.
        tick.map_or_else(String::new, |tick| tick.1.clone())
    }
}

/// The range of the positions, widened if all values are equal.
fn extent(scale: Scale, values: impl IntoIterator<Item = f64>) -> Option<Range<f64>> {
    let places = values.into_iter().filter_map(|value| scale.place(value));
    let (low, high) =
        places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p), high.max(p)));
    if low > high {
        return None;
    }
    let size = low.abs().max(high.abs());
    if high - low > size * 1e-6 {
        return Some(low..high);
    }
    let widen = if scale == Scale::Log { 0.2 } else { (size * 0.1).max(0.5) };
    Some(low - widen..high + widen)
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(values: &Range<f64>) -> Vec<(f64, String)> {
    let rough = (values.end - values.start) / TICKS;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| *step >= rough * 0.8)
        .unwrap_or(10.0 * magnitude);
    // A small tolerance keeps ticks at the ends despite rounding.
    let first = (values.start / step - 1e-6).ceil() as i64;
    let last = (values.end / step + 1e-6).floor() as i64;
    (first..=last).map(|k| k as f64 * step).map(|value| (value, short(value, step))).collect()
}

/// Powers of ten if there are enough of them; otherwise 1, 2 and 5 in each decade; otherwise the ticks of a linear
/// axis.
fn log_ticks(places: &Range<f64>) -> Vec<(f64, String)> {
    let decades = places.end - places.start;
    let every = (decades / TICKS).ceil().max(1.0) as i32;
    let factors: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = places.start.floor() as i32..=places.end.ceil() as i32;
    let ticks: Vec<_> = powers
        .filter(|power| power.rem_euclid(every) == 0)
        .flat_map(|power| factors.iter().map(move |factor| (factor * 10f64.powi(power), 10f64.powi(power))))
        .filter(|(value, _)| places.contains(&value.log10()))
        .map(|(value, digit)| (value, short(value, digit)))
        .collect();
    if ticks.len() >= 3 {
        return ticks;
    }
    linear_ticks(&(10f64.powf(places.start)..10f64.powf(places.end)))
}

/// An abbreviated number of images: `950`, `20k`, `1.5M`.
pub(super) fn count(value: u64) -> String {
    let value = value as f64;
    // Round to three digits.
    let digit = 10f64.powf((value.max(1.0).log10() - 2.0).floor().max(0.0));
    short((value / digit).round() * digit, digit)
}

/// A number in its shortest form, exact to `digit`: `1.5M`, `200k`, `0.02`, `5e-5`.
fn short(value: f64, digit: f64) -> String {
    let size = value.abs();
    if size < digit * 0.5 {
        return "0".into();
    }
    if !(1e-3..1e15).contains(&size) {
        let places = (size.log10().floor() - digit.log10().floor()).clamp(0.0, 6.0) as usize;
        return format!("{value:.places$e}");
    }
    let (unit, name) = match size {
        _ if size < 9_999.5 => (1.0, ""),
        _ if size < 1e6 => (1e3, "k"),
        _ if size < 1e9 => (1e6, "M"),
        _ => (1e9, "G"),
    };
    let places = (-(digit / unit * 1.000_001).log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{:.places$}", value / unit);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{name}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.1.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let axis = |scale, values: [f64; 2]| Axis::tight(scale, values).unwrap();
        assert_eq!(labels(&axis(Scale::Linear, [0.0, 1.0])), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        let images = axis(Scale::Linear, [0.0, 1.25e6]);
        assert_eq!(labels(&images), ["0", "200k", "400k", "600k", "800k", "1M", "1.2M"]);
        assert_eq!(labels(&axis(Scale::Linear, [-3.0, 3.0])), ["-3", "-2", "-1", "0", "1", "2", "3"]);
        assert_eq!(labels(&axis(Scale::Log, [0.009, 0.6])), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(labels(&axis(Scale::Log, [0.5e-5, 2.0])), ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(&axis(Scale::Log, [0.0205, 0.0245])), ["0.021", "0.022", "0.023", "0.024"]);
    }

    #[test]
    fn every_axis_is_finite_and_has_few_ticks() {
        let values = [0.0, -1e30, 1e30, 1e-30, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, 65.0, 65.000_001];
        for scale in [Scale::Linear, Scale::Log] {
            for a in values {
                for b in values {
                    for axis in
                        [Axis::tight(scale, [a, b]), Axis::padded(scale, [a, b])].into_iter().flatten()
                    {
                        assert!(axis.places.start < axis.places.end, "{scale:?} {a} {b}");
                        assert!(axis.places.start.is_finite() && axis.places.end.is_finite());
                        assert!((1..=14).contains(&axis.ticks.len()), "{scale:?} {a} {b} {:?}", axis.ticks);
                    }
                }
            }
        }
        assert_eq!(Axis::tight(Scale::Linear, [f64::NAN]), None);
        assert_eq!(Axis::tight(Scale::Log, [0.0, -1.0]), None);
    }

    #[test]
    fn counts_are_abbreviated() {
        let said = [(0, "0"), (950, "950"), (20_000, "20k"), (1_500_000, "1.5M"), (51_234_567, "51.2M")];
        for (value, text) in said {
            assert_eq!(count(value), text);
        }
    }
}
