//! The processes of a share: their name, distinct ids and arguments, as the line's process columns.
//!
//! In: the process of each flow, with the flow's place. Out: [`ProcessColumns`]. Always: what a window keeps of
//! arguments, ids and names is bounded in bytes ([`Budget`]); what does not fit is counted, and numbers of distinct
//! values are then lower bounds. Arguments are distinct single arguments, the first seen, printed ascending like
//! every capped list. Not here: which names share a line (`share.rs`).

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::model::{Process, ProcessColumns};

use super::share::Place;

/// Bytes that a window may keep of process ids, arguments and merged names.
const WINDOW_BYTES: usize = 64 << 20;

/// What a distinct value costs beside its text.
const VALUE_BYTES: usize = 64;

/// What is left of a window's memory for processes.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    left: usize,
    /// Values that were not kept.
    pub(super) refused: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: WINDOW_BYTES, refused: 0 }
    }
}

impl Budget {
    #[cfg(test)]
    fn of(left: usize) -> Self {
        Self { left, refused: 0 }
    }

    fn take(&mut self, text: usize) -> bool {
        let cost = VALUE_BYTES.saturating_add(text);
        if cost > self.left {
            self.refused += 1;
            return false;
        }
        self.left -= cost;
        true
    }
}

/// The processes of one name, or of several that share a line.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// `None`: of several.
    name: Option<Arc<str>>,
    /// Of several: which.
    names: HashSet<Arc<str>, RandomState>,
    ids: HashSet<u32, RandomState>,
    /// Where each was seen first: the flow, and which argument it was.
    args: HashMap<Arc<str>, (Place, usize), RandomState>,
    printed: Arc<str>,
}

impl Group {
    pub(super) fn named(name: Arc<str>) -> Self {
        Self { printed: name.clone(), name: Some(name), ..Self::several() }
    }

    pub(super) fn several() -> Self {
        Self {
            name: None,
            names: HashSet::default(),
            ids: HashSet::default(),
            args: HashMap::default(),
            printed: "*".into(),
        }
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// What `process_name` says.
    pub(super) fn printed(&self) -> &Arc<str> {
        &self.printed
    }

    pub(super) fn add(&mut self, process: &Process, place: Place, budget: &mut Budget) {
        if self.name.is_none() {
            self.add_name(&process.name, budget);
        }
        self.add_id(process.pid, budget);
        for (n, arg) in process.args.iter().enumerate() {
            self.add_arg(arg, (place, n), budget);
        }
    }

    fn add_name(&mut self, name: &Arc<str>, budget: &mut Budget) {
        if !self.names.contains(name) && budget.take(name.len()) {
            self.names.insert(name.clone());
        }
    }

    fn add_id(&mut self, id: u32, budget: &mut Budget) {
        // The first is the only one of most groups: it needs no budget.
        if !self.ids.contains(&id) && (self.ids.is_empty() || budget.take(0)) {
            self.ids.insert(id);
        }
    }

    fn add_arg(&mut self, arg: &Arc<str>, place: (Place, usize), budget: &mut Budget) {
        match self.args.get_mut(arg) {
            Some(known) => *known = place.min(*known),
            None if budget.take(arg.len()) => {
                self.args.insert(arg.clone(), place);
            }
            None => {}
        }
    }

    pub(super) fn merge(&mut self, other: &Self, budget: &mut Budget) {
        for name in other.names.iter().chain(&other.name) {
            self.add_name(name, budget);
        }
        for id in &other.ids {
            self.add_id(*id, budget);
        }
        for (arg, place) in &other.args {
            self.add_arg(arg, *place, budget);
        }
    }

    pub(super) fn columns(&self, args_limit: usize) -> ProcessColumns {
        let id = match self.ids.len() {
            0 => None,
            1 => self.ids.iter().next().map(|id| Arc::from(id.to_string())),
            _ => Some("*".into()),
        };
        let mut args: Vec<_> = self.args.iter().map(|(arg, place)| (*place, arg)).collect();
        args.sort_unstable();
        let mut args: Vec<_> = args.into_iter().take(args_limit).map(|(_, arg)| arg.clone()).collect();
        args.sort_unstable();
        ProcessColumns {
            name: Some(self.printed.clone()),
            num_names: if self.name.is_some() { 1 } else { self.names.len() as u64 },
            id,
            num_ids: self.ids.len() as u64,
            args,
            num_args: self.args.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn process(pid: u32, name: &str, args: &[&str]) -> Process {
        Process {
            pid,
            name: name.into(),
            args: args.iter().map(|arg| Arc::from(*arg)).collect(),
            pod_uid: None,
        }
    }

    fn at(n: i64) -> Place {
        (Timestamp(n), 0)
    }

    #[test]
    fn one_process_is_told_whole() {
        let mut group = Group::named("curl".into());
        group.add(&process(7, "curl", &["-s", "http://a"]), at(0), &mut Budget::default());
        let columns = group.columns(5);
        assert_eq!((columns.name.as_deref(), columns.num_names), (Some("curl"), 1));
        assert_eq!((columns.id.as_deref(), columns.num_ids), (Some("7"), 1));
        assert_eq!(columns.args, ["-s".into(), "http://a".into()]);
        assert_eq!(columns.num_args, 2);
    }

    #[test]
    fn several_are_stars_and_the_first_arguments_stay_whatever_the_order() {
        let processes = [process(1, "a", &["z"]), process(2, "a", &["y", "x"]), process(3, "a", &["w"])];
        for order in [[0, 1, 2], [2, 1, 0]] {
            let mut group = Group::named("a".into());
            for n in order {
                group.add(&processes[n], at(n as i64), &mut Budget::default());
            }
            let columns = group.columns(2);
            assert_eq!((columns.id.as_deref(), columns.num_ids), (Some("*"), 3));
            assert_eq!((columns.args, columns.num_args), (vec!["y".into(), "z".into()], 4));
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut budget = Budget::of(2 * (VALUE_BYTES + 1));
        let mut group = Group::named("a".into());
        group.add(&process(1, "a", &["b", "c", "d", "b"]), at(0), &mut budget);
        assert_eq!(group.columns(9).num_args, 2);
        assert_eq!(budget.refused, 1);
    }
}
