//! What answers which path.
//!
//! In: a request. Out: metrics as text; checks as JSON, with 200 if all are passed, else 503. Always: an answer takes
//! no lock that the data path holds for long, and asks the stages nothing: it reads what they left.
//! `/liveness` and `/readiness` are Felix's names of the same two.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;

use crate::telemetry::Metric;

use super::exposition::{Format, exposition};

/// One thing that health depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub passed: bool,
    /// What it is like now; of a check that is not passed also what can be done.
    pub reason: String,
}

/// Asks for all checks of one kind.
pub type Ask = Arc<dyn Fn() -> Vec<Check> + Send + Sync>;

#[derive(Clone)]
pub struct Health {
    /// Not passed: the process is of no use any more and should be started again.
    pub live: Ask,
    /// Not passed: it works on it.
    pub ready: Ask,
}

pub fn health_routes(health: &Health) -> Router {
    let route = |ask: &Ask| {
        let ask = ask.clone();
        get(move || async move { answer(&ask()) })
    };
    Router::new()
        .route("/healthz", route(&health.live))
        .route("/liveness", route(&health.live))
        .route("/readyz", route(&health.ready))
        .route("/readiness", route(&health.ready))
}

fn answer(checks: &[Check]) -> Response {
    let passed = checks.iter().all(|check| check.passed);
    let list: Vec<_> = checks
        .iter()
        .map(|check| json!({ "name": check.name, "passed": check.passed, "reason": check.reason }))
        .collect();
    let status = if passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "passed": passed, "checks": list }))).into_response()
}

/// `values` is asked at each scrape.
pub fn metrics_routes(values: impl Fn() -> Vec<Metric> + Clone + Send + Sync + 'static) -> Router {
    let metrics = move |headers: HeaderMap| {
        let values = values.clone();
        async move {
            let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::accepted(accept);
            match exposition(values(), format) {
                Ok(body) => ([(header::CONTENT_TYPE, format.content_type())], body).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    };
    Router::new().route("/metrics", get(metrics))
}
