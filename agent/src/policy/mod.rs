//! "What does policy say of this flow?": policy objects, compiled and evaluated, pure.
//!
//! In: policy resources in one form ([`ir`]), the cluster. Out: the trace of a flow at one of its ends.
//! What always holds: a clone is a snapshot (persistent maps); applying the same resource again changes nothing.
//! Decoding objects (`watch`) and joining traces to flows (`pipeline`) are deliberately not here.

pub mod compile;
mod describe;
pub mod ir;
pub mod order;
pub mod selector;
mod store;

pub use store::{Policies, Resource, ResourceKind, ResourceRef};
