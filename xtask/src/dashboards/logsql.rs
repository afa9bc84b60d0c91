//! A panel as a query in LogsQL, VictoriaLogs' language.
//!
//! In: a panel. Out: the query; the value is in the field `value`. Lists are text in that store (a JSON array), so that grouping by one
//! unrolls it first. Not here: the time range, which is the caller's argument.

use serde_json::Value;

use super::check::{field, is_of};
use super::description::{Condition, Kind, Log, Panel, Word};

pub fn query(log: Log, panel: &Panel) -> anyhow::Result<String> {
    let conditions: Vec<String> = panel.r#where.iter().map(condition).collect();
    let mut query = if conditions.is_empty() { "*".to_owned() } else { conditions.join(" ") };
    let schema = log.schema();
    for name in &panel.by {
        if is_of(field(&schema, name)?, "array") {
            query += &format!(" | unroll by ({})", quoted(name));
        }
    }
    if let (Some(like), Some(last)) = (&panel.like, panel.by.last()) {
        query += &format!(" | filter {}:~{}", quoted(last), quoted(&regular(like)));
    }
    let by: Vec<String> = panel.by.iter().map(|name| quoted(name)).collect();
    let of = panel.measure.field().map(quoted).unwrap_or_default();
    let by = if by.is_empty() { String::new() } else { format!("by ({}) ", by.join(", ")) };
    query += &format!(" | stats {by}{}({of}) as value", panel.measure.function());
    if panel.kind == Kind::Table {
        query += &format!(" | sort by (value desc) limit {}", panel.limit);
    }
    Ok(query)
}

fn condition(condition: &Condition) -> String {
    let name = quoted(&condition.field);
    let equal = |word: &Word| format!("{name}:={}", quoted(&word.text()));
    match condition {
        Condition { is: Some(word), .. } => equal(word),
        Condition { not: Some(word), .. } => format!("!{}", equal(word)),
        Condition { above: Some(number), .. } => format!("{name}:>{number}"),
        Condition { exists: Some(false), .. } => format!("!{name}:*"),
        _ => format!("{name}:*"),
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression that matches the text itself.
pub fn regular(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_ascii_alphanumeric() { vec![c] } else { vec!['\\', c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_becomes_a_query() {
        let of = |text: &str| query(Log::Flows, &serde_saphyr::from_str(text).unwrap()).unwrap();
        assert_eq!(
            of(
                "{title: x, kind: table, measure: {sum: num_flows}, where: [{field: action, is: deny}, {field: dest_port, not: 53}], by: [policies.enforced_policies], like: '|deny|', limit: 3}"
            ),
            r#""action":="deny" !"dest_port":="53" | unroll by ("policies.enforced_policies") | filter "policies.enforced_policies":~"\\|deny\\|" | stats by ("policies.enforced_policies") sum("num_flows") as value | sort by (value desc) limit 3"#
        );
        assert_eq!(of("{title: x, kind: stat, measure: {count: lines}}"), "* | stats count() as value");
    }
}
