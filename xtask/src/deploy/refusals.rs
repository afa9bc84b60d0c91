//! Values that the chart has to refuse.
//!
//! In: the chart with its schema, Helm. Out: how many were refused, or the first that was not. Each stands for a kind of
//! mistake: a name that is wrong, a type, a bound, a word, a value that would let two agents write one file.

use anyhow::bail;

use super::render;

/// A value, and what Helm has to name when it refuses it.
pub const VALUES: [(&str, &str); 12] = [
    ("imgae.tag=1", "imgae"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("image.digest=sha256:1234", "digest"),
    ("source=xdp", "source"),
    ("health.port=70000", "port"),
    ("metrics.enabled=perhaps", "enabled"),
    ("config.flowLogsFlushInterval=soon", "flowLogsFlushInterval"),
    ("config.flowLogsFileAggregationKindForAllowed=4", "flowLogsFileAggregationKindForAllowed"),
    ("config.flowLogsFlushIntervall=15s", "flowLogsFlushIntervall"),
    ("nodeConfig.n1.flowLogsFileMaxFiles=0", "flowLogsFileMaxFiles"),
    ("updateStrategy.rollingUpdate.maxSurge=1", "maxSurge"),
    ("extraCapabilities[0]=CAP_SYS_ADMIN", "extraCapabilities"),
];

/// # Errors
/// A value was taken, or refused without naming it.
pub fn check() -> anyhow::Result<usize> {
    for (value, named) in VALUES {
        match render::whole(&[value]) {
            Ok(_) => bail!("the chart takes the value {value}"),
            Err(error) if format!("{error:#}").contains(named) => {}
            Err(error) => bail!("{value} is refused, but not by its name: {error:#}"),
        }
    }
    Ok(VALUES.len())
}
