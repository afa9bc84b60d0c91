//! The list of metrics for people: `deploy/metrics.md`.

use super::{Metrics, ProcessMetrics};

/// A row a metric.
pub fn markdown_table() -> String {
    let mut table = String::from("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    for description in Metrics::DESCRIPTIONS.iter().chain(ProcessMetrics::DESCRIPTIONS) {
        let labels: Vec<String> = description.labels.iter().map(|label| format!("`{label}`")).collect();
        table.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            description.name,
            description.kind.name(),
            labels.join(", "),
            description.help.replace('|', "\\|")
        ));
    }
    table
}
