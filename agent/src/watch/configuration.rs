//! Configuration objects at the API server, beside the watch: read once, and our own one's status written.
//!
//! In: a client. Out: the objects that are layers of one node (`flowlogd config` shows them); conditions in the status
//! of a FlowLogConfiguration, by server-side apply under one field manager, whichever agent writes.
//! Always: what is not served or does not exist is no error; nothing but the status of our own objects is written.
//! What the conditions say, and which agent writes them when, is deliberately not here.

use std::time::Duration;

use http::Request;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::kinds::Selected;
use crate::config::{GROUP, KIND, Owner, PLURAL, Resource};

/// The owner of the status' fields.
const FIELD_MANAGER: &str = "flowlogd";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the API server did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the API server refuses: {0}: see the rights that deploy/ gives the agent")]
    Refused(String),
    #[error("the API server cannot be reached: {0}")]
    Unreachable(kube::Error),
    #[error("the API server does not answer within {PATIENCE:?}")]
    Silent,
}

impl From<kube::Error> for AskError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status.message.clone()),
            other => Self::Unreachable(other),
        }
    }
}

/// The objects that are layers of this node.
///
/// # Errors
/// A server that does not answer, or refuses.
pub async fn configuration(client: &Client, node: &str) -> Result<Vec<Resource>, AskError> {
    let reading = async {
        let mut resources = Vec::new();
        for selected in Selected::configuration(node) {
            for (group, version) in selected.wanted.served {
                let Some(found) = named(client, &format!("/apis/{group}/{version}"), &selected).await? else {
                    continue;
                };
                let owner = Owner::of(&format!("{group}/{version}"), selected.wanted.kind);
                for mut value in found {
                    if let Some(Ok(resource)) = owner.map(|owner| Resource::read(owner, &mut value)) {
                        resources.push(resource);
                    }
                }
                break;
            }
        }
        Ok(resources)
    };
    tokio::time::timeout(PATIENCE, reading).await.map_err(|_| AskError::Silent)?
}

/// The object of this name, if there is one, by a list: an agent's account may list and watch, and get nothing. `None`: not served.
async fn named(client: &Client, served: &str, selected: &Selected) -> Result<Option<Vec<Value>>, AskError> {
    let plural = selected.wanted.plural;
    let parameters = ListParams { field_selector: selected.field_selector(), ..ListParams::default() };
    let list = kube::core::Request::new(format!("{served}/{plural}")).list(&parameters);
    match get(client, list.map_err(|error| AskError::Unreachable(kube::Error::BuildRequest(error)))?).await {
        Ok(list) => Ok(list.map(|mut list| match list["items"].take() {
            // A server that does not heed the selector tells of others too.
            Value::Array(mut items) => {
                items.retain(|item| item["metadata"]["name"].as_str() == selected.name.as_deref());
                items
            }
            _ => Vec::new(),
        })),
        // Rights are looked at before what is served: what nobody serves is refused, too.
        Err(AskError::Refused(why)) => {
            let resources = Request::get(served).body(Vec::new());
            let resources =
                resources.map_err(|error| AskError::Unreachable(kube::Error::HttpError(error)))?;
            let all = get(client, resources).await?.unwrap_or_default();
            let is_there =
                all["resources"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == plural));
            if is_there { Err(AskError::Refused(why)) } else { Ok(None) }
        }
        Err(error) => Err(error),
    }
}

async fn get(client: &Client, request: Request<Vec<u8>>) -> Result<Option<Value>, AskError> {
    match client.request::<Value>(request).await {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// These are all conditions of the object from now on.
///
/// # Errors
/// A server that does not answer, or refuses.
pub async fn apply_conditions(client: &Client, name: &str, conditions: Vec<Value>) -> Result<(), AskError> {
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", KIND), PLURAL);
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let patch = Patch::Apply(json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": KIND,
        "metadata": {"name": name},
        "status": {"conditions": conditions},
    }));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let writing = objects.patch_status(name, &parameters, &patch);
    tokio::time::timeout(PATIENCE, writing).await.map_err(|_| AskError::Silent)??;
    Ok(())
}
