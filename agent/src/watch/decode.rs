//! One object, from its JSON form to what the cluster keeps.
//!
//! In: a JSON value (of a manifest, of a recording's `apply` or `delete`). Out: an [`Object`] or an [`ObjectRef`]; the
//! kind alone where the agent does not use it; else an error that names the object and the field.
//! What always holds: what comes out is valid (names that are names, addresses that are addresses, ports that are
//! ports); hostile input is an error and never a panic. API versions: `v1`, `discovery.k8s.io/v1` and `v1beta1`,
//! `projectcalico.org/v3` and `crd.projectcalico.org/v1`; of policies, see `policies/mod.rs`. Lists are deliberately
//! not here: see `manifests.rs`.

use std::net::IpAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::{self, Ip, LabelMap, Meta, parse_ip, parse_ip_or_prefix};
use super::policies;
use crate::cluster::{
    self, EndpointGroup, EndpointPort, HostEndpoint, NamedPort, Namespace, NetworkSet, Node, ObjectKind, Pod,
    Service, ServiceAccount, ServiceEndpoints, ServicePort,
};
use crate::config;
use crate::model::{Labels, Proto};
use crate::policy::{Resource, ResourceRef};
use crate::snapshot::{Kind, Object, ObjectRef};

/// The label by which an EndpointSlice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Where a namespaced object is when it does not say so.
const DEFAULT_NAMESPACE: &str = "default";
/// Kubernetes' limit for the names of objects, in bytes.
const NAME_LIMIT: usize = 253;

#[derive(Debug, PartialEq)]
pub enum Decoded {
    Object(Object),
    /// A layer of some agent's configuration.
    Configuration(config::Resource),
    /// The agent does not use objects of this kind.
    Unused {
        kind: String,
    },
}

#[derive(Debug, PartialEq)]
pub enum DecodedRef {
    Ref(ObjectRef),
    Configuration(config::ResourceRef),
    /// The agent does not use objects of this kind.
    Unused {
        kind: String,
    },
}

/// Which field of which object is wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: field `{field}`: {problem}")]
pub struct DecodeError {
    /// Kind and name, as far as they can be read.
    pub object: String,
    /// The path of the field, such as `spec.ports[0].port`; `.` for the object itself.
    pub field: String,
    pub problem: String,
}

/// An object that a server tells and that cannot be read.
#[derive(Debug)]
pub struct Unreadable<T> {
    pub error: DecodeError,
    /// What is told in its place, so that nobody takes it for absent; `None`: it is left out.
    pub stands: Option<Box<T>>,
}

/// One object.
///
/// # Errors
/// A field that is missing, of the wrong type or not valid.
pub fn decode(value: Value) -> Result<Decoded, DecodeError> {
    let object = describe(&value);
    if !value.is_object() {
        // serde would read a sequence as the fields in order.
        return Err(DecodeError {
            object,
            ..invalid(".", "is not a map of fields: not a Kubernetes object")
        });
    }
    let types: objects::TypeMeta = fields(&object, &value)?;
    if let Some(owner) = config::Owner::of(&types.api_version, &types.kind) {
        return configuration(owner, value).map_err(|error| DecodeError { object, ..error });
    }
    let Some(kind) = kind_of(&types) else { return Ok(Decoded::Unused { kind: types.kind.to_string() }) };
    let kind = match kind {
        Kind::Cluster(kind) => kind,
        Kind::Policy(kind) => {
            return match policies::decode(kind, &object, value) {
                Ok(resource) => Ok(Decoded::Object(Object::Policy(resource))),
                Err(error) => Err(DecodeError { object, ..error }),
            };
        }
    };
    let decoded = match kind {
        ObjectKind::Namespace => fields(&object, value).and_then(namespace),
        ObjectKind::ServiceAccount => fields(&object, value).and_then(service_account),
        ObjectKind::Pod => fields(&object, value).and_then(pod),
        ObjectKind::Node => fields(&object, value).and_then(node),
        ObjectKind::Service => fields(&object, value).and_then(service),
        ObjectKind::EndpointSlice => fields(&object, value).and_then(endpoint_slice),
        ObjectKind::Endpoints => fields(&object, value).and_then(endpoints),
        ObjectKind::NetworkSet => fields(&object, value).and_then(|set| network_set(set, true)),
        ObjectKind::GlobalNetworkSet => fields(&object, value).and_then(|set| network_set(set, false)),
        ObjectKind::HostEndpoint => fields(&object, value).and_then(host_endpoint),
    };
    decoded.map(Object::Cluster).map(Decoded::Object).map_err(|error| DecodeError { object, ..error })
}

/// The same from text, for an object whose kind is known: items of a list do not say theirs. Kinds of which there are many
/// are read at once into what is used of them.
///
/// # Errors
/// Text that is not JSON; a field that is missing, of the wrong type or not valid.
pub fn decode_text(api_version: &str, kind: &str, text: &str) -> Result<Decoded, DecodeError> {
    let types = objects::TypeMeta { api_version: api_version.into(), kind: kind.into() };
    let decoded = match kind_of(&types) {
        Some(Kind::Cluster(ObjectKind::Pod)) => read(text, pod),
        Some(Kind::Cluster(ObjectKind::Node)) => read(text, node),
        Some(Kind::Cluster(ObjectKind::Namespace)) => read(text, namespace),
        Some(Kind::Cluster(ObjectKind::ServiceAccount)) => read(text, service_account),
        Some(Kind::Cluster(ObjectKind::Service)) => read(text, service),
        Some(Kind::Cluster(ObjectKind::EndpointSlice)) => read(text, endpoint_slice),
        Some(Kind::Cluster(ObjectKind::Endpoints)) => read(text, endpoints),
        _ => None,
    };
    if let Some(object) = decoded {
        return Ok(Decoded::Object(Object::Cluster(object)));
    }
    // The longer way also says what is wrong, and where.
    let mut value: Value = serde_json::from_str(text).map_err(|error| DecodeError {
        object: format!("object of kind {kind}"),
        ..invalid(".", format!("is not JSON: {error}"))
    })?;
    typed(&mut value, api_version, kind);
    decode(value)
}

/// What an object of a list or an event does not say itself.
fn typed(value: &mut Value, api_version: &str, kind: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), api_version.into());
        fields.insert("kind".to_owned(), kind.into());
    }
}

/// `None`: something is wrong with it.
fn read<T: DeserializeOwned>(
    text: &str,
    check: fn(T) -> Result<cluster::Object, DecodeError>,
) -> Option<cluster::Object> {
    // serde would read a sequence as the fields in order.
    if !text.trim_start().starts_with('{') {
        return None;
    }
    serde_json::from_str(text).ok().and_then(|object| check(object).ok())
}

/// What a recording's `delete` names: `{"apiVersion","kind","namespace"?,"name"}`.
///
/// # Errors
/// A field that is missing, unknown, of the wrong type or not valid.
pub fn decode_ref(value: Value) -> Result<DecodedRef, DecodeError> {
    let object = describe(&value);
    if !value.is_object() {
        return Err(DecodeError {
            object,
            ..invalid(".", "is not a map of fields: not a reference to an object")
        });
    }
    let reference: objects::Reference = fields(&object, value)?;
    if let Some(owner) = config::Owner::of(&reference.api_version, &reference.kind) {
        let name = checked(reference.name, "name").map_err(|error| DecodeError { object, ..error })?;
        return Ok(DecodedRef::Configuration(config::ResourceRef { owner, name: name.to_string() }));
    }
    let types = objects::TypeMeta { api_version: reference.api_version, kind: reference.kind };
    let Some(kind) = kind_of(&types) else { return Ok(DecodedRef::Unused { kind: types.kind.to_string() }) };
    let reference = reference_of(kind, reference.namespace, "namespace", reference.name, "name");
    reference.map(DecodedRef::Ref).map_err(|error| DecodeError { object, ..error })
}

/// What stands for a policy object that could not be decoded: its place in the world, marked as unreadable, so that
/// nobody is judged without it. `None` of other kinds, and of an object whose name cannot be read either.
pub fn unreadable(value: &Value, error: &DecodeError) -> Option<Object> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(Arc::<str>::from);
    let types = objects::TypeMeta { api_version: text("/apiVersion")?, kind: text("/kind")? };
    let kind @ Kind::Policy(_) = kind_of(&types)? else { return None };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name")?);
    match reference_of(kind, namespace, "metadata.namespace", name, "metadata.name").ok()? {
        ObjectRef::Policy(reference) => {
            Some(Object::Policy(Resource::Broken(reference, error.to_string().into())))
        }
        ObjectRef::Cluster(_) => None,
    }
}

/// The same from text that [`decode_text`] could not read.
pub fn unreadable_text(api_version: &str, kind: &str, text: &str, error: &DecodeError) -> Option<Object> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    typed(&mut value, api_version, kind);
    unreadable(&value, error)
}

fn reference_of(
    kind: Kind,
    namespace: Option<Arc<str>>,
    namespace_field: &str,
    name: Arc<str>,
    name_field: &str,
) -> Result<ObjectRef, DecodeError> {
    let is_namespaced = match kind {
        Kind::Cluster(kind) => kind.is_namespaced(),
        Kind::Policy(kind) => kind.is_namespaced(),
    };
    let namespace = is_namespaced.then(|| namespace_of(namespace, namespace_field)).transpose()?;
    let name = checked(name, name_field)?;
    Ok(match kind {
        Kind::Cluster(kind) => ObjectRef::Cluster(cluster::ObjectRef { kind, namespace, name, uid: None }),
        Kind::Policy(kind) => ObjectRef::Policy(ResourceRef { kind, namespace, name }),
    })
}

fn kind_of(types: &objects::TypeMeta) -> Option<Kind> {
    let policy = policies::kind_of(&types.api_version, &types.kind).map(Kind::Policy);
    policy.or_else(|| cluster_kind_of(types).map(Kind::Cluster))
}

fn cluster_kind_of(types: &objects::TypeMeta) -> Option<ObjectKind> {
    Some(match (&*types.api_version, &*types.kind) {
        ("v1", "Namespace") => ObjectKind::Namespace,
        ("v1", "ServiceAccount") => ObjectKind::ServiceAccount,
        ("v1", "Pod") => ObjectKind::Pod,
        ("v1", "Node") => ObjectKind::Node,
        ("v1", "Service") => ObjectKind::Service,
        ("v1", "Endpoints") => ObjectKind::Endpoints,
        ("discovery.k8s.io/v1" | "discovery.k8s.io/v1beta1", "EndpointSlice") => ObjectKind::EndpointSlice,
        ("projectcalico.org/v3" | "crd.projectcalico.org/v1", kind) => match kind {
            "NetworkSet" => ObjectKind::NetworkSet,
            "GlobalNetworkSet" => ObjectKind::GlobalNetworkSet,
            "HostEndpoint" => ObjectKind::HostEndpoint,
            _ => return None,
        },
        _ => return None,
    })
}

/// Kind and name for messages, as far as they are there.
fn describe(value: &Value) -> String {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object of unknown kind");
    let name = text("/metadata/name").or_else(|| text("/name")).unwrap_or("without a name");
    let namespace = text("/metadata/namespace").or_else(|| text("/namespace"));
    let whole = match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    };
    whole.chars().map(|c| if c.is_control() { '?' } else { c }).take(300).collect()
}

pub(super) fn fields<'de, T, D>(object: &str, value: D) -> Result<T, DecodeError>
where
    T: DeserializeOwned,
    D: serde::Deserializer<'de>,
    D::Error: std::fmt::Display,
{
    serde_path_to_error::deserialize(value).map_err(|error| DecodeError {
        object: object.to_owned(),
        field: error.path().to_string(),
        problem: error.inner().to_string(),
    })
}

/// Whether its values are allowed is not asked here: a bad one costs its field, never the object.
fn configuration(owner: config::Owner, mut value: Value) -> Result<Decoded, DecodeError> {
    let resource = config::Resource::read(owner, &mut value).map_err(|problem| invalid("spec", problem))?;
    checked(resource.reference.name.as_str().into(), "metadata.name")?;
    Ok(Decoded::Configuration(resource))
}

/// The object's own name is filled in by the caller.
pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> DecodeError {
    DecodeError { object: String::new(), field: field.into(), problem: problem.into() }
}

/// A name that can stand in a line: not empty, not too long, no `/`, no white space, no control characters.
pub(super) fn checked(name: Arc<str>, field: &str) -> Result<Arc<str>, DecodeError> {
    if name.is_empty() {
        Err(invalid(field, "is empty"))
    } else if name.len() > NAME_LIMIT {
        Err(invalid(field, format!("is longer than {NAME_LIMIT} bytes")))
    } else if name.chars().any(|c| c == '/' || c.is_whitespace() || c.is_control()) {
        Err(invalid(field, format!("{name:?} is not a name: no slash, white space or control character")))
    } else {
        Ok(name)
    }
}

pub(super) fn namespace_of(namespace: Option<Arc<str>>, field: &str) -> Result<Arc<str>, DecodeError> {
    match namespace {
        Some(namespace) if !namespace.is_empty() => checked(namespace, field),
        _ => Ok(DEFAULT_NAMESPACE.into()),
    }
}

/// Empty is absent.
fn some(text: Option<Arc<str>>) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty())
}

fn labels(map: Option<LabelMap>) -> Labels {
    map.unwrap_or_default().0
}

fn addresses(ips: Option<Vec<Ip>>) -> impl Iterator<Item = IpAddr> {
    ips.unwrap_or_default().into_iter().filter_map(|ip| ip.0)
}

/// What every kind has: checked name and labels.
fn names<A>(meta: &mut Meta<A>) -> Result<(Arc<str>, Labels), DecodeError> {
    Ok((checked(meta.name.clone(), "metadata.name")?, labels(meta.labels.take())))
}

/// The same with the namespace.
fn namespaced<A>(meta: &mut Meta<A>) -> Result<(Arc<str>, Arc<str>, Labels), DecodeError> {
    let (name, labels) = names(meta)?;
    Ok((namespace_of(meta.namespace.take(), "metadata.namespace")?, name, labels))
}

fn namespace(mut o: objects::Bare) -> Result<cluster::Object, DecodeError> {
    let (name, labels) = names(&mut o.metadata)?;
    Ok(cluster::Object::Namespace(Namespace { name, labels }))
}

fn service_account(mut o: objects::Bare) -> Result<cluster::Object, DecodeError> {
    let (namespace, name, labels) = namespaced(&mut o.metadata)?;
    Ok(cluster::Object::ServiceAccount(ServiceAccount { namespace, name, labels }))
}

fn pod(mut o: objects::Pod) -> Result<cluster::Object, DecodeError> {
    let (namespace, name, labels) = namespaced(&mut o.metadata)?;
    let spec = o.spec.unwrap_or_default();
    let status = o.status.unwrap_or_default();
    let annotations = o.metadata.annotations.unwrap_or_default();
    let deletion = o.metadata.deletion.map(|time| time.0);
    let phase = status.phase.as_deref().unwrap_or_default();
    // Calico's CNI plugin empties the annotation when it takes the address back, before the pod is gone.
    let released = deletion.is_some() && annotations.pod_ip.as_deref() == Some("");
    let finished = released || matches!(phase, "Failed" | "Succeeded" | "Completed");

    let mut ips: Vec<IpAddr> =
        status.pod_ips.unwrap_or_default().into_iter().filter_map(|ip| ip.ip?.0).collect();
    if ips.is_empty() {
        ips.extend(status.pod_ip.and_then(|ip| ip.0));
    }
    if ips.is_empty() {
        let listed = annotations.pod_ips.as_deref().unwrap_or_default();
        for text in listed.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let field = "metadata.annotations.cni.projectcalico.org/podIPs";
            ips.push(parse_ip_or_prefix(text).map_err(|problem| invalid(field, problem))?);
        }
    }
    if ips.is_empty()
        && let Some(text) = annotations.pod_ip.as_deref().filter(|text| !text.is_empty())
    {
        let field = "metadata.annotations.cni.projectcalico.org/podIP";
        ips.push(parse_ip_or_prefix(text).map_err(|problem| invalid(field, problem))?);
    }

    let networked = status.conditions.into_iter().flatten().find_map(|condition| {
        let holds = condition.kind.as_deref() == Some("PodReadyToStartContainers")
            && condition.status.as_deref() == Some("True");
        condition.since.filter(|_| holds).and_then(|text| objects::Time::of(&text)).map(|time| time.0)
    });

    let containers = spec.containers.into_iter().chain(spec.init_containers).flatten();
    let ports = containers.flat_map(|container| container.ports.unwrap_or_default()).map(|port| NamedPort {
        name: some(port.name),
        proto: port.protocol.map_or(Proto::TCP, |protocol| protocol.0),
        port: port.container_port.0,
    });
    Ok(cluster::Object::Pod(Pod {
        namespace,
        name,
        uid: some(o.metadata.uid),
        mirrored_uid: some(annotations.mirrored_uid),
        generate_name: some(o.metadata.generate_name),
        labels,
        node: some(spec.node_name),
        host_network: spec.host_network.unwrap_or(false),
        ips,
        finished,
        service_account: some(spec.service_account_name).or(some(spec.service_account)),
        ports: ports.collect(),
        created: o.metadata.created.map(|time| time.0),
        deletion,
        networked,
    }))
}

fn node(mut o: objects::Node) -> Result<cluster::Object, DecodeError> {
    let (name, labels) = names(&mut o.metadata)?;
    let mut addresses = Vec::new();
    let listed = o.status.and_then(|status| status.addresses).unwrap_or_default();
    for (index, address) in listed.into_iter().enumerate() {
        match parse_ip(&address.address) {
            Ok(ip) => addresses.push(ip),
            // Hostname, InternalDNS, ExternalDNS
            Err(_) if !matches!(address.kind.as_str(), "InternalIP" | "ExternalIP") => {}
            Err(problem) => return Err(invalid(format!("status.addresses[{index}].address"), problem)),
        }
    }
    let a = o.metadata.annotations.unwrap_or_default();
    for (key, text) in [
        ("IPv4Address", a.v4),
        ("IPv6Address", a.v6),
        ("IPv4IPIPTunnelAddr", a.v4_ipip),
        ("IPv4VXLANTunnelAddr", a.v4_vxlan),
        ("IPv6VXLANTunnelAddr", a.v6_vxlan),
        ("IPv4WireguardInterfaceAddr", a.v4_wireguard),
        ("IPv6WireguardInterfaceAddr", a.v6_wireguard),
    ] {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            let field = || format!("metadata.annotations.projectcalico.org/{key}");
            addresses.push(parse_ip_or_prefix(&text).map_err(|problem| invalid(field(), problem))?);
        }
    }
    addresses.sort();
    addresses.dedup();
    Ok(cluster::Object::Node(Node { name, labels, addresses }))
}

fn service(mut o: objects::Service) -> Result<cluster::Object, DecodeError> {
    let (namespace, name, _) = namespaced(&mut o.metadata)?;
    let spec = o.spec.unwrap_or_default();
    // An ExternalName service is a DNS name: nothing is bound to an address, whatever else the object says.
    let external_name = spec.kind.as_deref() == Some("ExternalName");
    let (mut ips, mut ports) = (Vec::new(), Vec::new());
    if !external_name {
        let balancer = o.status.and_then(|status| status.load_balancer).and_then(|balancer| balancer.ingress);
        ips.extend(spec.cluster_ip.and_then(|ip| ip.0));
        ips.extend(addresses(spec.cluster_ips));
        ips.extend(addresses(spec.external_ips));
        ips.extend(balancer.unwrap_or_default().into_iter().filter_map(|ingress| ingress.ip?.0));
        ips.sort();
        ips.dedup();
        ports.extend(spec.ports.unwrap_or_default().into_iter().map(|port| ServicePort {
            name: some(port.name),
            proto: port.protocol.map_or(Proto::TCP, |protocol| protocol.0),
            port: port.port.0,
            node_port: port.node_port.map(|port| port.0).filter(|port| *port != 0),
        }));
    }
    Ok(cluster::Object::Service(Service { namespace, name, ips, ports }))
}

fn endpoint_port(port: objects::SlicePort) -> EndpointPort {
    EndpointPort {
        name: some(port.name),
        proto: port.protocol.map_or(Proto::TCP, |protocol| protocol.0),
        port: port.port.map(|port| port.0),
    }
}

fn endpoint_slice(mut o: objects::EndpointSlice) -> Result<cluster::Object, DecodeError> {
    let (namespace, name, labels) = namespaced(&mut o.metadata)?;
    let mut addresses = Vec::new();
    if o.address_type.as_deref() != Some("FQDN") {
        for (index, endpoint) in o.endpoints.unwrap_or_default().into_iter().enumerate() {
            for (place, text) in endpoint.addresses.unwrap_or_default().into_iter().enumerate() {
                let field = || format!("endpoints[{index}].addresses[{place}]");
                addresses.push(parse_ip(&text).map_err(|problem| invalid(field(), problem))?);
            }
        }
    }
    let ports = o.ports.unwrap_or_default().into_iter().map(endpoint_port).collect();
    Ok(cluster::Object::EndpointSlice(ServiceEndpoints {
        namespace,
        name,
        service: some(labels.get(SERVICE_NAME).cloned()),
        groups: vec![EndpointGroup { addresses, ports }],
    }))
}

fn endpoints(mut o: objects::Endpoints) -> Result<cluster::Object, DecodeError> {
    let (namespace, name, _) = namespaced(&mut o.metadata)?;
    let groups = o.subsets.unwrap_or_default().into_iter().map(|subset| {
        let ready = subset.addresses.unwrap_or_default().into_iter();
        let all = ready.chain(subset.not_ready_addresses.unwrap_or_default());
        EndpointGroup {
            addresses: all.filter_map(|address| address.ip?.0).collect(),
            ports: subset.ports.unwrap_or_default().into_iter().map(endpoint_port).collect(),
        }
    });
    let groups = groups.collect();
    Ok(cluster::Object::Endpoints(ServiceEndpoints { namespace, service: Some(name.clone()), name, groups }))
}

fn network_set(mut o: objects::NetworkSet, in_namespace: bool) -> Result<cluster::Object, DecodeError> {
    let (namespace, name, labels) = if in_namespace {
        let (namespace, name, labels) = namespaced(&mut o.metadata)?;
        (Some(namespace), name, labels)
    } else {
        let (name, labels) = names(&mut o.metadata)?;
        (None, name, labels)
    };
    let nets = o.spec.and_then(|spec| spec.nets).unwrap_or_default();
    let mut nets: Vec<_> = nets.into_iter().map(|net| net.0).collect();
    nets.sort();
    nets.dedup();
    Ok(cluster::Object::NetworkSet(NetworkSet { namespace, name, labels, nets }))
}

fn host_endpoint(mut o: objects::HostEndpoint) -> Result<cluster::Object, DecodeError> {
    let (name, labels) = names(&mut o.metadata)?;
    let ports = o.spec.ports.unwrap_or_default().into_iter().map(|port| NamedPort {
        name: some(Some(port.name)),
        proto: port.protocol.0,
        port: port.port.0,
    });
    Ok(cluster::Object::HostEndpoint(HostEndpoint {
        name,
        uid: some(o.metadata.uid),
        labels,
        node: checked(o.spec.node, "spec.node")?,
        interface: some(o.spec.interface_name),
        expected_ips: addresses(o.spec.expected_ips).collect(),
        ports: ports.collect(),
        profiles: o.spec.profiles.unwrap_or_default(),
        created: o.metadata.created.map(|time| time.0),
    }))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
