//! A line as a person looks at it: the columns that are shown and filtered, borrowed from the text.
//!
//! In: one line of `flows.log`, ours or Calico's own. Out: a [`LineView`]. Always: a field that is not known here is
//! passed over, and one that is not there is absent, so that lines of other versions can be read; what is no flow
//! log is an error, never a panic. The strict reader, which holds every field to its type, is `schema.rs`.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;

/// `"-"` and `null` are [`None`] through [`present`].
#[derive(Clone, Debug, Deserialize)]
pub struct LineView<'a> {
    pub start_time: i64,
    pub end_time: i64,
    #[serde(borrow)]
    pub source_type: Cow<'a, str>,
    #[serde(default)]
    pub source_ip: Option<IpAddr>,
    #[serde(default, borrow)]
    pub source_name: Cow<'a, str>,
    #[serde(borrow)]
    pub source_name_aggr: Cow<'a, str>,
    #[serde(default, borrow)]
    pub source_namespace: Cow<'a, str>,
    #[serde(default)]
    pub source_port: Option<u16>,
    #[serde(default, borrow)]
    pub source_labels: Option<LabelsView<'a>>,
    #[serde(borrow)]
    pub dest_type: Cow<'a, str>,
    #[serde(default)]
    pub dest_ip: Option<IpAddr>,
    #[serde(default, borrow)]
    pub dest_name: Cow<'a, str>,
    #[serde(borrow)]
    pub dest_name_aggr: Cow<'a, str>,
    #[serde(default, borrow)]
    pub dest_namespace: Cow<'a, str>,
    #[serde(default)]
    pub dest_port: Option<u16>,
    #[serde(default, borrow)]
    pub dest_labels: Option<LabelsView<'a>>,
    #[serde(default, borrow)]
    pub dest_service_namespace: Cow<'a, str>,
    #[serde(default, borrow)]
    pub dest_service_name: Cow<'a, str>,
    #[serde(default, borrow)]
    pub dest_service_port: Cow<'a, str>,
    #[serde(default)]
    pub dest_service_port_num: Option<u16>,
    #[serde(default, borrow)]
    pub dest_domains: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow)]
    pub proto: Cow<'a, str>,
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    #[serde(borrow)]
    pub reporter: Cow<'a, str>,
    #[serde(default, borrow)]
    pub policies: Option<PoliciesView<'a>>,
    #[serde(default)]
    pub bytes_in: u64,
    #[serde(default)]
    pub bytes_out: u64,
    #[serde(default)]
    pub packets_in: u64,
    #[serde(default)]
    pub packets_out: u64,
    #[serde(default)]
    pub num_flows: u64,
    #[serde(default)]
    pub num_flows_started: u64,
    #[serde(default)]
    pub num_flows_completed: u64,
    #[serde(default, borrow)]
    pub process_name: Cow<'a, str>,
    #[serde(default)]
    pub source_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    pub dest_ips: Option<Vec<IpAddr>>,
    #[serde(default, borrow)]
    pub drop_reasons: Option<Vec<Cow<'a, str>>>,
    #[serde(default)]
    pub policy_mismatch: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LabelsView<'a> {
    #[serde(default, borrow)]
    pub labels: Vec<Cow<'a, str>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct PoliciesView<'a> {
    #[serde(default, borrow)]
    pub enforced_policies: Vec<Cow<'a, str>>,
    #[serde(default, borrow)]
    pub pending_policies: Option<Vec<Cow<'a, str>>>,
    #[serde(default, borrow)]
    pub all_policies: Vec<Cow<'a, str>>,
}

/// `"-"` stands for a name that there is not.
pub fn present(text: &str) -> Option<&str> {
    (text != "-" && !text.is_empty()).then_some(text)
}

impl<'a> LineView<'a> {
    /// # Errors
    /// Not a flow log.
    pub fn parse(line: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::flow_log::arbitrary::{flow_log, format, window};
    use crate::wire::flow_log::encode;

    proptest! {
        #[test]
        fn every_line_that_is_written_is_seen(log in flow_log(), window in window(), format in format()) {
            let mut out = Vec::new();
            encode(&log, &window, &format, &mut out);
            let line = String::from_utf8(out).unwrap();
            let view = LineView::parse(&line).map_err(|error| TestCaseError::fail(format!("{line}: {error}")))?;
            prop_assert_eq!(&view.source_name_aggr, &*log.source.name_aggr);
            prop_assert_eq!(view.bytes_in, log.incoming.bytes);
            prop_assert_eq!(&view.action, log.action.name());
        }
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_no_flow_log_refused() {
        let least = r#"{"start_time":1,"end_time":2,"source_type":"net","source_name_aggr":"pvt","dest_type":"net",
            "dest_name_aggr":"pub","proto":"tcp","action":"allow","reporter":"src","novel":[{}],"policies":{"transit_policies":[]}}"#;
        assert_eq!(LineView::parse(least).unwrap().bytes_in, 0);
        for other in ["", "{}", "[]", "null", "{\"start_time\":\"x\"}", "\u{0}", &"[".repeat(100_000)] {
            assert!(LineView::parse(other).is_err());
        }
    }
}
