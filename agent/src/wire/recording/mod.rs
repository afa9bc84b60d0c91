//! The recording: everything the agent can be told, one JSON object a line, to replay or to keep.
//!
//! In: lines of text (contract: `{"at": "<RFC 3339>", <one kind>}`). Out: a time and a [`Line`] each, or an error
//! that names line, column and field; and back again: [`write_line`] is what `record` writes. What always holds:
//! reading what was written gives the same line (a property); a kind or field that is not known is an error, never
//! skipped, because a misspelt field would silently change what a replay means; no input panics, and no line needs
//! more memory than [`MAX_LINE`]. Deliberately not here: the order of times (the replay takes one that goes
//! backwards as the last one and counts it), and what a Kubernetes object says (`cluster`).

mod at;
mod collected;
mod error;
mod fields;
mod kinds;
mod reader;

use std::fmt;
use std::io::Write as _;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::model::{Observation, Timestamp};

use at::At;
use error::Fault;
pub use error::RecordingError;
pub use kinds::ObjectKey;
pub use reader::{MAX_LINE, ReadError, Reader};

/// What one line of a recording tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Something that the node did.
    Observation(Observation),
    /// A Kubernetes object that appeared or changed, whole.
    Apply(Value),
    /// A Kubernetes object that is gone.
    Delete(ObjectKey),
    /// Close the window at this time.
    Flush,
}

/// The kinds of lines, as the contract lists them.
const KINDS: &str = "conntrack, drop, verdict, tcp, process, dns, lost, apply, delete, flush";

/// Reads one line; a newline at its end is no part of it. `number` is the line's, counted from 1, for the error.
///
/// # Errors
/// The line is not UTF-8, not one JSON object, or not what the contract calls a line.
pub fn parse_line(line: &[u8], number: u64) -> Result<(Timestamp, Line), RecordingError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"\xef\xbb\xbf") {
        return Err(RecordingError::new(
            number,
            1,
            None,
            "the line starts with a byte order mark: save the recording as UTF-8 without one",
        ));
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        RecordingError::new(
            number,
            error.valid_up_to().saturating_add(1),
            None,
            "the text is not UTF-8: save the recording as UTF-8",
        )
    })?;
    // The way without errors keeps no path of field names; only a line that fails is read again with one.
    read(text, &mut None, |seed, json| seed.deserialize(json)).map_err(|_| explain(text, number))
}

/// Appends one line, newline included.
pub fn write_line(out: &mut Vec<u8>, at: Timestamp, line: &Line) {
    const INFALLIBLE: &str = "memory takes every write, and every key of a line is a string";
    out.extend_from_slice(b"{\"at\":\"");
    write!(out, "{}", At(at)).expect(INFALLIBLE);
    out.extend_from_slice(b"\",");
    match line {
        Line::Observation(observation) => kinds::write(out, observation),
        Line::Apply(object) => {
            out.extend_from_slice(b"\"apply\":");
            serde_json::to_writer(&mut *out, object)
        }
        Line::Delete(key) => {
            out.extend_from_slice(b"\"delete\":");
            serde_json::to_writer(&mut *out, key)
        }
        Line::Flush => {
            out.extend_from_slice(b"\"flush\":{}");
            Ok(())
        }
    }
    .expect(INFALLIBLE);
    out.extend_from_slice(b"}\n");
}

type Json<'a> = serde_json::Deserializer<serde_json::de::StrRead<'a>>;

/// Reads the whole text as one line; `drive` chooses through which deserializer.
fn read<'a>(
    text: &'a str,
    fault: &mut Option<Fault>,
    drive: impl FnOnce(LineSeed<'_>, &mut Json<'a>) -> Result<(Timestamp, Line), serde_json::Error>,
) -> Result<(Timestamp, Line), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let line = drive(LineSeed { fault }, &mut json)?;
    json.end()?;
    Ok(line)
}

/// Reads a line that has failed once more, now to tell where and why.
fn explain(text: &str, number: u64) -> RecordingError {
    let mut fault = None;
    let mut track = serde_path_to_error::Track::new();
    let result = read(text, &mut fault, |seed, json| {
        seed.deserialize(serde_path_to_error::Deserializer::new(json, &mut track))
    });
    match result {
        Err(error) => error::explain(text, number, &error, &track.path(), fault),
        // Both ways read the same; if they ever do not, the line is still refused.
        Ok(_) => RecordingError::new(number, 1, None, "the line was read in two ways with two results"),
    }
}

/// Reads a line. What is wrong between fields, beyond what a deserializer can say, is left in `fault`.
struct LineSeed<'f> {
    fault: &'f mut Option<Fault>,
}

impl<'de> DeserializeSeed<'de> for LineSeed<'_> {
    type Value = (Timestamp, Line);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl LineSeed<'_> {
    fn build<T, E: serde::de::Error>(&mut self, built: Result<T, Fault>) -> Result<T, E> {
        built.map_err(|fault| {
            let error = E::custom(&fault.message);
            *self.fault = Some(fault);
            error
        })
    }
}

impl<'de> Visitor<'de> for LineSeed<'_> {
    type Value = (Timestamp, Line);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `at` and one kind")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut at: Option<At> = None;
        let mut content: Option<(String, Line)> = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "at" {
                if at.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom("`at` stands twice: a line has one time"));
                }
                continue;
            }
            let line = match key.as_str() {
                "conntrack" => self.build(map.next_value::<kinds::Conntrack>()?.build())?,
                "drop" => self.build(map.next_value::<kinds::Drop>()?.build())?,
                "verdict" => self.build(map.next_value::<kinds::Verdict>()?.build())?,
                "tcp" => self.build(map.next_value::<collected::Tcp>()?.build())?,
                "process" => self.build(map.next_value::<collected::Process>()?.build())?,
                "dns" => self.build(map.next_value::<collected::Dns>()?.build())?,
                "lost" => map.next_value::<kinds::Lost>()?.build(),
                "apply" => {
                    let object = map.next_value::<Map<String, Value>>()?;
                    for field in ["apiVersion", "kind"] {
                        if !object.get(field).is_some_and(Value::is_string) {
                            self.build(Err(Fault::new(
                                &format!("apply.{field}"),
                                format!("a Kubernetes object says its `{field}` as text"),
                            )))?;
                        }
                    }
                    Line::Apply(Value::Object(object))
                }
                "delete" => Line::Delete(map.next_value()?),
                "flush" => {
                    map.next_value::<kinds::Flush>()?;
                    Line::Flush
                }
                _ => {
                    return Err(A::Error::custom(format_args!(
                        "unknown kind `{key}`; the kinds are {KINDS}"
                    )));
                }
            };
            if let Some((first, _)) = content.replace((key.clone(), line)) {
                return Err(A::Error::custom(format_args!(
                    "a line holds one kind, and this one holds `{first}` and `{key}`: write two lines"
                )));
            }
        }
        match (at, content) {
            (Some(at), Some((_, line))) => Ok((at.0, line)),
            (None, _) => Err(A::Error::custom("`at` is missing: each line says its time, as RFC 3339")),
            (_, None) => Err(A::Error::custom(format_args!("the line holds no kind; the kinds are {KINDS}"))),
        }
    }
}

#[cfg(test)]
mod tests;
