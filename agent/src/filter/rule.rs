//! The agent's own rules: which records are not written (`flowLogsFilters`).
//!
//! In: texts `drop FILTER` and `keep FILTER`, in order. Out: what becomes of a record, and by which rule. Always: the
//! first rule that matches decides; a record that none matches is kept.

use std::fmt;
use std::str::FromStr;

use super::{Filter, Subject};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    Drop,
    Keep,
}

impl RuleAction {
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Keep => "keep",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub action: RuleAction,
    pub filter: Filter,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let action = [RuleAction::Drop, RuleAction::Keep]
            .into_iter()
            .find(|action| action.name().eq_ignore_ascii_case(word))
            .ok_or_else(|| format!("a rule begins with drop or keep, not with {word:?}"))?;
        let filter = rest.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { action, filter })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action.name(), self.filter)
    }
}

/// Rules in their order. Cloning is cheap enough for a change of configuration, and for nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The index of the rule that drops the record.
    pub fn dropped_by(&self, record: &impl Subject) -> Option<usize> {
        let (index, rule) = self.0.iter().enumerate().find(|(_, rule)| rule.filter.matches(record))?;
        (rule.action == RuleAction::Drop).then_some(index)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
