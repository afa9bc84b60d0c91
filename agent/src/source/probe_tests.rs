//! Findings out of texts and directories that stand for nodes of different kinds.

use super::*;

#[test]
fn lockdown_is_the_word_in_brackets() {
    assert_eq!(lockdown_of("none [integrity] confidentiality\n").detail, "integrity");
    assert_eq!(lockdown_of("[none] integrity confidentiality").state, State::Ok);
    assert_eq!(lockdown_of("none integrity [confidentiality]").state, State::Warn);
    assert_eq!(lockdown_of("").detail, "unknown");
}

#[test]
fn capabilities_that_lack_are_named() {
    assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    let bit = |n: u32| 1u64 << n;
    assert_eq!(capabilities_of(u64::MAX).state, State::Ok);
    assert_eq!(capabilities_of(bit(12) | bit(38) | bit(39)).state, State::Ok);
    assert_eq!(capabilities_of(bit(12) | bit(21)).state, State::Ok);
    let netlink_only = capabilities_of(bit(12));
    assert_eq!(netlink_only.state, State::Warn);
    assert!(netlink_only.remedy.contains("CAP_PERFMON CAP_BPF"), "{netlink_only:?}");
    assert_eq!(capabilities_of(0).state, State::Missing);
    assert!(capabilities_of(bit(21)).remedy.contains("CAP_NET_ADMIN"));
}

fn node(sysctls: &[(&str, &str)]) -> Vec<Finding> {
    let directory = tempfile::tempdir().unwrap();
    for (name, value) in sysctls {
        fs::write(directory.path().join(name), value).unwrap();
    }
    conntrack(directory.path())
}

#[test]
fn connection_tracking_is_told_from_its_sysctls() {
    let states = |f: Vec<Finding>| f.iter().map(|f| f.state).collect::<Vec<_>>();
    assert_eq!(states(node(&[])), [State::Missing]);
    let max = ("nf_conntrack_max", "100\n");
    let node_with =
        |count, events| states(node(&[max, ("nf_conntrack_count", count), ("nf_conntrack_events", events)]));
    assert_eq!(node_with("5\n", "2\n"), [State::Ok, State::Ok]);
    assert_eq!(node_with("0", "1"), [State::Warn, State::Ok]);
    assert_eq!(node_with("95", "0"), [State::Warn, State::Missing]);
    assert_eq!(states(node(&[max, ("nf_conntrack_count", "1")])), [State::Ok, State::Missing]);
}

#[test]
fn accounting_off_is_worse_where_the_agent_may_not_set_it() {
    assert_eq!(accounting(Some("1\n".into()), false).state, State::Ok);
    assert_eq!(accounting(Some("0\n".into()), true).state, State::Off);
    assert_eq!(accounting(Some("0\n".into()), false).state, State::Missing);
    assert_eq!(accounting(None, true).state, State::Missing);
}

#[test]
fn a_directory_that_does_not_exist_yet_is_made_in_the_nearest() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(log_directory(directory.path()).state, State::Ok);
    let deep = log_directory(&directory.path().join("a/b"));
    assert_eq!(deep.state, State::Ok);
    assert!(deep.detail.contains("to be made in"));
    assert_eq!(log_directory(Path::new("")).state, State::Missing);
}

#[test]
fn the_first_source_that_works_is_chosen_and_the_refused_are_named() {
    let sources = |ebpf: bool, netlink: bool| {
        let outcome = |works| if works { Ok(String::new()) } else { Err("no luck".to_owned()) };
        [("ebpf", outcome(ebpf)), ("netlink", outcome(netlink))]
    };
    assert_eq!(choose(SourceKind::Auto, &sources(true, true)).source, Some("ebpf"));
    let second = choose(SourceKind::Auto, &sources(false, true));
    assert_eq!(second.source, Some("netlink"));
    assert!(second.why.contains("ebpf: no luck"));
    assert_eq!(choose(SourceKind::Netlink, &sources(true, true)).source, Some("netlink"));
    assert_eq!(choose(SourceKind::Ebpf, &sources(false, true)).source, None);
    assert_eq!(choose(SourceKind::Auto, &sources(false, false)).source, None);
    assert!(choose(SourceKind::Ebpf, &[]).why.contains("not part of this agent"));
}
