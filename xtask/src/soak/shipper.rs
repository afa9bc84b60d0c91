//! A log shipper: reads every file of the log as it grows, across rotations.
//!
//! In: the folder. Out: sums of all lines. What always holds: a file is known by its inode, so that a renamed one is read on
//! from where it was left; half a line waits for its end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
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
    /// By inode, with the looks since it was last there: one that is renamed right now may be missing from a listing.
    offsets: HashMap<u64, (u64, u8)>,
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
            // Rotated away since it was listed: it is found under its new name at the next look.
            let Ok(mut file) = File::open(&path) else { continue };
            let metadata = file.metadata()?;
            let known = self.offsets.get(&metadata.ino()).map(|(offset, _)| *offset);
            // A new file may have an old one's inode.
            let known = known.filter(|offset| *offset <= metadata.len());
            self.files += u64::from(known.is_none());
            let from = known.unwrap_or(0);
            file.seek(SeekFrom::Start(from))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in text
                .get(..whole)
                .unwrap_or_default()
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
            {
                match Seen::of_line(line) {
                    Some(seen) => self.seen += seen,
                    None => self.torn += 1,
                }
                self.lines += 1;
            }
            self.offsets.insert(metadata.ino(), (from + whole as u64, 0));
        }
        self.offsets.retain(|_, (_, looks)| {
            *looks += 1;
            *looks < GONE
        });
        Ok(())
    }
}
