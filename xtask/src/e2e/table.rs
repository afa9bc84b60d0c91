//! What was looked at, a line each.
//!
//! In: checks, each of which gives its figures or an error. Out: `PASS` or `FAIL` with the time since the start, the name, the figures. What
//! always holds: a check that fails does not hide those after it, and the whole is good only when each was.

use std::time::Instant;

use anyhow::ensure;

pub struct Table {
    began: Instant,
    passed: usize,
    failed: Vec<String>,
}

impl Table {
    pub fn new() -> Self {
        Self { began: Instant::now(), passed: 0, failed: Vec::new() }
    }

    /// What came of the check; nothing when it failed.
    pub fn check<T>(&mut self, name: &str, check: impl FnOnce() -> anyhow::Result<(T, String)>) -> Option<T> {
        let outcome = check();
        let at = self.began.elapsed().as_secs_f64();
        match outcome {
            Ok((value, figures)) => {
                println!("PASS {at:6.1} s  {name}: {figures}");
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                println!("FAIL {at:6.1} s  {name}: {error:#}");
                self.failed.push(name.to_owned());
                None
            }
        }
    }

    /// As [`Table::check`], for what all later checks stand on.
    pub fn need<T>(
        &mut self,
        name: &str,
        check: impl FnOnce() -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        self.check(name, check)
            .ok_or_else(|| anyhow::anyhow!("{name}: failed, what comes after it was not run"))
    }

    pub fn finish(&self) -> anyhow::Result<()> {
        println!(
            "e2e: {} passed, {} failed, {:.0} s",
            self.passed,
            self.failed.len(),
            self.began.elapsed().as_secs_f64()
        );
        ensure!(self.failed.is_empty(), "failed: {}", self.failed.join("; "));
        Ok(())
    }
}
