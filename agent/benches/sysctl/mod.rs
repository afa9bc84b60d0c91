//! A sysctl of the whole machine, raised for as long as a bench runs.
//!
//! What always holds: the value that was there comes back however the bench ends, by an error, Ctrl-C or SIGKILL: a shell
//! holds it, which reads from us until there is nobody any more who writes.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

const KEEPER: &str = "cat > /dev/null; echo \"$1\" > \"$0\"";

pub struct Sysctl {
    keeper: Child,
    path: &'static str,
}

impl Sysctl {
    /// # Errors
    /// There is no such file, or we may not write it.
    pub fn set(path: &'static str, value: &str) -> anyhow::Result<Self> {
        let before = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, path, before.trim()])
            .stdin(Stdio::piped())
            // Ctrl-C is for our group.
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let sysctl = Self { keeper, path };
        fs::write(path, value).with_context(|| format!("cannot write {path}"))?;
        Ok(sysctl)
    }

    fn restore(&mut self) -> anyhow::Result<()> {
        drop(self.keeper.stdin.take());
        ensure!(self.keeper.wait()?.success(), "its shell failed");
        Ok(())
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("{} could not be put back: {error}", self.path);
        }
    }
}
