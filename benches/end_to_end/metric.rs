//! What is measured, and how good overlay-dp has to be at it.

use std::fmt;

use overlay_lab::Wire;
use serde::{Deserialize, Serialize};

use crate::bed::Peer;

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    UdpRoundTrip,
    TcpRoundTrip,
    UdpRate,
    Stream,
}

impl Case {
    /// Those for every kind of wire.
    pub const ON_ANY_WIRE: [Case; 4] = [
        Case::UdpRoundTrip,
        Case::TcpRoundTrip,
        Case::UdpRate,
        Case::Stream,
    ];

    /// What a slice of it tells, in this order.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Case::UdpRoundTrip => &[Metric::UdpP50, Metric::UdpP99],
            Case::TcpRoundTrip => &[Metric::TcpP50, Metric::TcpP99],
            Case::UdpRate => &[Metric::UdpRate, Metric::UdpLoss],
            Case::Stream => &[Metric::Stream, Metric::StreamCpu],
        }
    }
}

/// A number with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    UdpP50,
    UdpP99,
    TcpP50,
    TcpP99,
    UdpRate,
    UdpLoss,
    Stream,
    StreamCpu,
}

impl Metric {
    pub fn unit(self) -> &'static str {
        match self {
            Metric::UdpP50 | Metric::UdpP99 | Metric::TcpP50 | Metric::TcpP99 => "µs",
            Metric::UdpRate => "k/s",
            Metric::UdpLoss => "%",
            Metric::Stream => "Gbit/s",
            Metric::StreamCpu => "CPU s/GB",
        }
    }

    pub fn more_is_better(self) -> bool {
        match self {
            Metric::UdpP50 | Metric::UdpP99 | Metric::TcpP50 | Metric::TcpP99 => false,
            Metric::UdpLoss | Metric::StreamCpu => false,
            Metric::UdpRate | Metric::Stream => true,
        }
    }

    /// Issue 4's table.
    pub fn goal(self, wire: Wire) -> Goal {
        let goal = |kernel, bare| Goal { kernel, bare };
        match self {
            Metric::UdpP50 | Metric::TcpP50 => goal(Some(0.75), Some(1.0)),
            Metric::UdpP99 | Metric::TcpP99 => goal(Some(0.75), Some(1.05)),
            Metric::UdpRate => goal(Some(1.34), Some(1.05)),
            Metric::UdpLoss => goal(None, None),
            Metric::Stream => match wire {
                Wire::Gso => goal(Some(1.10), Some(0.95)),
                Wire::Mtu => goal(Some(1.15), Some(1.30)),
                Wire::MtuGro => goal(Some(1.05), Some(0.97)),
            },
            Metric::StreamCpu => goal(Some(0.90), Some(1.05)),
        }
    }

    /// Whose ratios must meet the goal: what users get who choose nothing.
    pub fn judged(self) -> Peer {
        Peer::Auto
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Metric::UdpP50 => "UDP round trip p50",
            Metric::UdpP99 => "UDP round trip p99",
            Metric::TcpP50 => "TCP round trip p50",
            Metric::TcpP99 => "TCP round trip p99",
            Metric::UdpRate => "UDP 64 B rate",
            Metric::UdpLoss => "UDP 64 B loss",
            Metric::Stream => "TCP stream",
            Metric::StreamCpu => "TCP stream CPU",
        })
    }
}

/// Ratios to the peers that must be reached.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub kernel: Option<f64>,
    pub bare: Option<f64>,
}

impl Goal {
    /// The one for the ratio to a peer.
    pub fn to(self, peer: Peer) -> Option<f64> {
        match peer {
            Peer::Bare => self.bare,
            Peer::Kernel => self.kernel,
            Peer::Xdp | Peer::Tcx | Peer::Auto => None,
        }
    }
}
