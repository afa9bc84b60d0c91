//! What a watch tells that was cut off for a while: who had an address when nobody was looking.

use super::*;

/// `old` had the address when the watch was last heard of, at 40 s; `new` was made at 50 s and has it at 100 s.
fn replaced(old: &str, new: &str) -> Cluster {
    let mut before = pod(old, "node-1", &["10.1.0.1"]);
    before.uid = Some(arc("uid-before"));
    let mut after = pod(new, "node-1", &["10.1.0.1"]);
    after.uid = Some(arc("uid-after"));
    after.created = Some(t(50));
    let mut c = cluster([Object::Pod(before)]);
    c.replace_all(ObjectKind::Pod, vec![Object::Pod(after)], t(40), t(100));
    c
}

#[test]
fn the_successor_of_an_outage_has_the_address_from_its_creation_on() {
    let c = replaced("old", "new");
    for (at, name) in [(30, "old"), (45, "old"), (49, "old"), (51, "new"), (99, "new"), (200, "new")] {
        assert_eq!(owner(&c, "10.1.0.1", at).as_deref(), Some(name), "at {at}");
    }
}

#[test]
fn a_successor_of_the_same_name_is_another_pod() {
    let c = replaced("web-0", "web-0");
    let uid = |at| c.endpoint_at(ip("10.1.0.1"), t(at), false).unwrap().uid.clone().unwrap();
    assert_eq!(
        (&*uid(30), &*uid(45), &*uid(60), &*uid(120)),
        ("uid-before", "uid-before", "uid-after", "uid-after")
    );
}

#[test]
fn a_pod_that_went_in_an_outage_is_not_named_after_its_grace() {
    let mut c = cluster([Object::Pod(pod("gone", "node-1", &["10.1.0.1"]))]);
    c.replace_all(ObjectKind::Pod, vec![], t(40), t(100));
    assert_eq!(owner(&c, "10.1.0.1", 49).as_deref(), Some("gone"));
    assert_eq!(owner(&c, "10.1.0.1", 51), None);
}
