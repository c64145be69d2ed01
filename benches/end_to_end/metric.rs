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
    ToSocket,
    Encap,
    Decap,
}

impl Case {
    /// Those for every kind of wire.
    pub const ON_ANY_WIRE: [Case; 4] = [
        Case::UdpRoundTrip,
        Case::TcpRoundTrip,
        Case::UdpRate,
        Case::Stream,
    ];

    /// Those of live frames, for which the kind of wire does not matter.
    pub const LIVE: [Case; 3] = [Case::ToSocket, Case::Encap, Case::Decap];

    /// Whether a peer has such a thing.
    pub fn is_for(self, peer: Peer) -> bool {
        match self {
            // The kernel uses a sent frame's page again as it comes back, and routing has changed
            // its addresses then. Docker's path is kernel vxlan's, with its ends out of reach.
            Case::ToSocket | Case::Encap => {
                !matches!(peer, Peer::Bare | Peer::Docker | Peer::Encrypted)
            }
            // Frames that tcx hands over are packets already, and no XDP program of the container
            // sees them.
            Case::Decap => matches!(peer, Peer::Kernel | Peer::Xdp),
            _ => true,
        }
    }

    /// What a slice of it tells, in this order.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Case::UdpRoundTrip => &[Metric::UdpP50, Metric::UdpP99],
            Case::TcpRoundTrip => &[Metric::TcpP50, Metric::TcpP99],
            Case::UdpRate => &[Metric::UdpRate, Metric::UdpLoss],
            Case::Stream => &[Metric::Stream, Metric::StreamCpu],
            Case::ToSocket => &[Metric::ToSocket],
            Case::Encap => &[Metric::Encap],
            Case::Decap => &[Metric::Decap],
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
    ToSocket,
    Encap,
    Decap,
}

impl Metric {
    pub fn unit(self) -> &'static str {
        match self {
            Metric::UdpP50 | Metric::UdpP99 | Metric::TcpP50 | Metric::TcpP99 => "µs",
            Metric::UdpRate | Metric::ToSocket | Metric::Encap | Metric::Decap => "k/s",
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
            Metric::ToSocket | Metric::Encap | Metric::Decap => true,
        }
    }

    /// Issue 4's table.
    pub fn goal(self, wire: Option<Wire>) -> Goal {
        let goal = |kernel, bare| Goal {
            kernel,
            bare,
            docker: self.goal_to_docker(),
        };
        match self {
            Metric::UdpP50 | Metric::TcpP50 => goal(Some(0.75), Some(1.0)),
            Metric::UdpP99 | Metric::TcpP99 => goal(Some(0.75), Some(1.05)),
            Metric::UdpRate => goal(Some(1.34), Some(1.05)),
            Metric::UdpLoss => goal(None, None),
            Metric::Stream => match wire {
                None => goal(None, None),
                Some(Wire::Gso) => goal(Some(1.10), Some(0.95)),
                Some(Wire::Mtu) => goal(Some(1.15), Some(1.30)),
                Some(Wire::MtuGro) => goal(Some(1.05), Some(0.97)),
            },
            Metric::StreamCpu => goal(Some(0.90), Some(1.05)),
            Metric::ToSocket => goal(Some(2.3), None),
            Metric::Encap => goal(Some(5.9), None),
            Metric::Decap => goal(Some(7.7), None),
        }
    }

    fn goal_to_docker(self) -> Option<f64> {
        matches!(self, Metric::UdpP50 | Metric::TcpP50).then_some(0.70)
    }

    /// Whose ratios must meet the goal: what users get who choose nothing, and XDP where it is
    /// about that.
    pub fn judged(self) -> Peer {
        match self {
            Metric::Encap | Metric::Decap => Peer::Xdp,
            _ => Peer::Auto,
        }
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
            Metric::ToSocket => "live frames to a socket",
            Metric::Encap => "live frames encap",
            Metric::Decap => "live frames decap",
        })
    }
}

/// Ratios to the peers that must be reached.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub kernel: Option<f64>,
    pub bare: Option<f64>,
    pub docker: Option<f64>,
}

impl Goal {
    /// The one for the ratio to a peer.
    pub fn to(self, peer: Peer) -> Option<f64> {
        match peer {
            Peer::Bare => self.bare,
            Peer::Kernel => self.kernel,
            Peer::Docker => self.docker,
            Peer::Xdp | Peer::Tcx | Peer::Auto | Peer::Encrypted => None,
        }
    }
}
