//! The API server of the bench, in a process of its own.
//!
//! In: a port is chosen and printed; the end of stdin is the sign to send events. Out: lists and silent watches, and
//! [`EVENTS`] pod events. Objects are made while they are sent, so that the server costs no memory.

use std::convert::Infallible;
use std::io::Read as _;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::objects::{self, Size};

pub const EVENTS: u64 = if cfg!(debug_assertions) { 100 } else { 5_000 };

type Make = fn(u64) -> String;

pub fn serve(size: Size) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let go = Arc::new(Notify::new());
    let ended = go.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        ended.notify_one();
    });
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        let router = Router::new().fallback(move |request: Request| {
            let response = answer(size, &request, &go);
            async move { response }
        });
        axum::serve(listener, router).await?;
        Ok(())
    })
}

fn answer(size: Size, request: &Request, go: &Arc<Notify>) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let path = request.uri().path();
    if let Some(body) = discovery(path) {
        return body.to_string().into_response();
    }
    let of = path.rsplit('/').next().unwrap_or_default();
    if query.contains("sendInitialEvents") {
        return (StatusCode::UNPROCESSABLE_ENTITY, "{}").into_response();
    }
    if query.contains("watch=true") {
        return watch(of == "pods", go.clone());
    }
    let (count, make): (u64, Make) = match of {
        "pods" => (size.pods, |n| objects::pod(n, 0, 1_000_000 + n)),
        "nodes" => (size.nodes, objects::node),
        "namespaces" => (500, objects::namespace),
        "serviceaccounts" => (size.pods / 20, objects::service_account),
        "services" => (size.services, objects::service),
        "endpointslices" => (size.services, objects::slice),
        "globalnetworksets" => (size.sets, objects::set),
        "networkpolicies" => (size.policies, objects::policy),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let begin = r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"2000000"},"items":["#;
    let items = stream::iter((0..count).step_by(32).map(move |from| {
        let mut text = String::new();
        for n in from..(from + 32).min(count) {
            text.push_str(&make(n));
            text.push(if n + 1 < count { ',' } else { ' ' });
        }
        text
    }));
    let whole = stream::iter([begin.to_owned()]).chain(items).chain(stream::iter(["]}".to_owned()]));
    Response::new(Body::from_stream(whole.map(|text| Ok::<_, Infallible>(Bytes::from(text)))))
}

fn watch(of_pods: bool, go: Arc<Notify>) -> Response {
    let events = stream::once(async move {
        if of_pods {
            go.notified().await;
        } else {
            std::future::pending::<()>().await;
        }
        stream::iter(0..EVENTS).map(|n| {
            let pod = objects::pod(n, 1, 9_000_000 + n);
            Ok::<_, Infallible>(Bytes::from(format!("{{\"type\":\"MODIFIED\",\"object\":{pod}}}\n")))
        })
    });
    Response::new(Body::from_stream(events.flatten().chain(stream::pending())))
}

fn discovery(path: &str) -> Option<Value> {
    let groups = [
        ("discovery.k8s.io", "v1", &["endpointslices"][..]),
        ("networking.k8s.io", "v1", &["networkpolicies"]),
        ("crd.projectcalico.org", "v1", &["globalnetworksets"]),
    ];
    if path == "/apis" {
        let groups = groups.iter().map(|(group, version, _)| {
            json!({"name": group, "versions": [{"groupVersion": format!("{group}/{version}"), "version": version}]})
        });
        return Some(json!({"kind": "APIGroupList", "groups": groups.collect::<Vec<_>>()}));
    }
    let (group, version, plurals) =
        groups.iter().find(|(group, version, _)| path == format!("/apis/{group}/{version}"))?;
    let resources = plurals.iter().map(|name| {
        json!({"name": name, "singularName": "", "namespaced": true, "kind": "K", "verbs": ["list", "watch"]})
    });
    Some(
        json!({"kind": "APIResourceList", "groupVersion": format!("{group}/{version}"), "resources": resources.collect::<Vec<_>>()}),
    )
}
