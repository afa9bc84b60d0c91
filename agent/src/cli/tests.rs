//! What the parser makes of a command line: where lists end, what stands for what. Not here: verbs (`tests/cli.rs`).

use super::*;
use clap::CommandFactory as _;

#[derive(Parser, Debug)]
#[command(subcommand_precedence_over_arg = true)]
struct Whole {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verbs,
}

#[derive(Subcommand, Debug)]
enum Verbs {
    Run(run::RunArgs),
    Replay(replay::ReplayArgs),
    Record(record::RecordArgs),
}

fn parse(line: &str) -> Whole {
    Whole::try_parse_from(line.split_whitespace()).unwrap()
}

fn replayed(line: &str) -> Option<(PathBuf, Vec<PathBuf>)> {
    let Whole { mut global, verb } = parse(line);
    let Verbs::Replay(mut args) = verb else { panic!("{line}") };
    let recording = args.take_recording(&mut global.cluster).ok()?;
    Some((recording, global.cluster))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
    Whole::command().debug_assert();
}

#[test]
fn a_recording_is_found_wherever_the_paths_of_the_cluster_stand() {
    let expected = Some(("rec".into(), vec!["a".into(), "b".into()]));
    for line in [
        "f replay rec --cluster a b",
        "f replay --cluster a b rec",
        "f replay --cluster a --cluster b -- rec",
        "f --cluster a b replay rec",
        "f replay --cluster a b --node n rec",
        "f replay --cluster a b --flush explicit rec",
    ] {
        assert_eq!(replayed(line), expected, "{line}");
    }
    assert_eq!(replayed("f replay --cluster a -"), Some(("-".into(), vec!["a".into()])));
    assert_eq!(replayed("f replay -"), Some(("-".into(), vec![])));
    assert_eq!(replayed("f replay --cluster a"), None);
    assert_eq!(replayed("f replay"), None);
}

#[test]
fn flags_stand_for_fields() {
    let Verbs::Run(args) = parse("f run --source netlink --output stdout").verb else { panic!() };
    assert_eq!(args.output, run::Output::Stdout);
    assert_eq!(args.fields(), [("flowLogsSource".into(), "netlink".into(), "--source".into())]);
    assert!(Whole::try_parse_from(["f", "run", "--source", "pcap"]).is_err());
    let Verbs::Record(args) = parse("f record --duration 1m30s --output x").verb else { panic!() };
    assert_eq!(args.duration, Some(std::time::Duration::from_secs(90)));
    assert!(Whole::try_parse_from(["f", "record", "--duration", "soon"]).is_err());
}

#[test]
fn the_node_is_named_by_the_flag_or_the_host() {
    assert_eq!(Global { node: Some("n1".into()), ..Global::default() }.node_name(), "n1");
    let host = Global::default().node_name();
    assert!(!host.is_empty());
    assert_eq!(Global { node: Some(String::new()), ..Global::default() }.node_name(), host);
}
