//! Paired runs: the same traffic under each watcher, again and again, in alternating order.
//!
//! In: watchers, the first of which is what the others are compared with; a measurement of one or more numbers. Out: each
//! number's median under each watcher, and the ratio within a round, as median and quartiles. What always holds: each run
//! begins on a node without connections; a watcher runs for its own runs alone.

use std::path::Path;

use anyhow::Context as _;

use super::site::Site;
use super::watchers::Watcher;

/// `of[watcher][round][number]`
pub struct Rounds {
    of: Vec<Vec<Vec<f64>>>,
}

/// Runs all of them `rounds` times; `tell` says how far it is.
pub fn measure(
    site: &Site,
    watchers: &[&dyn Watcher],
    rounds: usize,
    tell: &dyn Fn(&str),
    run: &mut dyn FnMut(&Site) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Rounds> {
    let mut of: Vec<Vec<Vec<f64>>> = vec![Vec::new(); watchers.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..watchers.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let Some((watcher, of)) = watchers.get(index).zip(of.get_mut(index)) else { continue };
            let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
            let numbers = under(site, *watcher, folder.path(), run)
                .with_context(|| format!("round {}, {}", round + 1, watcher.name()))?;
            let shown: Vec<String> = numbers.iter().map(|number| format!("{number:.1}")).collect();
            tell(&format!("round {} of {rounds}, {}: {}", round + 1, watcher.name(), shown.join(", ")));
            of.push(numbers);
        }
    }
    Ok(Rounds { of })
}

fn under(
    site: &Site,
    watcher: &dyn Watcher,
    folder: &Path,
    run: &mut dyn FnMut(&Site) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Vec<f64>> {
    site.flush()?;
    let watching = watcher.start(site, folder)?;
    let numbers = run(site)?;
    watching.stop()?;
    Ok(numbers)
}

impl Rounds {
    fn column(&self, watcher: usize, number: usize) -> Vec<f64> {
        let rounds = self.of.get(watcher).map(Vec::as_slice).unwrap_or_default();
        rounds.iter().filter_map(|numbers| numbers.get(number).copied()).collect()
    }

    /// The median of a number under a watcher.
    pub fn median(&self, watcher: usize, number: usize) -> f64 {
        quantile(self.column(watcher, number), 0.5)
    }

    /// Under a watcher by under the first, round by round: lower quartile, median, upper quartile.
    pub fn ratio(&self, watcher: usize, number: usize) -> [f64; 3] {
        let pairs = self.column(watcher, number).into_iter().zip(self.column(0, number));
        let ratios: Vec<f64> = pairs.map(|(with, without)| with / without).collect();
        [0.25, 0.5, 0.75].map(|at| quantile(ratios.clone(), at))
    }
}

/// Between the two numbers next to it, in proportion.
fn quantile(mut numbers: Vec<f64>, at: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let place = at * (numbers.len().saturating_sub(1)) as f64;
    let (low, high) = (numbers.get(place.floor() as usize), numbers.get(place.ceil() as usize));
    low.zip(high).map_or(f64::NAN, |(low, high)| low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_within_a_round() {
        let of = vec![vec![vec![10.0], vec![20.0], vec![40.0]], vec![vec![9.0], vec![20.0], vec![20.0]]];
        let rounds = Rounds { of };
        assert!((rounds.median(0, 0) - 20.0).abs() < 1e-9);
        let [low, middle, high] = rounds.ratio(1, 0);
        assert!((low - 0.7).abs() < 1e-9 && (middle - 0.9).abs() < 1e-9 && (high - 0.95).abs() < 1e-9);
        assert!(quantile(Vec::new(), 0.5).is_nan());
    }
}
