//! The filter's flags: `--namespace shop --not-port 53 --from-pod shop/web-*`, one set for each field of the language.
//!
//! In: arguments. Out: one [`Filter`]: flags are all needed, values of one flag are alternatives, `--not-…` excludes,
//! `--from-…` and `--to-…` mean one end; `--filter` takes the language itself. Always: the flags come out of the list
//! of fields, so that a field has its flags; what does not parse is an error of the command line.

use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::filter::{Field, Filter, Pattern, Term};
use crate::model::FlowSide;

#[derive(Clone, Debug, Default)]
pub struct FilterFlags(pub Filter);

struct Flag {
    name: String,
    field: Field,
    negated: bool,
    side: Option<FlowSide>,
}

/// Of each field: plain, and for one end, and the same excluded.
static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| {
    const SIDES: [(&str, Option<FlowSide>); 3] =
        [("", None), ("from-", Some(FlowSide::Src)), ("to-", Some(FlowSide::Dst))];
    let mut flags = Vec::new();
    for field in Field::ALL.iter().copied() {
        for (not, negated) in [("", false), ("not-", true)] {
            for (end, side) in SIDES {
                if side.is_none() || field.is_of_end() {
                    flags.push(Flag { name: format!("{not}{end}{}", field.name()), field, negated, side });
                }
            }
        }
    }
    flags
});

impl Args for FilterFlags {
    fn augment_args(mut command: Command) -> Command {
        command = command.next_help_heading("Filters").arg(
            Arg::new("filter")
                .long("filter")
                .value_name("FILTER")
                .action(ArgAction::Append)
                .help("A filter, such as 'namespace=shop not (port=53 or action=allow)'; repeatable, all are needed"),
        );
        for Flag { name, field, negated, side } in &*FLAGS {
            let plain = !negated && side.is_none();
            let help = if plain {
                let ends = if field.is_of_end() { " [--from-, --to-, --not-]" } else { " [--not-]" };
                format!("{}{ends}", field.doc())
            } else {
                format!("As --{}", field.name())
            };
            let arg = Arg::new(name.as_str())
                .long(name.as_str())
                .value_name("VALUE[,VALUE]")
                .action(ArgAction::Append)
                .hide_short_help(!plain)
                .hide_long_help(!plain)
                .help(help);
            command = command.arg(arg);
        }
        command.next_help_heading(None)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FilterFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let wrong = |message: String| clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n"));
        let mut filter = Filter::Any;
        for text in matches.get_many::<String>("filter").into_iter().flatten() {
            filter = filter.and(text.parse().map_err(|error| wrong(format!("--filter {text:?}: {error}")))?);
        }
        for Flag { name, field, negated, side } in &*FLAGS {
            let values: Vec<Pattern> = matches
                .get_many::<String>(name)
                .into_iter()
                .flatten()
                .flat_map(|values| values.split(','))
                .map(|value| {
                    Pattern::parse(*field, value).map_err(|error| wrong(format!("--{name}: {error}")))
                })
                .collect::<Result<_, _>>()?;
            if values.is_empty() {
                continue;
            }
            let term = Filter::Term(Term { field: *field, side: *side, values });
            filter = filter.and(if *negated { Filter::Not(Box::new(term)) } else { term });
        }
        Ok(Self(filter))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
