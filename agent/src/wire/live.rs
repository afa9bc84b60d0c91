//! What a reader of the live socket asks, and what it is told besides lines.
//!
//! In: one line of JSON from the reader. Out: lines of the flow log as they are in the file, and objects with the one
//! key `told`. Always: both sides read each other through this file; what a peer says that does not fit is an error.
//! Not here: sockets (`sink/live.rs`), what is shown (`cli`).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The first and only line of a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Connections as they begin and end, and drops.
    pub flows: bool,
    /// Lines of the flow log, at each flush.
    pub lines: bool,
    /// The lines that the agent still has, before all else.
    pub past: bool,
    /// Go on after that.
    pub follow: bool,
    /// In the language of filters; for `flows` alone, a reader filters lines itself.
    #[serde(default)]
    pub filter: String,
}

/// What begins each object that is no line.
pub const TOLD: &str = "{\"told\":";

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Told<'a> {
    /// What happened to a connection, and a line that tells of it alone.
    Flow {
        event: &'a str,
        #[serde(borrow)]
        line: &'a RawValue,
    },
    /// Lines and events that this reader was too slow for.
    Lost(u64),
    /// Nothing more for now.
    Caught(bool),
    /// Why the reader is not served.
    Error(String),
}

#[derive(Deserialize, Serialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    told: Told<'a>,
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Text, numbers and booleans: nothing that JSON lacks.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        line(self)
    }

    /// # Errors
    /// Not a request.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

impl<'a> Told<'a> {
    pub fn encode(self) -> Vec<u8> {
        line(&Envelope { told: self })
    }

    /// # Errors
    /// None of these.
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Envelope<'a>>(text).map(|envelope| envelope.told)
    }
}

/// An event around a line that is encoded already, newline included.
pub fn flow(event: &str, encoded: &[u8]) -> Vec<u8> {
    let line = encoded.strip_suffix(b"\n").unwrap_or(encoded);
    [TOLD.as_bytes(), b"{\"flow\":{\"event\":\"", event.as_bytes(), b"\",\"line\":", line, b"}}}\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_understand_each_other() {
        let request = Request {
            flows: true,
            follow: true,
            filter: "port=443 not action=deny".into(),
            ..Default::default()
        };
        assert_eq!(Request::parse(&request.encode()).unwrap(), request);
        assert!(Request::parse(b"{}").is_err() && Request::parse(b"{\"flows\":1}").is_err());

        let text = String::from_utf8(flow("start", b"{\"a\":1}\n")).unwrap();
        assert!(text.starts_with(TOLD) && text.ends_with('\n'));
        let Ok(Told::Flow { event: "start", line }) = Told::parse(&text) else { panic!("{text}") };
        assert_eq!(line.get(), "{\"a\":1}");
        let text = String::from_utf8(Told::Lost(7).encode()).unwrap();
        assert!(text.starts_with(TOLD), "{text}");
        assert!(matches!(Told::parse(&text), Ok(Told::Lost(7))));
        assert!(Told::parse("{\"told\":{}}").is_err() && Told::parse("{\"told\":{\"lost\":-1}}").is_err());
    }
}
