//! rsyslog's imfile state: one file in the work directory for each file that it follows, `imfile-state:<inode>` and for
//! small files `:<hash>` behind it, with a JSON object of the file's name and offsets.
//!
//! `curr_offs` is how far the file was read, `strt_offs` (newer versions) where the first line begins that was not
//! handed on; what is between them is lost to a stop, so the lesser counts. Unknown members are left alone.
//! It is written every `persistStateInterval` lines (0, the default: only at a stop): it has to be set for the position
//! to follow. In: path and text. Out: one position. Always: what fits not is an error.

use std::path::Path;

use serde::Deserialize;

use super::Position;

const PREFIX: &str = "imfile-state:";

#[derive(Deserialize)]
struct State {
    filename: String,
    curr_offs: i64,
    strt_offs: Option<i64>,
}

/// The inode in the name of a state file.
pub(super) fn inode_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(PREFIX)?.split(':').next()?.parse().ok()
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Position, String> {
    let state: State = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let inode = inode_of(path).ok_or("its name is not imfile-state:<inode>, so that it names no file")?;
    let offset = state.curr_offs.min(state.strt_offs.unwrap_or(state.curr_offs));
    let offset = u64::try_from(offset).map_err(|_| "an offset is negative")?;
    Ok(Position { path: state.filename, inode, offset })
}
