//! `flowlogd observe` on a real terminal: tmux is the terminal, and says what stands on it.
//!
//! In: a log that grows, a terminal that changes its size, ctrl-C. Out: what stands on the screen. Always: waiting is for a
//! condition. Needs tmux; where it is missing the test says so. Not here: what a table says (`observe.rs`).

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal of its own server, with a shell in it.
struct Terminal(String);

impl Terminal {
    fn open(columns: u16, rows: u16) -> Option<Self> {
        if !Command::new("tmux").arg("-V").output().is_ok_and(|out| out.status.success()) {
            println!("SKIPPED observe on a terminal: there is no tmux: install it");
            return None;
        }
        let terminal = Self(format!("flowlogd{}x{columns}", std::process::id()));
        let size = [columns.to_string(), rows.to_string()];
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &size[0],
            "-y",
            &size[1],
            "env PS1='$ ' sh",
        ]);
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let out = Command::new("tmux").args(["-L", &self.0]).args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn run(&self, command: &str) {
        self.tmux(&["send-keys", "-l", command]);
        self.tmux(&["send-keys", "Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen is so.
    fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if is(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "{what} did not happen:\n{screen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the device has the size: tmux passes it on when it pleases.
    fn until_sized(&self, size: &str) {
        let device = self.tmux(&["display-message", "-p", "#{pane_tty}"]);
        self.until("the new size", |_| {
            let out = Command::new("stty").args(["-F", device.trim(), "size"]).output().unwrap();
            String::from_utf8_lossy(&out.stdout).trim() == size
        });
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.0, "kill-server"]).output();
    }
}

fn recorded() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/observe");
    ["flows.log.2", "flows.log.1", "flows.log"]
        .map(|name| fs::read_to_string(folder.join(name)).unwrap())
        .concat()
}

/// A log of the first `lines` lines, and the rest.
fn log(folder: &Path, lines: usize) -> (PathBuf, String) {
    let all = recorded();
    let split = all.match_indices('\n').nth(lines - 1).unwrap().0 + 1;
    let path = folder.join("flows.log");
    fs::write(&path, &all[..split]).unwrap();
    (path, all[split..].to_owned())
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_flowlogd");

#[test]
fn a_summary_stands_in_its_place_while_it_grows_and_the_terminal_changes() {
    let Some(terminal) = Terminal::open(100, 16) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (path, rest) = log(folder.path(), 3);
    terminal.run(&format!("{PROGRAM} observe --top talkers --follow {}", path.display()));
    let is_one = |screen: &str| screen.matches("BYTES PACKETS").count() == 1;
    let small = terminal.until("the first summary", |screen| screen.contains("from 3 lines"));
    assert!(is_one(&small), "{small}");
    append(&path, &rest);
    let of_all = format!("from {} lines", recorded().lines().count());
    let whole = terminal.until("the summary of all", |screen| screen.contains(&of_all));
    // There are more keys than rows: all that fits stands there, once, with its titles.
    assert!(is_one(&whole) && !whole.contains("from 3 lines"), "{whole}");
    assert!(whole.contains("13 of "), "{whole}");

    for (columns, rows) in [(60, 10), (140, 30)] {
        terminal.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
        let shown = format!("{} of ", std::cmp::min(20, rows - 3));
        let screen = terminal.until("it is drawn anew", |screen| screen.contains(&shown));
        assert!(is_one(&screen), "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= columns), "{screen}");
    }

    // Ctrl-C: the shell is there again, with its cursor, below what was shown last.
    terminal.tmux(&["send-keys", "C-c"]);
    let screen = terminal.until("the prompt", |screen| screen.trim_end().ends_with('$'));
    assert!(is_one(&screen), "{screen}");
    assert_eq!(terminal.tmux(&["display-message", "-p", "#{cursor_flag}#{alternate_on}"]).trim(), "10");
    terminal.run("stty -a | grep -c ' echo '");
    terminal.until("the terminal echoes", |screen| screen.contains("\n1\n"));
}

#[test]
fn a_table_that_is_followed_fits_the_terminal_as_it_is_now() {
    let Some(terminal) = Terminal::open(80, 24) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (path, rest) = log(folder.path(), 3);
    terminal.run(&format!("{PROGRAM} observe --utc --follow {}", path.display()));
    let screen = terminal.until("three rows", |screen| screen.matches(" allow ").count() == 3);
    assert!(!screen.contains("PKTS"), "80 columns: {screen}");
    terminal.tmux(&["resize-window", "-x", "160", "-y", "24"]);
    terminal.until_sized("24 160");
    // Rows that come are of the new width, under titles of their own; those that stand stay.
    let next = rest.lines().next().unwrap();
    append(&path, &format!("{next}\n"));
    let screen = terminal.until("a row of the new width", |screen| screen.contains("PKTS IN/OUT"));
    assert_eq!(screen.matches("TIME     REP").count(), 2, "{screen}");

    // A reader that has enough ends it, silently.
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.run(&format!(
        "clear; {PROGRAM} observe {} | head -n 1 | wc -l; printf 'do%s\\n' ne",
        path.display()
    ));
    let screen = terminal.until("the end", |screen| screen.contains("done"));
    assert!(!screen.contains("panicked") && !screen.contains("error"), "{screen}");
}
