//! The time of a line: RFC 3339, to the nanosecond.
//!
//! In and out: text such as `2026-08-01T10:00:00.000000001+02:00`, and a [`Timestamp`]. What always holds: any offset
//! is taken, `Z` is written, no digit is lost. Stricter than the calendar library alone, which also reads what
//! RFC 3339 does not have (bracketed zones, missing separators, missing seconds). Deliberately not here: time zones by name, clocks.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::model::Timestamp;

pub struct At(pub Timestamp);

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_rfc3339(text) {
            return Err(format!("{text:?} is not a time of RFC 3339 such as 2026-08-01T10:00:00.5Z"));
        }
        let time =
            jiff::Timestamp::from_str(text).map_err(|error| format!("{text:?} is no time: {error}"))?;
        i64::try_from(time.as_nanosecond())
            .map(|nanoseconds| Self(Timestamp(nanoseconds)))
            .map_err(|_| format!("{text:?} is out of range: times lie between the years 1678 and 2261"))
    }
}

/// `date-time` of RFC 3339, section 5.6, by shape: digits where digits belong. Their range is the library's to judge.
fn is_rfc3339(text: &str) -> bool {
    let Some((head, tail)) = text.as_bytes().split_at_checked(19) else { return false };
    let shaped = head.iter().zip(b"dddd-dd-ddTdd:dd:dd").all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' '),
        other => byte == other,
    });
    let offset = match tail.strip_prefix(b".") {
        Some(fraction) => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            match fraction.split_at_checked(digits) {
                // Nothing is finer than a nanosecond.
                Some((digits, offset)) if (1..=9).contains(&digits.len()) => offset,
                _ => return false,
            }
        }
        None => tail,
    };
    shaped
        && match offset {
            [b'Z' | b'z'] => true,
            [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()),
            _ => false,
        }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.0.0)).map_err(|_| fmt::Error)?;
        time.fmt(f)
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = At;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time of RFC 3339 as text")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<At, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_offset_and_all_nanoseconds() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00.000000001z", 1),
            ("1970-01-01 00:00:01+00:00", 1_000_000_000),
            ("1970-01-01T00:00:00-00:00", 0),
            ("1970-01-01T02:00:00+02:00", 0),
            ("1969-12-31T18:30:00.25-05:30", 250_000_000),
            ("1969-12-31T23:59:59.999999999Z", -1),
        ] {
            assert_eq!(text.parse::<At>().unwrap_or_else(|e| panic!("{e}")).0, Timestamp(want), "{text}");
        }
    }

    #[test]
    fn what_is_not_rfc_3339_is_refused() {
        for text in [
            "",
            "now",
            "1970-01-01",
            "1970-01-01T00:00Z",
            "1970-01-01T00:00:00",
            "19700101T000000Z",
            "1970-01-01T00:00:00Z[UTC]",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.0000000001Z",
            "1970-01-01T00:00:00+0200",
            "1970-13-01T00:00:00Z",
            "1970-01-01T25:00:00Z",
            "1970-01-01T00:00:00+99:00",
            "1600-01-01T00:00:00Z",
            "2300-01-01T00:00:00Z",
            "+002026-01-01T00:00:00Z",
            "1970-01-01T00:00:00\u{e9}",
        ] {
            assert!(text.parse::<At>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_reads_back(nanoseconds in any::<i64>()) {
            let text = At(Timestamp(nanoseconds)).to_string();
            prop_assert_eq!(text.parse::<At>().unwrap_or_else(|e| panic!("{e}")).0, Timestamp(nanoseconds));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<At>();
        }
    }
}
