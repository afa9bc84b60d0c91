//! Which pod and container a process runs in, as its cgroup tells.
//!
//! In: a cgroup's id from the kernel, a process id, `/proc/<pid>/cgroup` while the process lives, else the tree under the
//! unified hierarchy's mount. Out: the pod's uid and the container's id, as the kubelet and the runtimes write them into
//! cgroup names. What always holds: what is remembered is bounded; the tree is walked at intervals, never for each process
//! that is gone. It is the only thing that names a pod on the host network, which has no address of its own. Not here: pods.

use std::fs;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Cgroups remembered.
const KNOWN: usize = 4096;
/// Folders that one walk looks at.
const WALK_LIMIT: usize = 20_000;
const WALK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub pod_uid: Option<Arc<str>>,
    pub id: Option<Arc<str>>,
}

pub struct Containers {
    /// By cgroup id; of the unified hierarchy only.
    known: LruCache<u64, Container>,
    root: Option<PathBuf>,
    next_walk: Instant,
}

impl Containers {
    pub fn new(root: Option<PathBuf>) -> Self {
        Self {
            known: LruCache::new(NonZero::new(KNOWN).unwrap_or(NonZero::<usize>::MIN)),
            root,
            next_walk: Instant::now(),
        }
    }

    /// `text`: `/proc/<pid>/cgroup` of the process, if it still lives.
    pub fn of(&mut self, cgroup: u64, text: Option<&str>) -> Container {
        if let Some(known) = self.known.get(&cgroup) {
            return known.clone();
        }
        match text {
            Some(text) => {
                let (found, is_unified) = of_process(text);
                if is_unified && cgroup != 0 {
                    self.known.put(cgroup, found.clone());
                }
                found
            }
            None => {
                self.walk();
                self.known.get(&cgroup).cloned().unwrap_or_default()
            }
        }
    }

    /// The process is gone, but a container's cgroup outlives its processes.
    fn walk(&mut self) {
        let Some(root) = &self.root else { return };
        let now = Instant::now();
        if now < self.next_walk {
            return;
        }
        self.next_walk = now + WALK_INTERVAL;
        let mut looked = 0;
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                looked += 1;
                if looked > WALK_LIMIT {
                    return;
                }
                let path = entry.path();
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                let container = of_path(&relative);
                if container != Container::default()
                    && let Ok(metadata) = entry.metadata()
                {
                    self.known.put(metadata.ino(), container);
                }
                folders.push(path);
            }
        }
    }
}

/// From the lines of `/proc/<pid>/cgroup`; true: the unified hierarchy's line told.
fn of_process(text: &str) -> (Container, bool) {
    let mut any = Container::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let found = of_path(path);
        if found == Container::default() {
            continue;
        }
        if number == "0" && controllers.is_empty() {
            return (found, true);
        }
        any = found;
    }
    // Nothing in the unified hierarchy's line of a host that has nothing else is an answer too.
    let only_unified = text.lines().all(|line| line.starts_with("0::"));
    (any, only_unified && !text.is_empty())
}

/// From a cgroup's path. The kubelet's drivers: `kubepods/burstable/pod<uid>/<id>` and
/// `kubepods-burstable-pod<uid with _>.slice/cri-containerd-<id>.scope`.
fn of_path(path: &str) -> Container {
    let mut parts =
        path.split('/').skip_while(|part| !part.starts_with("kubepods") && !part.contains("kubelet"));
    let pod_uid = parts.by_ref().find_map(pod_uid);
    let id = if pod_uid.is_some() { parts.next().and_then(container_id) } else { None };
    Container { pod_uid, id }
}

fn pod_uid(part: &str) -> Option<Arc<str>> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (_, uid) = part.rsplit_once("-pod").or_else(|| part.strip_prefix("pod").map(|uid| ("", uid)))?;
    let is_uid = (8..=64).contains(&uid.len())
        && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-' || byte == b'_');
    is_uid.then(|| Arc::from(uid.replace('_', "-")))
}

fn container_id(part: &str) -> Option<Arc<str>> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit('-').next()?;
    let is_id = (12..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| Arc::from(id))
}

/// The root of the unified hierarchy, which must be the node's own: a container may see only its part.
pub fn unified_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?.map(PathBuf::from)
    });
    // Of the node's init, where the agent shares its process ids.
    let of_init = ["/proc/1/root/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup/unified"].map(PathBuf::from);
    own.chain(of_init).find(|path| is_root(path))
}

/// Every cgroup but the root has a type.
fn is_root(path: &Path) -> bool {
    path.join("cgroup.procs").exists() && !path.join("cgroup.type").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn container(path: &str) -> (Option<String>, Option<String>) {
        let found = of_path(path);
        (found.pod_uid.map(|uid| uid.to_string()), found.id.map(|id| id.to_string()))
    }

    #[test]
    fn both_drivers_and_all_runtimes_are_read() {
        let underscored = UID.replace('-', "_");
        let both = (Some(UID.to_owned()), Some(ID.to_owned()));
        for path in [
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}/inner"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{underscored}.slice/crio-{ID}.scope/container"),
            format!(
                "/../../kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscored}.slice/docker-{ID}.scope"
            ),
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{underscored}.slice/{ID}"),
        ] {
            assert_eq!(container(&path), both, "{path}");
        }
        assert_eq!(container(&format!("/kubepods/pod{UID}")), (Some(UID.to_owned()), None));
        for path in [
            "/",
            "/system.slice/sshd.service",
            "/user.slice/pod-man",
            "/kubepods/podx/y",
            "/podman/pod12345678",
        ] {
            assert_eq!(container(path), (None, None), "{path}");
        }
    }

    #[test]
    fn the_unified_line_is_remembered_by_its_id() {
        let mut containers = Containers::new(None);
        let text = format!("0::/kubepods/pod{UID}/{ID}\n");
        let found = containers.of(7, Some(&text));
        assert_eq!(found.pod_uid.as_deref(), Some(UID));
        assert_eq!(containers.of(7, None), found);
        assert_eq!(containers.of(8, None), Container::default());
        // The old hierarchies' paths have nothing to do with that id: on such a host it is the root's for all.
        let text = format!("4:memory:/kubepods/pod{UID}/{ID}\n0::/\n");
        assert_eq!(containers.of(1, Some(&text)), found);
        assert_eq!(containers.of(1, Some("4:memory:/\n0::/\n")), Container::default());
    }
}
