//! An API server that answers what a case tells it.
//!
//! In: a function from a request (what is asked, and how often it was asked before) to an [`Answer`]. Out: a server on
//! loopback, and every request that it got. What a case does not mention is answered as a small, healthy server would:
//! nothing is served beside the core kinds, lists are empty, watches are silent, streaming lists are refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use flowlogd::model::Timestamp;
use flowlogd::snapshot::{Snapshot, World};
use flowlogd::watch::{Cluster, Link, Status, Timing, Wanted};
use futures::StreamExt as _;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The last part of the path, such as `pods`; of discovery, the whole path.
    pub of: String,
    pub query: BTreeMap<String, String>,
    /// As it came.
    pub raw_query: String,
    /// How many of the same kind and purpose came before.
    pub nth: usize,
    pub at: Instant,
}

impl Ask {
    pub fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true")
    }

    pub fn is_streaming_list(&self) -> bool {
        self.query.contains_key("sendInitialEvents")
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    fn purpose(&self) -> (String, bool, bool) {
        (self.of.clone(), self.is_watch(), self.is_streaming_list())
    }
}

pub enum Answer {
    Status(u16, Vec<(&'static str, String)>, Value),
    /// A body as it is; `true`: it does not end.
    Bytes(Vec<u8>, bool),
    /// A body that the case feeds; it ends when the case drops the other end.
    Fed(mpsc::UnboundedReceiver<Vec<u8>>),
}

/// Events, one a line.
pub fn lines(events: &[Value]) -> Vec<u8> {
    events.iter().flat_map(|event| format!("{event}\n").into_bytes()).collect()
}

pub fn events(events: &[Value]) -> Answer {
    Answer::Bytes(lines(events), true)
}

pub fn refuse(code: u16, reason: &str) -> Answer {
    Answer::Status(code, Vec::new(), status(code, reason))
}

pub fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
           "message": format!("scripted {reason}")})
}

pub fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

pub fn list(version: u64, items: &[Value]) -> Answer {
    Answer::Bytes(list_text(version, items).into_bytes(), false)
}

pub fn list_text(version: u64, items: &[Value]) -> String {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()},
           "items": items})
    .to_string()
}

pub fn pod(name: &str, ip: &str, version: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
                        "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z"},
           "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
           "status": {"phase": "Running", "podIP": ip}})
}

type Script = dyn Fn(&Ask) -> Option<Answer> + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Ask>>>,
}

impl Server {
    pub async fn start(script: impl Fn(&Ask) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    pub fn start_on(
        listener: TcpListener,
        script: impl Fn(&Ask) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Ask>>> = Arc::default();
        let (log, script): (_, Arc<Script>) = (asked.clone(), Arc::new(script));
        let router = Router::new().fallback(move |request: Request| {
            let response = answer(&request, &log, &*script);
            async move { response }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    /// The requests for this, in the order in which they came.
    pub fn asked(&self, of: &str) -> Vec<Ask> {
        self.asked.lock().unwrap().iter().filter(|ask| ask.of == of).cloned().collect()
    }

    pub fn lists(&self, of: &str) -> Vec<Ask> {
        self.asked(of).into_iter().filter(|ask| !ask.is_watch()).collect()
    }

    pub fn watches(&self, of: &str) -> Vec<Ask> {
        self.asked(of).into_iter().filter(|ask| ask.is_watch() && !ask.is_streaming_list()).collect()
    }
}

fn answer(request: &Request, log: &Mutex<Vec<Ask>>, script: &Script) -> Response {
    let path = request.uri().path().trim_end_matches('/');
    // The client writes `?&a=b`.
    let raw_query = request.uri().query().unwrap_or_default().trim_start_matches('&').to_owned();
    let pairs = raw_query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // `/apis`, `/apis/group/version` are discovery; below a version is a kind.
    let parts: Vec<&str> = path.split('/').collect();
    let is_kind = parts.get(1) == Some(&"api") && parts.len() > 3 || parts.len() > 4;
    let of = if is_kind { (*parts.last().unwrap()).to_owned() } else { path.to_owned() };
    let mut ask = Ask { of, query, raw_query, nth: 0, at: Instant::now() };
    let mut log = log.lock().unwrap();
    ask.nth = log.iter().filter(|before| before.purpose() == ask.purpose()).count();
    log.push(ask.clone());
    drop(log);
    let healthy = || {
        if ask.of == "/apis" {
            Answer::Status(200, vec![], json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))
        } else if !is_kind {
            refuse(404, "NotFound")
        } else if ask.is_streaming_list() {
            refuse(422, "Invalid")
        } else if ask.is_watch() {
            events(&[])
        } else {
            list(1, &[])
        }
    };
    match script(&ask).unwrap_or_else(healthy) {
        Answer::Status(code, headers, body) => {
            let mut response = Response::builder().status(code).header("content-type", "application/json");
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Body::from(body.to_string())).unwrap()
        }
        Answer::Bytes(bytes, open) => {
            let first = futures::stream::once(async { Ok::<_, Infallible>(Bytes::from(bytes)) });
            let body = if open {
                Body::from_stream(first.chain(futures::stream::pending()))
            } else {
                Body::from_stream(first)
            };
            Response::new(body)
        }
        Answer::Fed(fed) => {
            let pieces = futures::stream::unfold(fed, |mut fed| async {
                let piece = fed.recv().await?;
                Some((Ok::<_, Infallible>(Bytes::from(piece)), fed))
            });
            Response::new(Body::from_stream(pieces))
        }
    }
}

/// The groups that `/apis` and `/apis/group/version` tell of.
pub fn serves(ask: &Ask, group: &str, version: &str, plurals: &[&str]) -> Option<Answer> {
    let whole = format!("{group}/{version}");
    if ask.of == "/apis" {
        let versions = json!([{"groupVersion": whole, "version": version}]);
        let groups = json!([{"name": group, "versions": versions, "preferredVersion": versions[0]}]);
        let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
        return Some(Answer::Status(200, vec![], list));
    }
    let resource = |name: &&str| json!({"name": name, "singularName": "", "namespaced": false, "kind": "K", "verbs": ["list", "watch"]});
    (ask.of == format!("/apis/{whole}")).then(|| {
        let resources: Vec<Value> = plurals.iter().map(resource).collect();
        let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": whole, "resources": resources});
        Answer::Status(200, vec![], list)
    })
}

/// Everything quick, so that no test waits long.
pub const QUICK: Timing = Timing {
    idle: Duration::from_secs(20),
    watch: Duration::from_secs(60),
    backoff: Duration::from_millis(5),
    backoff_most: Duration::from_millis(20),
    discovery: Duration::from_millis(20),
    debounce: Duration::from_millis(1),
    hold: Duration::from_secs(600),
};

/// What watches a server.
pub struct Watching {
    pub link: Link,
    pub published: Arc<arc_swap::ArcSwap<Snapshot>>,
    pub status: Arc<Status>,
}

impl Watching {
    pub fn of(address: SocketAddr, timing: Timing) -> Self {
        Self::with(address, timing, &[])
    }

    pub fn with(address: SocketAddr, timing: Timing, more: &[Wanted]) -> Self {
        let mut config = Config::new(format!("http://{address}").parse().unwrap());
        config.default_retry = false;
        let (link, looking) = Link::new(Client::try_from(config).unwrap(), timing, more);
        tokio::spawn(looking);
        let published = Arc::new(arc_swap::ArcSwap::from_pointee(Snapshot::without_cluster("n1".into())));
        let cluster = Cluster::new(World::new("n1".into()), published.clone());
        let status = cluster.status.clone();
        tokio::spawn(cluster.follow(link.clone(), now));
        Self { link, published, status }
    }

    /// The pod that has this address now.
    pub fn pod_at(&self, ip: &str) -> Option<String> {
        let snapshot = self.published.load();
        let owner = snapshot.cluster.endpoint_at(ip.parse().unwrap(), now(), false)?;
        Some(owner.name.to_string())
    }

    pub fn kind(&self, kind: &str) -> &flowlogd::watch::KindStatus {
        self.status.kinds.iter().find(|status| status.kind == kind).unwrap()
    }

    pub async fn synced(&self) {
        until("the world is published", || self.status.is_synced()).await;
    }
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

/// Waits for a condition, at most a minute.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
