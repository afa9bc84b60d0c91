//! Fluentd's `pos_file` (in_tail): a line a file, `path TAB offset TAB inode`, both numbers hexadecimal.
//!
//! The format is that of in_tail's `PositionFile` (16 digits since 0.10; older files have fewer). An offset of sixteen
//! `f` marks a file that is watched no more: there is no position of it.
//! In: the text. Out: positions. Always: a line that fits not is an error that names it.

use super::{MAX_POSITIONS, Position};

/// A line is padded so, and a file is marked as let go.
const UNWATCHED: u64 = u64::MAX;

pub(super) fn parse(text: &str) -> Result<Vec<Position>, String> {
    let mut positions = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        if positions.len() >= MAX_POSITIONS {
            return Err(format!("it has more than {MAX_POSITIONS} lines"));
        }
        let position = parse_line(line).ok_or_else(|| {
            format!("line {number} is not a path, an offset and an inode with tabs between")
        })?;
        if position.offset != UNWATCHED {
            positions.push(position);
        }
    }
    Ok(positions)
}

fn parse_line(line: &str) -> Option<Position> {
    // From the right: a path may hold a tab.
    let (rest, inode) = line.trim_end().rsplit_once('\t')?;
    let (path, offset) = rest.rsplit_once('\t')?;
    let number = |text: &str| {
        let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    Some(Position { path: path.to_owned(), offset: number(offset)?, inode: number(inode)? })
}
