//! What the description may say.
//!
//! In: YAML. Out: plain types. What always holds: what is not understood is refused. Not here: whether fields and metrics exist
//! (`check.rs`).

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub flows: Vec<Dashboard<Panel>>,
    /// Over the DNS log.
    pub dns: Vec<Dashboard<Panel>>,
    pub health: Dashboard<HealthPanel>,
    pub alerts: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dashboard<P> {
    pub id: String,
    pub title: String,
    pub description: String,
    pub panels: Vec<P>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Table,
    Timeseries,
    Stat,
}

/// A panel over lines of flows, or of the DNS log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    pub title: String,
    pub kind: Kind,
    #[serde(default)]
    pub unit: String,
    pub measure: Measure,
    #[serde(default)]
    pub r#where: Vec<Condition>,
    #[serde(default)]
    pub by: Vec<String>,
    /// Only values of the last of `by` that contain it.
    #[serde(default)]
    pub like: Option<String>,
    #[serde(default)]
    pub limit: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Measure {
    /// Of what: for the reader only.
    Count(String),
    Sum(String),
    Max(String),
    Avg(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub field: String,
    #[serde(default)]
    pub is: Option<Word>,
    #[serde(default)]
    pub not: Option<Word>,
    #[serde(default)]
    pub above: Option<i64>,
    #[serde(default)]
    pub exists: Option<bool>,
}

/// A value to compare with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Word {
    Boolean(bool),
    Number(i64),
    Text(String),
}

/// A panel over the agent's metrics.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthPanel {
    pub title: String,
    pub kind: Kind,
    #[serde(default)]
    pub unit: String,
    pub query: String,
    #[serde(default)]
    pub legend: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    pub alert: String,
    pub expr: String,
    pub r#for: String,
    pub severity: String,
    pub summary: String,
    pub description: String,
}

/// What panels are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    Flows,
    Dns,
}

impl Log {
    /// The schema of its lines.
    pub fn schema(self) -> serde_json::Value {
        match self {
            Self::Flows => flowlogd::wire::schema::schema(),
            Self::Dns => flowlogd::wire::dns_log::schema(),
        }
    }

    /// Its index, table or stream in the stores.
    pub fn index(self) -> &'static str {
        match self {
            Self::Flows => "flowlogd-flows",
            Self::Dns => "flowlogd-dns",
        }
    }
}

impl Description {
    /// The dashboards over logs.
    pub fn logs(&self) -> [(Log, &[Dashboard<Panel>]); 2] {
        [(Log::Flows, &self.flows), (Log::Dns, &self.dns)]
    }
}

impl Measure {
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Count(_) => None,
            Self::Sum(field) | Self::Max(field) | Self::Avg(field) => Some(field),
        }
    }

    /// As Elasticsearch's aggregations and LogsQL's functions are named.
    pub fn function(&self) -> &'static str {
        match self {
            Self::Count(_) => "count",
            Self::Sum(_) => "sum",
            Self::Max(_) => "max",
            Self::Avg(_) => "avg",
        }
    }
}

impl Word {
    pub fn text(&self) -> String {
        match self {
            Self::Boolean(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(value) => value.clone(),
        }
    }
}
