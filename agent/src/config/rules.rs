//! The one field whose values are sentences: the rules of `flowLogsFilters`.
//!
//! In: a list of texts, or one text with semicolons between (environment, flags). Out: parsed [`Rules`]. Always: a
//! list with a rule that does not parse is refused whole, for a rule that is left out changes what others do.

use serde_json::Value;

use crate::filter::{Rule, Rules};

use super::value::{Kind, Limits, Notation, Setting};

/// Rules of one configuration.
const MOST_RULES: usize = 64;

impl Setting for Rules {
    const KIND: Kind = Kind::Rules;

    fn read(raw: &Value, _: Notation, _: Limits) -> Option<Self> {
        parse(raw).ok()
    }

    fn show(&self) -> Value {
        self.0.iter().map(|rule| Value::String(rule.to_string())).collect()
    }

    fn problem(raw: &Value) -> Option<String> {
        parse(raw).err()
    }
}

fn parse(raw: &Value) -> Result<Rules, String> {
    let texts: Vec<&str> = match raw {
        Value::String(text) => split(text),
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().ok_or("a rule is text")).collect::<Result<_, _>>()?
        }
        _ => return Err("rules are a list of texts".to_owned()),
    };
    if texts.len() > MOST_RULES {
        return Err(format!("there are more than {MOST_RULES} rules"));
    }
    let rule = |(n, text): (usize, &str)| text.parse::<Rule>().map_err(|error| format!("rule {n}: {error}"));
    (1..).zip(texts).map(rule).collect::<Result<_, _>>().map(Rules)
}

/// At semicolons outside quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(|c| {
        let ends = c == ';' && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && quoted && !escaped;
        ends
    })
    .map(str::trim)
    .filter(|rule| !rule.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(raw: Value) -> Value {
        Rules::read(&raw, Notation::Yaml, Limits::None).unwrap().show()
    }

    #[test]
    fn lists_and_texts_are_the_same_rules() {
        let list = json!(["keep action=deny", "drop process=\"a;b\\\";\" port=53"]);
        assert_eq!(shown(list.clone()), list);
        assert_eq!(shown(json!("keep action=deny ; drop process=\"a;b\\\";\" port=53;")), list);
        assert_eq!(shown(json!([])), json!([]));
        assert_eq!(shown(json!("")), json!([]));
    }

    #[test]
    fn a_rule_that_does_not_parse_refuses_all_and_says_which() {
        for (raw, words) in [
            (json!(["keep", "drop port=x"]), "rule 2: filter, column 6"),
            (json!(["lose port=1"]), "rule 1: a rule begins with drop or keep"),
            (json!([1]), "a rule is text"),
            (json!({"a": 1}), "a list of texts"),
            (json!(vec!["keep"; MOST_RULES + 1]), "more than 64"),
        ] {
            assert_eq!(Rules::read(&raw, Notation::Yaml, Limits::None), None);
            assert!(Rules::problem(&raw).unwrap().contains(words), "{raw}");
        }
    }
}
