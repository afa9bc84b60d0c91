//! A straight line through samples.

/// In: (time, value). Out: the mean, and how much the fitted line rises from the first time to the last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trend {
    pub mean: f64,
    pub growth: f64,
}

impl Trend {
    /// Least squares; no growth where there are fewer than two times.
    pub fn of(samples: impl Iterator<Item = (f64, f64)>) -> Self {
        let samples: Vec<(f64, f64)> = samples.collect();
        let count = samples.len() as f64;
        if samples.is_empty() {
            return Self::default();
        }
        let (times, values): (f64, f64) =
            samples.iter().fold((0.0, 0.0), |(t, v), (at, value)| (t + at, v + value));
        let (middle, mean) = (times / count, values / count);
        let (above, below) = samples.iter().fold((0.0, 0.0), |(above, below), (at, value)| {
            (above + (at - middle) * (value - mean), below + (at - middle) * (at - middle))
        });
        let span = samples.last().map_or(0.0, |last| last.0) - samples.first().map_or(0.0, |first| first.0);
        Self { mean, growth: if below > 0.0 { above / below * span } else { 0.0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_its_own_trend() {
        let trend = Trend::of([(0.0, 10.0), (10.0, 12.0), (20.0, 14.0)].into_iter());
        assert!((trend.mean - 12.0).abs() < 1e-9 && (trend.growth - 4.0).abs() < 1e-9, "{trend:?}");
        assert!(Trend::of([(0.0, 10.0)].into_iter()).growth.abs() < 1e-9);
    }
}
