//! Hosts that must agree: who belongs to the cluster, who has which address, and who manages.
//!
//! ```text
//!   host1 172.31.1.5 ──┐           ┌── 172.31.3.5 host4
//!   host2 192.168.1.5 ─┼─ router ──┤
//!   host3 172.31.2.5 ──┘           └── 172.31.4.5 host5      c1, c2, … : empty namespaces
//! ```

#[path = "cluster/addresses.rs"]
mod addresses;
#[path = "cluster/crashes.rs"]
mod crashes;
#[path = "cluster/pains.rs"]
mod pains;
#[path = "cluster/quorum.rs"]
mod quorum;
#[path = "cluster/strangers.rs"]
mod strangers;
#[path = "cluster/trust.rs"]
mod trust;

use std::time::Duration;

use anyhow::{Context, Result};
use overlay_lab::{Cluster, Container, Lab, LabSpec};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
/// In which all hosts must have noticed, whatever else the machine does.
const SOON: Duration = Duration::from_secs(10);
/// In which everything must be as it should be after a failure.
const HEALED: Duration = Duration::from_secs(30);

/// So many hosts, and as many empty namespaces.
fn spec(hosts: usize) -> LabSpec {
    LabSpec {
        hosts,
        containers: hosts,
        ..LabSpec::default()
    }
}

/// `uber-net`, and in it `test.n` in namespace n on host n, for each host of the cluster.
fn one_on_each(lab: &Lab, cluster: &Cluster) -> Result<Vec<Container>> {
    lab.host(1).overlay("network create uber-net")?;
    let added = cluster
        .running()
        .into_iter()
        .map(|number| Container::add(lab, number, lab.c(number), &format!("test.{number}")));
    let containers = added.collect::<Result<Vec<_>>>()?;
    overlay_lab::all_reach_each_other(&containers, SOON)?;
    Ok(containers)
}

/// A field of each row of a list that `overlay-dp <line> --json` prints.
fn column(lab: &Lab, host: usize, line: &str, field: &str) -> Result<Vec<String>> {
    let rows = lab.host(host).overlay_json(line)?;
    let rows = rows.as_array().with_context(|| format!("{line}: {rows}"))?;
    rows.iter()
        .map(|row| {
            let text = row[field].as_str();
            Ok(text.with_context(|| format!("{field}: {row}"))?.to_owned())
        })
        .collect()
}
