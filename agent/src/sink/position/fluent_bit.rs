//! Fluent Bit's database (in_tail's `DB`): SQLite, table `in_tail_files(id, name, offset, inode, created, rotated)`.
//!
//! In: the path. Out: positions. Read through SQLite itself (rusqlite, bundled): the newest positions are in its
//! write-ahead log, and nobody should read that by hand. Opened read-only: in WAL mode readers hold up nobody, and where
//! the shipper locks its database (`db.locking true`) the error says so. Where the folder cannot be written by us,
//! a database without a log beside it is read as it lies there.
//! Always: bounded: a table only (a view could compute for ever), so many rows, so many steps.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{MAX_POSITIONS, Position, PositionError};

pub(super) const MAGIC: &[u8] = b"SQLite format 3\0";

/// How long a writer may hold us up.
const BUSY: Duration = Duration::from_millis(50);
/// Steps of SQLite's machine, in thousands, after which a query is given up.
const THOUSANDS: u32 = 5_000;

pub(super) fn read(path: &Path) -> Result<Vec<Position>, PositionError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let outcome =
        Connection::open_with_flags(path, flags).map_err(PositionError::from).and_then(|mut c| rows(&mut c));
    match outcome {
        Err(PositionError::Database(error)) if cannot_open(&error) && !has_log(path) => {
            let flags = flags | OpenFlags::SQLITE_OPEN_URI;
            rows(&mut Connection::open_with_flags(as_it_lies(path), flags)?)
        }
        outcome => outcome,
    }
}

fn rows(database: &mut Connection) -> Result<Vec<Position>, PositionError> {
    database.busy_timeout(BUSY)?;
    let mut left = THOUSANDS;
    database.progress_handler(
        1000,
        Some(move || {
            left = left.saturating_sub(1);
            left == 0
        }),
    )?;
    database.pragma_update(None, "trusted_schema", false)?;
    let is_table: bool = database.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'in_tail_files')",
        [],
        |row| row.get(0),
    )?;
    if !is_table {
        return Err(PositionError::Format("the database has no table in_tail_files".to_owned()));
    }
    let mut query = database.prepare("SELECT name, offset, inode FROM in_tail_files LIMIT ?1")?;
    let limit = i64::try_from(MAX_POSITIONS).unwrap_or(i64::MAX);
    let found = query.query_map([limit], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    })?;
    let mut positions = Vec::new();
    for row in found {
        let (path, offset, inode) = row?;
        let offset = u64::try_from(offset)
            .map_err(|_| PositionError::Format(format!("the offset {offset} of an entry is negative")))?;
        // An inode of more than 63 bits is stored as the same bits.
        positions.push(Position { path, offset, inode: inode.cast_unsigned() });
    }
    Ok(positions)
}

fn cannot_open(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly};
    matches!(error.sqlite_error_code(), Some(CannotOpen | PermissionDenied | ReadOnly))
}

fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|meta| meta.len() > 0)
}

/// Without locks and log; see <https://www.sqlite.org/uri.html>.
fn as_it_lies(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            other => {
                // Writing into memory does not fail.
                let _ = write!(uri, "%{other:02X}");
            }
        }
    }
    uri.push_str("?immutable=1");
    uri
}
