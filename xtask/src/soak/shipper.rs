//! A log shipper: reads every file of the log as it grows, across rotations.
//!
//! In: the folder. Out: sums of all lines. What always holds: a file stays open until it is read and gone from the listing, so
//! that a renamed one is read on, and no new file gets its inode meanwhile; half a line waits for its end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::agent::log_files;
use crate::bench::watchers::Seen;

const LOOK: Duration = Duration::from_millis(200);
/// Looks after which a file that is not listed is gone.
const GONE: u8 = 5;

#[derive(Default)]
pub struct Shipper {
    pub seen: Seen,
    pub lines: u64,
    pub files: u64,
    /// Lines that are no JSON.
    pub torn: u64,
    /// By inode.
    open: HashMap<u64, Open>,
}

struct Open {
    file: File,
    /// Read, but not a whole line yet.
    rest: Vec<u8>,
    /// Looks since it was last listed: one that is renamed right now may be missing from a listing.
    looks: u8,
}

impl Shipper {
    /// Looks again and again until `ended`.
    pub fn follow(folder: &Path, ended: &AtomicBool) -> anyhow::Result<Self> {
        let mut shipper = Self::default();
        while !ended.load(Ordering::Relaxed) {
            shipper.look(folder)?;
            thread::sleep(LOOK);
        }
        Ok(shipper)
    }

    /// Reads what is new.
    pub fn look(&mut self, folder: &Path) -> anyhow::Result<()> {
        for path in log_files(folder)? {
            // Rotated away since it was listed: it is open already, or is found under its new name at the next look.
            let Ok(file) = File::open(&path) else { continue };
            match self.open.entry(file.metadata()?.ino()) {
                Entry::Occupied(mut known) => known.get_mut().looks = 0,
                Entry::Vacant(place) => {
                    place.insert(Open { file, rest: Vec::new(), looks: 0 });
                    self.files += 1;
                }
            }
        }
        for Open { file, rest, looks } in self.open.values_mut() {
            *looks += 1;
            file.read_to_end(rest)?;
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in
                rest.drain(..whole).as_slice().split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
            {
                match Seen::of_line(line) {
                    Some(seen) => self.seen += seen,
                    None => self.torn += 1,
                }
                self.lines += 1;
            }
        }
        self.open.retain(|_, open| open.looks < GONE);
        Ok(())
    }
}
