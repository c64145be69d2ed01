//! How quick SWIM is. A dead host is probed by somebody within a fifth of a second or so,
//! suspected at the end of that probe, and has [`SUSPICION`] to object; then gossip tells the
//! others. `benches/gossip.rs` measures what comes of it.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;

/// Fits a QUIC datagram in packets of 1200 bytes, which every path carries.
pub(super) const MAX_PACKET: usize = 1100;
/// How often a suspected host is told so by whom suspects it.
pub(super) const ACCUSE_EVERY: Duration = Duration::from_millis(100);
/// How often hosts that are down are called, and how many of them.
pub(super) const REVIVE_EVERY: Duration = Duration::from_secs(1);
pub(super) const REVIVE_COUNT: usize = 4;
/// A timer that comes later than this says more of this host than of the others.
pub(super) const LATE: Duration = Duration::from_millis(200);

const PROBE_PERIOD: Duration = Duration::from_millis(150);
const PROBE_RTT: Duration = Duration::from_millis(75);
const SUSPICION: Duration = Duration::from_millis(450);

/// For a cluster of `size` other hosts.
pub(super) fn config(size: usize) -> foca::Config {
    let every = |millis, members| {
        NonZeroUsize::new(members).map(|num_members| PeriodicParams {
            frequency: Duration::from_millis(millis),
            num_members,
        })
    };
    // Gossip reaches everybody after about log2(size) transmissions by each; lost packets and bad
    // luck need some more.
    let doublings = usize::BITS - size.leading_zeros();
    foca::Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
        max_transmissions: NonZeroU8::new(6 + doublings as u8).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: SUSPICION,
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: NonZeroUsize::new(MAX_PACKET).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        periodic_announce: every(30_000, 1),
        periodic_announce_to_down_members: None,
        periodic_gossip: every(50, 4),
    }
}
