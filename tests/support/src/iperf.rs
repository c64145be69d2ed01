//! TCP and UDP load between two namespaces.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ns::Ns;
use crate::probe::nstat;
use crate::process::{emulated, wait_until};

/// What to send.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// As much as goes through.
    Tcp,
    /// A fixed rate.
    Udp {
        /// Payload rate, in Mbit/s.
        mbit: u32,
        /// Payload of a datagram, in bytes.
        payload: u16,
    },
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Payload rate at the receiver, in Gbit/s.
    pub gbit: f64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// UDP datagrams sent.
    pub datagrams: u64,
    /// UDP datagrams lost on the way.
    pub lost: u64,
    /// UDP datagrams that arrived but that iperf3 was too slow to take, as on a busy machine.
    pub overrun: u64,
}

/// What a TCP stream must reach, in Gbit/s, where `gbit` is expected of a machine that is none's
/// emulation. Below it are the seconds of a connection that lives by retransmits.
pub fn least(gbit: f64) -> f64 {
    if emulated() { gbit / 50.0 } else { gbit }
}

/// Sends from `client` to `server`, which is reached at `address`, for `seconds`.
///
/// # Errors
/// When no connection comes about or iperf3 fails.
pub fn iperf3(
    client: &Ns,
    server: &Ns,
    address: IpAddr,
    load: Load,
    seconds: u32,
) -> Result<Traffic> {
    let mut daemon = server.start("iperf3 --server --one-off")?;
    wait_until("iperf3 listens", Duration::from_secs(5), || {
        !daemon.is_running()
            || server
                .run("ss -Hltn sport = :5201")
                .is_ok_and(|sockets| !sockets.is_empty())
    })?;
    let (slower, seconds, connect) = if emulated() {
        (20, 1, 20_000)
    } else {
        (1, seconds, 3000)
    };
    let kind = match load {
        Load::Tcp => String::new(),
        Load::Udp { mbit, payload } => {
            let kbit = mbit * 1000 / slower;
            format!("--udp --bitrate {kbit}K --length {payload}")
        }
    };
    let overrun_before = nstat(server, "UdpRcvbufErrors")?;
    let done = client
        .start(&format!(
            "iperf3 --client {address} --json --connect-timeout {connect} --time {seconds} {kind}"
        ))?
        .finish(Duration::from_secs(u64::from(seconds) + 20))?;
    let report: Value = serde_json::from_str(&done.stdout)
        .with_context(|| format!("{}: {}{}", done.command, done.stdout, done.stderr))?;
    let overrun = nstat(server, "UdpRcvbufErrors")? - overrun_before;
    traffic(&report, load, overrun)
        .with_context(|| format!("{} → {}", client.label(), server.label()))
}

fn traffic(report: &Value, load: Load, overrun: u64) -> Result<Traffic> {
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let (rate, udp) = match load {
        Load::Tcp => (&end["sum_received"]["bits_per_second"], &Value::Null),
        Load::Udp { .. } => (&end["sum"]["bits_per_second"], &end["sum"]),
    };
    let datagrams = udp["packets"].as_u64().unwrap_or(0);
    let lost = udp["lost_packets"].as_u64().unwrap_or(0);
    let sent_gbit = rate.as_f64().context("iperf3 reported no rate")? / 1e9;
    // For UDP, iperf3 reports the rate that was sent.
    let arrived = match datagrams {
        0 => 1.0,
        all => (all - lost.min(all)) as f64 / all as f64,
    };
    Ok(Traffic {
        gbit: sent_gbit * arrived,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        datagrams,
        lost: lost.saturating_sub(overrun),
        overrun,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_reports() {
        let tcp = json!({"end": {
            "sum_sent": {"bits_per_second": 3e9, "retransmits": 7},
            "sum_received": {"bits_per_second": 2e9},
        }});
        let got = traffic(&tcp, Load::Tcp, 0).unwrap();
        assert_eq!((got.gbit, got.retransmits), (2.0, 7));
        let load = Load::Udp {
            mbit: 1,
            payload: 1,
        };
        let udp = json!({"end": {"sum":
            {"bits_per_second": 1e9, "packets": 100, "lost_packets": 25}}});
        let got = traffic(&udp, load, 5).unwrap();
        assert_eq!((got.gbit, got.datagrams, got.lost), (0.75, 100, 20));
        let refused = json!({"error": "unable to connect to server"});
        assert!(traffic(&refused, load, 0).is_err());
    }
}
