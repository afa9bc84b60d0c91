//! What the tests that failed said, out of the output of `cargo test`.
//!
//! In: its lines, one by one. Out: each failure by itself, to be told once more after all else: a log that is long is read
//! from its end. Always: of one failure no more than its beginning and its end are kept.

use std::collections::VecDeque;

/// Lines that are kept of a failure's beginning, and as many of its end.
const KEPT: usize = 40;

#[derive(Default)]
pub struct Failures {
    list: Vec<Failure>,
    /// In the part of a program's output in which those that failed say why.
    explains: bool,
}

struct Failure {
    name: String,
    head: Vec<String>,
    tail: VecDeque<String>,
}

impl Failures {
    pub fn take(&mut self, line: &str) {
        // `failures:` stands before the explanations, and once more before the list of the names.
        if line == "successes:" || line == "failures:" || line.starts_with("test result: ") {
            self.explains = line == "failures:" && !self.explains;
        } else if self.explains {
            match heading(line) {
                Some(name) => {
                    self.list.push(Failure { name: name.to_owned(), head: Vec::new(), tail: VecDeque::new() })
                }
                None => self.list.last_mut().into_iter().for_each(|failure| failure.take(line)),
            }
        }
    }

    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().flat_map(|failure| {
            let said = failure.head.iter().chain(&failure.tail).map(|line| format!("  {line}"));
            std::iter::once(format!("FAILED {}", failure.name)).chain(said)
        })
    }
}

impl Failure {
    fn take(&mut self, line: &str) {
        if self.head.len() < KEPT {
            return self.head.push(line.to_owned());
        }
        if self.tail.len() == KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }
}

/// The test whose output follows this line.
fn heading(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_is_told_again_and_of_that_both_ends() {
        let mut failures = Failures::default();
        let long: String = (0..1000).map(|i| format!("line {i}\n")).collect();
        let output = format!(
            "running 3 tests\ntest a ... ok\n\nsuccesses:\n\n---- a stdout ----\nfine\n\nsuccesses:\n    a\n\nfailures:\n\
             \n---- b stdout ----\nwhy\n---- c stdout ----\n{long}\nfailures:\n    b\n    c\n\ntest result: FAILED. 1 passed\n\
             ---- d stdout ----\nno test\n"
        );
        output.lines().for_each(|line| failures.take(line));
        let told: Vec<String> = failures.lines().collect();
        assert_eq!(told[..4], ["FAILED b", "  why", "FAILED c", "  line 0"]);
        assert_eq!((told.len(), told[told.len() - 2].as_str()), (3 + 2 * KEPT, "  line 999"));
    }
}
