//! Exit codes, in one place, and which error leads to which.
//!
//! In: the `anyhow::Error` that a verb ended with. Out: one of the codes of the command line's contract.
//! An error gets its code where it is known what it means for the user ([`OrExit::or_exit`]), or by its type.
//! Always: a broken pipe is no error; an error that nobody classified is our bug and says 70.

use std::fmt;
use std::io;

use crate::config::LoadError;
use crate::sink::SinkError;
use crate::watch::{ConnectError, ManifestError};

/// Numbers of sysexits.h, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// `policy preview` found a flow that would newly be denied.
    NewDeny = 1,
    /// Command line or configuration.
    Usage = 64,
    /// Input malformed: the message names file, line or document, field.
    Malformed = 65,
    /// Input not found.
    NotFound = 66,
    /// The kernel or another writer does not let us.
    Unavailable = 69,
    /// Our bug.
    Bug = 70,
    /// Output failed.
    OutputFailed = 74,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// An error whose exit code is known.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    pub fn usage(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, error: anyhow::anyhow!("{message}") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// No `source`: the display already holds the whole chain.
impl std::error::Error for Failure {}

/// Says what an error means for the exit code, where it happens.
pub trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}

/// The code that an error ends the process with.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if is_broken_pipe(error) {
        return Exit::Ok;
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return if is_broken_pipe(&failure.error) { Exit::Ok } else { failure.exit };
    }
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<SinkError>() {
            return match error {
                SinkError::Locked { .. } => Exit::Unavailable,
                SinkError::Open { .. } => Exit::OutputFailed,
            };
        }
        if let Some(error) = cause.downcast_ref::<LoadError>() {
            return match error {
                LoadError::NotFound { .. } => Exit::NotFound,
                LoadError::Malformed(_) | LoadError::BadValues(_) => Exit::Usage,
            };
        }
    }
    Exit::Bug
}

/// What a manifest that cannot be used means.
pub fn of_manifests(error: &ManifestError) -> Exit {
    match error {
        ManifestError::NotFound { .. } | ManifestError::Unreadable { .. } => Exit::NotFound,
        ManifestError::Malformed { .. } => Exit::Malformed,
    }
}

/// What a kubeconfig that cannot be used means.
pub fn of_server(error: &ConnectError) -> Exit {
    match error {
        ConnectError::NotFound { .. } => Exit::NotFound,
        ConnectError::Malformed { .. } => Exit::Malformed,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn errors_find_their_code_through_any_context() {
        let open = || SinkError::Open { path: "p".into(), source: io::ErrorKind::StorageFull.into() };
        let locked = SinkError::Locked { path: "p".into(), holder: "pid 1".into() };
        let code = |error: anyhow::Error| exit_of(&error.context("in some verb"));
        assert_eq!(code(locked.into()), Exit::Unavailable);
        assert_eq!(code(open().into()), Exit::OutputFailed);
        assert_eq!(code(LoadError::Malformed("x".into()).into()), Exit::Usage);
        assert_eq!(code(Failure::new(Exit::Malformed, open()).into()), Exit::Malformed);
        assert_eq!(code(anyhow::anyhow!("what?")), Exit::Bug);
    }

    #[test]
    fn a_broken_pipe_is_no_error_wherever_it_hides() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(exit_of(&anyhow::Error::new(pipe()).context("writing lines")), Exit::Ok);
        let wrapped = Err::<(), _>(pipe()).context("writing").or_exit(Exit::OutputFailed).unwrap_err();
        assert_eq!(exit_of(&anyhow::Error::new(wrapped)), Exit::Ok);
    }

    #[test]
    fn a_failure_tells_its_whole_chain_once() {
        let error =
            Err::<(), _>(io::Error::other("inner")).context("outer").or_exit(Exit::Malformed).unwrap_err();
        assert_eq!(format!("{:#}", anyhow::Error::new(error)), "outer: inner");
    }
}
