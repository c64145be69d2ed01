//! The programs the agent attaches: entry points, and the one place that turns a verdict into
//! what the kernel does with the frame.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod capture;
mod decap;
mod encap;
mod log;
mod maps;
mod packet;
mod service;

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use overlay_common::capture::Place;
use overlay_common::counters::{DropReason, Stat};
use overlay_common::echo;
use overlay_common::layout::{Config, VtepEntry};
use overlay_common::outer::{Meta, OuterV4, OuterV6};
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::verdict::neighbour::{arp_reply, nd_reply};
use overlay_common::verdict::{
    EcnRewrite, Frame, Leaving, Tables, Verdict, Way, admit, from_agent_then, from_port_then,
    from_uplink_then, leave_then, note_entrance, renew_entrance,
};
use overlay_common::wire::{
    ETH_LEN, ETH_P_IP, Family, Ip16, Mac, OUTER_V4_LEN, OUTER_V6_LEN, UDP_LEN, VXLAN_LEN,
};

use crate::capture::Mirror;
use crate::decap::{Decap, rewrite_ecn};
use crate::encap::{Encap, EncapError, Headers};
use crate::maps::{Maps, OVL_XSKS, count, count_drop};
use crate::packet::{Buffer, Packet, Skb, Xdp};
use crate::service::{Balanced, Rewrite, answer_as_vip, balance};

/// XDP on a port: what a container sends.
#[xdp(frags)]
pub fn ovl_port_xdp(ctx: XdpContext) -> u32 {
    port(Xdp::new(&ctx)) as u32
}

/// XDP on the uplink: what the underlay brings.
#[xdp(frags)]
pub fn ovl_uplink_xdp(ctx: XdpContext) -> u32 {
    uplink(Xdp::new(&ctx)) as u32
}

/// tcx ingress on a port: what a container sends.
#[classifier]
pub fn ovl_port_tc(ctx: TcContext) -> i32 {
    port(Skb::new(&ctx))
}

/// tcx ingress on the uplink: what the underlay brings.
#[classifier]
pub fn ovl_uplink_tc(ctx: TcContext) -> i32 {
    uplink(Skb::new(&ctx))
}

/// tcx ingress on the near ends of the punt link and the crypt link: what the agent sends.
#[classifier]
pub fn ovl_agent_tc(ctx: TcContext) -> i32 {
    agent(Skb::new(&ctx))
}

/// XDP on the far ends of the punt link and the crypt link: what the other programs hand to the
/// agent.
#[xdp]
pub fn ovl_punt_xdp(ctx: XdpContext) -> u32 {
    let marker = Xdp::new(&ctx)
        .load::<ETH_LEN>(0)
        .and_then(|eth| punt::decode(&eth));
    let socket = match marker.map(|marker| marker.kind) {
        Some(Kind::FromPort | Kind::FromUplink | Kind::FromOpened) => 0,
        // SAFETY: `ctx` is the program's own context.
        Some(Kind::ToSeal | Kind::ToOpen) => 1 + unsafe { (*ctx.ctx).rx_queue_index },
        _ => {
            count_drop(DropReason::NotPunted);
            return XDP_DROP;
        }
    };
    match OVL_XSKS.redirect(socket, u64::from(XDP_DROP)) {
        Ok(action) => action,
        Err(_) => {
            count_drop(DropReason::NoAgent);
            XDP_DROP
        }
    }
}

/// Where a frame came in.
#[derive(Clone, Copy)]
enum Origin {
    Port,
    Uplink,
    Agent,
    /// From a crypt worker: it came sealed.
    Opened,
}

/// Where a decision leaves its verdict.
type Slot = MaybeUninit<Verdict<'static>>;

#[inline(always)]
fn port<P: Encap + Decap + Rewrite + Mirror>(mut packet: P) -> i32 {
    count(Stat::PortFrames);
    let mut slot = Slot::uninit();
    let mut decided = decide_port(&packet, &mut slot);
    // SAFETY: `decide_port` has written it when it returned Ok.
    let verdict = decided.map(|()| unsafe { slot.assume_init_ref() });
    capture::decided(&packet, Place::Sent, verdict);
    // SAFETY: `decide_port` has written it when it returned Ok.
    if decided.is_ok()
        && let Verdict::Balance { vni } = *unsafe { slot.assume_init_ref() }
    {
        match balance(&mut packet, vni) {
            Ok(Balanced::Sent) => {
                count(Stat::Balanced);
                decided = decide_port(&packet, &mut slot);
            }
            Ok(Balanced::Back) => {
                count(Stat::Balanced);
                let ifindex = packet.ifindex();
                slot.write(Verdict::Switch {
                    ifindex,
                    answer: 0,
                    policed: 0,
                });
            }
            Ok(Balanced::No) => {}
            Err(reason) => decided = Err(reason),
        }
    }
    // SAFETY: each of them has written it when it returned Ok.
    if let Ok(Verdict::Leave(leaving)) = decided.map(|()| unsafe { slot.assume_init_ref() }) {
        let leaving = *leaving;
        decided = decide_leaving(&packet, &leaving, &mut slot);
    }
    // SAFETY: each of both has written it when it returned Ok.
    let verdict = decided.map(|()| unsafe { slot.assume_init_ref() });
    finish(packet, verdict, Origin::Port)
}

#[inline(always)]
fn uplink<P: Encap + Decap + Rewrite + Mirror>(packet: P) -> i32 {
    let mut slot = Slot::uninit();
    let decided = decide_uplink(&packet, &mut slot);
    // SAFETY: `decide_uplink` has written it when it returned Ok.
    let verdict = decided.map(|()| unsafe { slot.assume_init_ref() });
    if let Ok(Verdict::Pass) = verdict {
        return P::PASS;
    }
    count(Stat::UplinkFrames);
    capture::decided(&packet, Place::Arrived, verdict);
    finish(packet, verdict, Origin::Uplink)
}

#[inline(always)]
fn agent<P: Encap + Decap + Rewrite + Mirror>(packet: P) -> i32 {
    let mut slot = Slot::uninit();
    let marker = packet.load::<ETH_LEN>(0).and_then(|eth| punt::decode(&eth));
    if matches!(marker.map(|marker| marker.kind), Some(Kind::Opened)) {
        count(Stat::Opened);
        let decided = decide_opened(&packet, &mut slot);
        // SAFETY: `decide_opened` has written it when it returned Ok.
        let verdict = decided.map(|()| unsafe { slot.assume_init_ref() });
        return finish(packet, verdict, Origin::Opened);
    }
    let decided = decide_agent(&packet, &mut slot);
    // SAFETY: `decide_agent` has written it when it returned Ok.
    let verdict = decided.map(|()| unsafe { slot.assume_init_ref() });
    finish(packet, verdict, Origin::Agent)
}

// Deciding and acting, and the larger of the actions, are BPF functions of their own: one after
// the other they use the same part of the 512 bytes of stack.

#[inline(never)]
fn decide_port<P: Packet>(packet: &P, slot: &mut Slot) -> Result<(), DropReason> {
    from_port_then(packet, &Maps, packet.ifindex(), |verdict| {
        slot.write(verdict);
    })
}

#[inline(never)]
fn decide_leaving<P: Packet>(
    packet: &P,
    leaving: &Leaving,
    slot: &mut Slot,
) -> Result<(), DropReason> {
    leave_then(packet, &Maps, leaving, |verdict| {
        slot.write(verdict);
    })
}

#[inline(never)]
fn decide_uplink<P: Packet>(packet: &P, slot: &mut Slot) -> Result<(), DropReason> {
    from_uplink_then(packet, &Maps, Way::Clear, |verdict| {
        slot.write(verdict);
    })
}

#[inline(never)]
fn decide_opened<P: Packet>(packet: &P, slot: &mut Slot) -> Result<(), DropReason> {
    from_uplink_then(packet, &Maps, Way::Sealed, |verdict| {
        slot.write(verdict);
    })
}

#[inline(never)]
fn decide_agent<P: Packet>(packet: &P, slot: &mut Slot) -> Result<(), DropReason> {
    from_agent_then(packet, &Maps, |verdict| {
        slot.write(verdict);
    })
}

/// Carries out what was decided; what fails is a drop with a reason.
#[inline(always)]
fn finish<P: Encap + Decap + Rewrite + Mirror>(
    mut packet: P,
    verdict: Result<&Verdict<'static>, DropReason>,
    origin: Origin,
) -> i32 {
    let done = verdict.and_then(|verdict| {
        let policed = match *verdict {
            Verdict::Switch { policed, .. }
            | Verdict::Enter { policed, .. }
            | Verdict::Decap { policed, .. } => policed,
            _ => 0,
        };
        if policed != 0 {
            admitted(&packet, verdict)?;
        }
        match *verdict {
            // What most frames are, without a call in between.
            Verdict::Encap { .. } => send(&mut packet, verdict, origin),
            _ => carry_out(&mut packet, verdict, origin),
        }
    });
    match done {
        Ok(action) => action,
        Err(reason) => {
            count_drop(reason);
            log::dropped(reason, packet.ifindex());
            P::DROP
        }
    }
}

/// Asks the policies of the endpoint that the frame is for.
#[inline(never)]
fn admitted<P: Packet>(packet: &P, verdict: &Verdict<'static>) -> Result<(), DropReason> {
    admit(packet, &Maps, verdict)
}

#[inline(never)]
fn carry_out<P: Encap + Decap + Rewrite + Mirror>(
    packet: &mut P,
    verdict: &Verdict<'static>,
    origin: Origin,
) -> Result<i32, DropReason> {
    match *verdict {
        // What was sealed was for us.
        Verdict::Pass if matches!(origin, Origin::Opened) => Err(DropReason::MalformedEsp),
        Verdict::Pass => Ok(P::PASS),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Punt { reason, vni } => hand_over(packet, origin, reason, vni),
        Verdict::Encap { .. } => Err(DropReason::Helper), // sent before
        Verdict::Return { ref mac, .. } => {
            packet.store(0, mac)?;
            send(packet, verdict, origin)
        }
        Verdict::Switch {
            ifindex, answer, ..
        } => {
            if answer != 0 {
                answer_as_vip(packet, answer)?;
            }
            capture::goes(packet, Place::Delivered, ifindex);
            done(packet.deliver(ifindex), Stat::Switched)
        }
        Verdict::Enter { ifindex, vni, .. } => {
            renew_entrance(packet, &Maps, vni);
            capture::goes(packet, Place::Delivered, ifindex);
            done(packet.deliver(ifindex), Stat::Switched)
        }
        // The short way ends in another namespace only.
        Verdict::Route {
            ifindex,
            ref mac,
            answer,
        } => {
            if answer != 0 {
                answer_as_vip(packet, answer)?;
            }
            packet.store(0, mac)?;
            capture::goes(packet, Place::Delivered, ifindex);
            done(packet.redirect(ifindex), Stat::Routed)
        }
        // It was decided about once more.
        Verdict::Leave(_) => Err(DropReason::Helper),
        // There was nobody to give it to.
        Verdict::Balance { vni } => hand_over(packet, origin, Reason::NoBackend, vni),
        Verdict::ArpReply { mac } => {
            answer_arp(packet, &mac)?;
            reply(packet, origin, Stat::ArpReplies)
        }
        Verdict::NdReply { mac } => {
            answer_nd(packet, &mac)?;
            reply(packet, origin, Stat::NdReplies)
        }
        Verdict::Decap {
            ifindex,
            family,
            ecn,
            answer,
            router,
            entered,
            ..
        } => {
            if entered {
                note_entrance(packet, &Maps, family);
            }
            match family {
                Family::V4 => decap(packet, Family::V4, ecn)?,
                Family::V6 => decap_v6(packet, ecn)?,
            }
            if answer != 0 {
                answer_as_vip(packet, answer)?;
            }
            capture::goes(packet, Place::Delivered, ifindex);
            match origin {
                // What the agent sends has been on a veth of its own: the long way is right for
                // every protocol.
                Origin::Agent => done(packet.redirect(ifindex), Stat::AgentToPort),
                _ if router => done(packet.redirect(ifindex), Stat::Routed),
                _ => done(packet.deliver(ifindex), Stat::Decapsulated),
            }
        }
        Verdict::EchoReply { family, unsound } => {
            answer_echo(packet, family)?;
            if unsound {
                say_unsound(packet, family)?;
            }
            capture::goes(packet, Place::Left, packet.ifindex());
            done(packet.redirect(packet.ifindex()), Stat::EchoReplies)
        }
        Verdict::Forward { vtep } => {
            packet.store(0, &vtep.dst_mac)?;
            packet.store(6, &vtep.src_mac)?;
            capture::goes(packet, Place::Left, vtep.ifindex);
            done(packet.redirect(vtep.ifindex), Stat::AgentToVtep)
        }
        Verdict::Seal => to_crypt(packet, Kind::ToSeal),
        // What a worker has opened is opened once.
        Verdict::Open if matches!(origin, Origin::Opened) => Err(DropReason::MalformedEsp),
        Verdict::Open => to_crypt(packet, Kind::ToOpen),
    }
}

/// Sends a frame to a VTEP, as one of the two verdicts that tell so.
#[inline(never)]
fn send<P: Encap + Mirror>(
    packet: &mut P,
    verdict: &Verdict<'static>,
    origin: Origin,
) -> Result<i32, DropReason> {
    let (vtep, dst, meta, vni): (&VtepEntry, &Ip16, Meta, u32) = match *verdict {
        Verdict::Encap {
            vtep,
            dst,
            meta,
            vni,
            ..
        }
        | Verdict::Return {
            vtep,
            dst,
            meta,
            vni,
            ..
        } => (vtep, dst, meta, vni),
        _ => return Err(DropReason::Helper),
    };
    let config = Maps.config().ok_or(DropReason::UnknownPort)?;
    let encapsulated = match Family::of(&vtep.src_ip) {
        Family::V4 => encap(packet, &OuterV4::to_vtep(config, vtep, dst, meta, vni)),
        Family::V6 => encap_v6(packet, config, verdict),
    };
    // Read again, and not kept beside what `encap` has on the stack.
    let (Verdict::Encap {
        vtep, vni, seal, ..
    }
    | Verdict::Return {
        vtep, vni, seal, ..
    }) = *black_box(verdict)
    else {
        return Err(DropReason::Helper);
    };
    match encapsulated {
        Ok(()) if seal => to_crypt(packet, Kind::ToSeal),
        Ok(()) => {
            capture::goes(packet, Place::Left, vtep.ifindex);
            done(packet.redirect(vtep.ifindex), Stat::Encapsulated)
        }
        Err(EncapError::Unable) => hand_over(packet, origin, Reason::CantEncap, vni),
        Err(EncapError::Failed(reason)) => Err(reason),
    }
}

/// Gives a frame, which has outer headers, to a crypt worker. Without workers it is lost: what is
/// to be sealed goes nowhere else.
#[inline(never)]
fn to_crypt<P: Packet>(packet: &mut P, kind: Kind) -> Result<i32, DropReason> {
    let config = Maps.config().ok_or(DropReason::NoAgent)?;
    let marker = punt::encode(kind, None, packet.ifindex(), ETH_P_IP);
    // The EtherType, of the outer IP header's family, stays.
    let addresses: &[u8; 12] = marker.first_chunk().ok_or(DropReason::Helper)?;
    packet.store(0, addresses)?;
    let stat = match kind {
        Kind::ToSeal => Stat::ToSeal,
        _ => Stat::ToOpen,
    };
    done(packet.redirect(config.crypt_ifindex), stat)
}

/// Puts outer headers on.
#[inline(never)]
fn encap<P: Encap, H: Headers>(packet: &mut P, outer: &H) -> Result<(), EncapError> {
    packet.encap(outer)
}

/// The same over IPv6, where what the headers are made from needs a place of its own.
#[inline(never)]
fn encap_v6<P: Encap>(
    packet: &mut P,
    config: &Config,
    verdict: &Verdict<'static>,
) -> Result<(), EncapError> {
    let (Verdict::Encap {
        vtep,
        dst,
        meta,
        vni,
        ..
    }
    | Verdict::Return {
        vtep,
        dst,
        meta,
        vni,
        ..
    }) = *verdict
    else {
        return Err(EncapError::Failed(DropReason::Helper));
    };
    encap(packet, &OuterV6::to_vtep(config, vtep, dst, meta, vni))
}

/// Takes outer headers off.
#[inline(always)]
fn decap<P: Decap>(
    packet: &mut P,
    family: Family,
    ecn: Option<EcnRewrite>,
) -> Result<(), DropReason> {
    if let Some(ecn) = ecn {
        rewrite_ecn(packet, family, ecn)?;
    }
    packet.decap(family)
}

/// The same over IPv6.
#[inline(never)]
fn decap_v6<P: Decap>(packet: &mut P, ecn: Option<EcnRewrite>) -> Result<(), DropReason> {
    decap(packet, Family::V6, ecn)
}

/// Hands a frame to the agent: over the punt link, as VXLAN, marked with where it comes from.
#[inline(never)]
fn hand_over<P: Encap>(
    packet: &mut P,
    origin: Origin,
    reason: Reason,
    vni: u32,
) -> Result<i32, DropReason> {
    /// More than any headers in front of a GSO segment's payload, a tunnel's inside included.
    const SEGMENT_HEADERS: u32 = 192;
    const LARGEST: u32 = punt::MTU + ETH_LEN as u32;

    let config = Maps.config().ok_or(DropReason::UnknownPort)?;
    if matches!(reason, Reason::TooBig) && packet.total_len() > punt::TOO_BIG_KEEP {
        packet.cut(punt::TOO_BIG_KEEP)?;
    }
    let len = match packet.gso_size() {
        0 => packet.total_len(),
        segment => segment + SEGMENT_HEADERS,
    };
    let ifindex = packet.ifindex();
    match origin {
        Origin::Port => {
            if len + OUTER_V4_LEN as u32 > LARGEST {
                return Err(DropReason::PuntTooBig);
            }
            let marker = punt::encode(Kind::FromPort, Some(reason), ifindex, ETH_P_IP);
            packet.prepend(&OuterV4::punted(config, marker, vni))?;
        }
        Origin::Uplink | Origin::Opened => {
            if len > LARGEST {
                return Err(DropReason::PuntTooBig);
            }
            let kind = match origin {
                Origin::Opened => Kind::FromOpened,
                _ => Kind::FromUplink,
            };
            let marker = punt::encode(kind, Some(reason), ifindex, ETH_P_IP);
            // Its EtherType says what is outside.
            let addresses: &[u8; 12] = marker.first_chunk().ok_or(DropReason::Helper)?;
            packet.store(0, addresses)?;
        }
        // The agent's frames are never punted back to it.
        Origin::Agent => return Err(DropReason::NotPunted),
    }
    log::punted(reason, ifindex, vni);
    done(packet.redirect(config.punt_ifindex), Stat::Punted)
}

/// Makes a request its reply.
#[inline(never)]
fn answer_arp<P: Packet>(packet: &mut P, mac: &Mac) -> Result<(), DropReason> {
    let mut room = Buffer::new();
    let frame = packet.fill(0, &mut room).ok_or(DropReason::Truncated)?;
    arp_reply(frame, mac);
    packet.store(0, frame)
}

/// Makes a solicitation its advertisement.
#[inline(never)]
fn answer_nd<P: Packet>(packet: &mut P, mac: &Mac) -> Result<(), DropReason> {
    let mut room = Buffer::new();
    let frame = packet.fill(0, &mut room).ok_or(DropReason::Truncated)?;
    nd_reply(frame, mac);
    packet.store(0, frame)
}

/// Makes an echo request its answer.
#[inline(never)]
fn answer_echo<P: Packet>(packet: &mut P, family: Family) -> Result<(), DropReason> {
    exchange::<P, 6>(packet, 0)?;
    let outer_len = match family {
        Family::V4 => {
            exchange::<P, 4>(packet, ETH_LEN + 12)?;
            OUTER_V4_LEN
        }
        Family::V6 => {
            exchange::<P, 16>(packet, ETH_LEN + 8)?;
            OUTER_V6_LEN
        }
    };
    exchange::<P, 2>(packet, outer_len - VXLAN_LEN - UDP_LEN)?;
    exchange::<P, 2>(packet, outer_len)
}

/// Has the answer to a checksum probe say that its checksum was wrong, and have none itself.
#[inline(never)]
fn say_unsound<P: Packet>(packet: &mut P, family: Family) -> Result<(), DropReason> {
    let outer_len = family.outer_len();
    packet.store(outer_len - VXLAN_LEN - 2, &[0; 2])?;
    packet.store(outer_len, &echo::UNSOUND)
}

/// Exchanges two fields of `N` bytes, of which one begins at `at` and the other is behind it.
#[inline(always)]
fn exchange<P: Packet, const N: usize>(packet: &mut P, at: usize) -> Result<(), DropReason> {
    let (mut first, mut second) = (Buffer::<N>::new(), Buffer::<N>::new());
    let first = packet.fill(at, &mut first).ok_or(DropReason::Truncated)?;
    let second = packet
        .fill(at + N, &mut second)
        .ok_or(DropReason::Truncated)?;
    packet.store(at, second)?;
    packet.store(at + N, first)
}

/// Sends an answer back to who asked.
#[inline(always)]
fn reply<P: Mirror>(packet: &P, origin: Origin, stat: Stat) -> Result<i32, DropReason> {
    match origin {
        // Not XDP_TX: a veth leaves such frames lying in the other end's ring, unless that end has
        // an XDP program of its own.
        Origin::Port => {
            capture::goes(packet, Place::Delivered, packet.ifindex());
            done(packet.redirect(packet.ifindex()), stat)
        }
        // Only ports ask.
        Origin::Uplink | Origin::Agent | Origin::Opened => Err(DropReason::Helper),
    }
}

/// Counts what succeeded.
#[inline(always)]
fn done(action: Result<i32, DropReason>, stat: Stat) -> Result<i32, DropReason> {
    if action.is_ok() {
        count(stat);
    }
    action
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses any path that could get here.
    loop {}
}

/// The kernel gives some helpers to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 4] = *b"GPL\0";
