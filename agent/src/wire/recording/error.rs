//! What is wrong with a line, where, and what to do.
//!
//! In: a deserializer's error, the path at which it arose, the text. Out: a [`RecordingError`] with line, column and
//! field. What always holds: the column points at the value that is wrong where the line is JSON, and at the
//! character where it stops being JSON otherwise; messages are one line of printable text, bounded, whatever the
//! recording holds. Deliberately not here: reading.

use std::collections::HashMap;
use std::fmt;

use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_path_to_error::{Path, Segment};

/// Longest message and field that are printed, in characters: a hostile line is no reason for a long report.
const MAX_TEXT: usize = 400;

/// A line that is no line of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordingError {
    /// From 1.
    pub line: u64,
    /// In bytes, from 1.
    pub column: usize,
    /// Path of the field, such as `conntrack.original.dst_port`.
    pub field: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl RecordingError {
    pub(super) fn new(line: u64, column: usize, field: Option<&str>, message: &str) -> Self {
        Self { line, column, field: field.map(printable), message: printable(message) }
    }
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "recording line {}, column {}: ", self.line, self.column)?;
        if let Some(field) = &self.field {
            write!(f, "field `{field}`: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for RecordingError {}

/// What is wrong between fields that are each right.
#[derive(Debug)]
pub struct Fault {
    /// Path from the line's top.
    field: String,
    pub message: String,
}

impl Fault {
    pub fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into() }
    }
}

pub fn explain(
    text: &str,
    number: u64,
    error: &serde_json::Error,
    path: &Path,
    fault: Option<Fault>,
) -> RecordingError {
    let message = error.to_string();
    // The deserializer knows lines of its own; ours has one.
    let message = match message.rfind(" at line ") {
        Some(at) if error.line() > 0 => message.get(..at).unwrap_or(&message),
        _ => &message,
    };
    if let Some(fault) = fault {
        let steps: Vec<Step<'_>> = fault.field.split('.').map(Step::Key).collect();
        let column = locate(text, &steps).unwrap_or(error.column());
        return RecordingError::new(number, column, Some(&fault.field), &fault.message);
    }
    match error.classify() {
        Category::Data => {
            let steps: Vec<Step<'_>> = path
                .iter()
                .filter_map(|segment| match segment {
                    Segment::Map { key } => Some(Step::Key(key)),
                    Segment::Seq { index } => Some(Step::Index(*index)),
                    Segment::Enum { .. } | Segment::Unknown => None,
                })
                .collect();
            let column = locate(text, &steps).unwrap_or(error.column());
            let field = (!steps.is_empty()).then(|| path.to_string());
            RecordingError::new(number, column.max(1), field.as_deref(), message)
        }
        Category::Eof | Category::Syntax | Category::Io => RecordingError::new(
            number,
            error.column().max(1),
            None,
            &format!("not valid JSON ({message}): a line is one whole JSON object"),
        ),
    }
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Column of the value at a path, or of the nearest value above it that is there.
fn locate(text: &str, steps: &[Step<'_>]) -> Option<usize> {
    let mut value: &RawValue = serde_json::from_str(text).ok()?;
    for step in steps {
        let inner: Option<&RawValue> = match step {
            Step::Key(key) => {
                serde_json::from_str::<HashMap<String, &RawValue>>(value.get()).ok()?.get(*key).copied()
            }
            Step::Index(index) => {
                serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(*index).copied()
            }
        };
        match inner {
            Some(inner) => value = inner,
            None => break,
        }
    }
    // The value borrows from the text.
    (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?.checked_add(1)
}

/// Printable and bounded: control characters escaped, the rest cut off.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == MAX_TEXT {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}
