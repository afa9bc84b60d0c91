//! What the pure path costs: per flow, per line, per lookup; with the allocations it makes.
//!
//! In: the synthetic node of `world`. Out: divan's table: time per pass, items per second (an item is a flow, a
//! line or a lookup) and allocations per pass; `cargo xtask bench` turns it into nanoseconds and allocations an item.
//! What always holds: each pass is deterministic in its input; in a debug build (`cargo test --bench path`) the
//! same code runs once over few flows, to show that it works. Deliberately not here: assertions about time, the
//! kernel side (its own target, because it needs root), and memory (`node.rs`: it wants a process of its own).

mod cluster;
mod pipeline;
mod policy;
mod wire;
mod world;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

/// Live flows per pass.
const LIVE: &[u64] = if cfg!(debug_assertions) { &[1_000] } else { &[10_000, 100_000, 1_000_000] };
const SOME: &[u64] = if cfg!(debug_assertions) { &[1_000] } else { &[100_000] };

fn main() {
    divan::main();
}
