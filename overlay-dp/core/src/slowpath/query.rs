//! Questions about names: UDP datagrams to port 53 of a gateway are handed out, and the answers
//! come back later, to be sent to who asked.

use core::time::Duration;

use overlay_common::checksum::fold;
use overlay_common::counters::DropReason;
use overlay_common::wire::{PROTO_UDP, be16};

use super::Output;
use super::emit::{Sink, sum};
use super::limit::Limiter;
use super::message::{self, Ends, HEAD_LEN, Head, Link};
use super::port::FromPort;
use crate::model::Vni;
use crate::tables::Tables;

/// UDP port of DNS.
pub(super) const PORT: u16 = 53;

/// Who asked, and which of the gateway's addresses: where the answer goes, and whence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    link: Link,
    vni: Vni,
    /// From the gateway to the container.
    ends: Ends,
    port: u16,
}

impl Asker {
    /// The network it asks through.
    pub fn vni(&self) -> Vni {
        self.vni
    }

    /// The port that its question came in on.
    pub fn ifindex(&self) -> u32 {
        self.link.ifindex
    }

    /// Sends it an answer. When its port is another container's by now, or none any more, the
    /// answer is dropped.
    pub fn answer(&self, tables: &Tables, payload: &[u8], out: &mut impl Output) {
        let same = tables
            .port_entry(self.link.ifindex)
            .is_some_and(|port| (port.vni, port.mac) == (self.link.vni, self.link.dst));
        let Some(len) = u16::try_from(HEAD_LEN + payload.len())
            .ok()
            .filter(|_| same)
        else {
            return out.drop(DropReason::UnknownPort);
        };
        let ([s0, s1], [d0, d1], [l0, l1]) = (
            PORT.to_be_bytes(),
            self.port.to_be_bytes(),
            len.to_be_bytes(),
        );
        let head = Head {
            protocol: PROTO_UDP,
            tos: 0,
            bytes: [s0, s1, d0, d1, l0, l1, 0, 0],
        };
        message::send(
            self.link,
            self.ends,
            head,
            payload,
            &mut Sink { tables, out },
        );
    }
}

/// Hands out a datagram to a gateway's port 53. `ends` are those of the answer.
pub(super) fn ask(
    from: &FromPort<'_>,
    ends: Ends,
    datagram: &[u8],
    limiter: &mut Limiter,
    now: Duration,
    sink: &mut Sink<'_, impl Output>,
) -> Result<(), DropReason> {
    let (head, _) = datagram
        .split_first_chunk::<HEAD_LEN>()
        .ok_or(DropReason::Truncated)?;
    let [s0, s1, _, _, l0, l1, c0, c1] = *head;
    let len = usize::from(be16(l0, l1));
    let datagram = datagram.get(..len).ok_or(DropReason::Truncated)?;
    let payload = datagram.get(HEAD_LEN..).ok_or(DropReason::InnerHeader)?;
    // Over IPv4 there may be none (RFC 768), over IPv6 not (RFC 8200 section 8.1).
    let has_none = matches!(ends, Ends::V4(..)) && [c0, c1] == [0, 0];
    let pseudo_header = u32::from(fold(ends.pseudo_header(PROTO_UDP, len)));
    let valid = fold(u32::from(fold(sum(datagram))) + pseudo_header) == 0xffff;
    if !(valid || has_none) || [s0, s1] == [0, 0] {
        return Err(DropReason::InnerHeader);
    }
    let vni = Vni::new(from.port.vni).ok_or(DropReason::UnknownVni)?;
    if !limiter.query(from.ifindex, now) {
        sink.out.query_refused();
        return Ok(());
    }
    let asker = Asker {
        link: from.link(),
        vni,
        ends,
        port: be16(s0, s1),
    };
    sink.out.query(asker, payload);
    Ok(())
}
