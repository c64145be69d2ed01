//! What of a packet foca may see.

use bytes::{BufMut, Bytes, BytesMut};
use foca::{Header, Member, Message, State};
use overlay_core::model::HostId;

use super::Id;

pub(super) struct Sifted {
    pub packet: Bytes,
    pub src: Id,
    /// Whether it says that this host is suspected.
    pub accuses_me: bool,
}

/// The packet without updates on strangers; `None` when it is malformed, in somebody else's name
/// or about a stranger itself.
pub(super) fn sift(
    from: HostId,
    packet: &[u8],
    known: impl Fn(HostId) -> bool,
    me: Id,
) -> Option<Sifted> {
    let (header, updates) = postcard::take_from_bytes::<Header<Id>>(packet).ok()?;
    let third = match &header.message {
        Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => Some(target),
        Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => Some(origin),
        _ => None,
    };
    if header.src.host() != from || third.is_some_and(|id| !known(id.host())) {
        return None;
    }
    let mut accuses_me = false;
    let mut sifted = BytesMut::from(&packet[..packet.len() - updates.len()]);
    if let Some((count, mut rest)) = updates.split_first_chunk::<2>() {
        let mut kept = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (member, after) = postcard::take_from_bytes::<Member<Id>>(rest).ok()?;
            if known(member.id().host()) {
                accuses_me |= *member.id() == me && member.state() == State::Suspect;
                kept.push(&rest[..rest.len() - after.len()]);
            }
            rest = after;
        }
        if !rest.is_empty() {
            return None;
        }
        sifted.put_u16(u16::try_from(kept.len()).ok()?);
        kept.iter().for_each(|member| sifted.put_slice(member));
    } else if !updates.is_empty() {
        return None;
    }
    Some(Sifted {
        packet: sifted.freeze(),
        src: header.src,
        accuses_me,
    })
}
