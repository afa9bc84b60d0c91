//! Text for a terminal: width, colour, and nothing in it that a terminal would obey.
//!
//! In: text from lines, which may hold anything that a pod's owner could name. Out: cells of exact width. Always: no
//! control character, no invisible one and none that turns the direction of writing leaves this file unescaped; a cell
//! is as wide as it says, also with wide characters; colour only where it was decided.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use unicode_width::UnicodeWidthChar as _;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

/// How to paint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    pub width: usize,
    /// Rows; as many as are wanted where it is no terminal.
    pub height: usize,
    /// The width was asked for: it stays.
    fixed: bool,
    pub color: bool,
    /// Stdout is a terminal.
    pub terminal: bool,
}

/// Columns of a terminal that says nothing of itself.
const USUAL: usize = 80;
const NARROWEST: usize = 40;
const WIDEST: usize = 1000;

impl Screen {
    pub fn of_stdout(width: Option<u16>, color: Color) -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let fixed = width.is_some();
        let size = rustix::termios::tcgetwinsize(&stdout).ok();
        let own = size.map(|size| size.ws_col).filter(|columns| *columns > 0);
        let told = || std::env::var("COLUMNS").ok()?.parse().ok();
        let width = width.or(own).or_else(told).map_or(USUAL, usize::from);
        let rows = size.map(|size| usize::from(size.ws_row)).filter(|rows| terminal && *rows > 0);
        let height = rows.unwrap_or(usize::MAX);
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        };
        Self { width: width.clamp(NARROWEST, WIDEST), height, fixed, color, terminal }
    }

    /// The same as it is now: terminals change their size.
    pub fn again(&self) -> Self {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0);
        let Some(size) = size.filter(|_| self.terminal) else { return *self };
        let width = if self.fixed { self.width } else { usize::from(size.ws_col).clamp(NARROWEST, WIDEST) };
        Self { width, height: size.ws_row.into(), ..*self }
    }

    pub fn paint(&self, paint: Paint, text: &str, out: &mut String) {
        let code = match paint {
            _ if !self.color => "",
            Paint::Plain => "",
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Red => "31",
            Paint::Green => "32",
            Paint::Yellow => "33",
        };
        if code.is_empty() {
            out.push_str(text);
        } else {
            out.extend(["\x1b[", code, "m", text, "\x1b[0m"]);
        }
    }
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// What a terminal would obey, made visible.
pub fn safe(text: &str) -> String {
    if !text.chars().any(is_unsafe) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

pub fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Exactly `columns` wide: filled with spaces, or shortened in the middle, where names differ least.
pub fn cell(text: &str, columns: usize, right: bool) -> String {
    let text = safe(text);
    let wide = width(&text);
    if wide <= columns {
        let fill = " ".repeat(columns - wide);
        return if right { fill + &text } else { text + &fill };
    }
    if columns == 0 {
        return String::new();
    }
    let (head, tail) = (columns / 2, (columns - 1) / 2);
    let mut left = String::new();
    let mut used = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > head {
            break;
        }
        used += wide;
        left.push(c);
    }
    let mut right_side: Vec<char> = Vec::new();
    let mut kept = 0;
    for c in text.chars().rev() {
        let wide = c.width().unwrap_or(0);
        if kept + wide > tail {
            break;
        }
        kept += wide;
        right_side.push(c);
    }
    let fill = " ".repeat(columns - 1 - used - kept);
    left + "…" + &right_side.into_iter().rev().collect::<String>() + &fill
}

/// `1234` as `1234`, `12345` as `12.3k`: at most five characters, powers of 1000.
pub fn short(n: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if n < 10_000 {
        return n.to_string();
    }
    let mut value = n as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if value < 99.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_short() {
        for (n, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(n), text);
        }
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(cell("shop/checkout-service-6d9f7c-*", 12, false), "shop/c…f7c-*");
        assert_eq!(cell("日本語日本語", 5, false), "日…語");
        assert_eq!(cell("ab", 4, true), "  ab");
        assert_eq!(cell("\x1b[2J", 20, false).trim_end(), "\\u{1b}[2J");
    }

    proptest! {
        #[test]
        fn cells_are_as_wide_as_they_say_and_hold_nothing_that_a_terminal_obeys(
            text in prop_oneof![any::<String>(), "[\\x00-\u{9f}\u{200b}\u{202e}a]{0,20}"],
            columns in 0..40usize,
        ) {
            let cell = cell(&text, columns, false);
            prop_assert_eq!(width(&cell), columns);
            prop_assert!(!cell.chars().any(is_unsafe));
            prop_assert!(short(text.len() as u64 * 7919).len() <= 5);
        }
    }
}
