//! What a panel of the dashboards should show, computed from the lines themselves.
//!
//! In: a panel's description, the lines of the files. Out: the value a group, to be held against what the store answers. It knows
//! nothing of any store's language: that is the point.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::dashboards::description::{Condition, Measure, Panel, Word};

/// Group (the values of `by`) to value. No line at all: no group, but for a panel without groups.
pub fn groups(panel: &Panel, lines: &[Value]) -> BTreeMap<Vec<String>, f64> {
    let mut gathered: BTreeMap<Vec<String>, Vec<f64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| panel.r#where.iter().all(|condition| holds(condition, line))) {
        let number = panel.measure.field().and_then(|name| at(line, name).as_f64()).unwrap_or(1.0);
        let mut groups = vec![Vec::new()];
        for name in &panel.by {
            let values: Vec<String> = match at(line, name) {
                Value::Array(items) => items.iter().map(text).collect(),
                Value::Null => vec![String::new()],
                one => vec![text(one)],
            };
            groups = groups
                .iter()
                .flat_map(|group| values.iter().map(|value| [group.clone(), vec![value.clone()]].concat()))
                .collect();
        }
        for group in groups {
            let is_like = panel
                .like
                .as_ref()
                .is_none_or(|like| group.last().is_some_and(|last| last.contains(like.as_str())));
            if is_like {
                gathered.entry(group).or_default().push(number);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of a test are far below 2^53")]
    gathered
        .into_iter()
        .map(|(group, numbers)| {
            let sum: f64 = numbers.iter().sum();
            let value = match panel.measure {
                Measure::Count(_) => numbers.len() as f64,
                Measure::Sum(_) => sum,
                Measure::Max(_) => numbers.iter().copied().fold(f64::MIN, f64::max),
                Measure::Avg(_) => sum / numbers.len() as f64,
            };
            (group, value)
        })
        .collect()
}

fn holds(condition: &Condition, line: &Value) -> bool {
    let value = at(line, &condition.field);
    let equal = |word: &Word| match word {
        Word::Boolean(word) => value.as_bool() == Some(*word),
        Word::Number(word) => value.as_i64() == Some(*word),
        Word::Text(word) => value.as_str() == Some(word),
    };
    condition.is.as_ref().is_none_or(equal)
        && condition.not.as_ref().is_none_or(|word| !equal(word))
        && condition.above.is_none_or(|least| value.as_i64().is_some_and(|number| number > least))
        && condition.exists.is_none_or(|exists| exists != value.is_null())
}

fn at<'l>(line: &'l Value, name: &str) -> &'l Value {
    line.pointer(&format!("/{}", name.replace('.', "/"))).unwrap_or(&Value::Null)
}

/// As a store that keeps text shows a value.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_lists_are_their_items() {
        let panel = serde_saphyr::from_str(
            "{title: x, kind: table, measure: {sum: n}, where: [{field: a, is: deny}], by: [p.e], like: '|deny|', limit: 3}",
        )
        .unwrap();
        let lines: Vec<Value> = serde_json::from_str(
            r#"[{"a":"deny","n":2,"p":{"e":["0|t|x|pass|0","1|t|y|deny|0"]}},{"a":"deny","n":3,"p":{"e":["1|t|y|deny|0"]}},{"a":"allow","n":9,"p":null}]"#,
        )
        .unwrap();
        assert_eq!(groups(&panel, &lines), BTreeMap::from([(vec!["1|t|y|deny|0".to_owned()], 5.0)]));
    }
}
