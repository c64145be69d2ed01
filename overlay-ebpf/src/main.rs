//! The programs the agent attaches: entry points, and the one place that turns a verdict into
//! what the kernel does with the frame.

#![no_std]
#![no_main]

mod decap;
mod encap;
mod log;
mod maps;
mod packet;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::outer::OuterV4;
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::verdict::neighbour::{arp_reply, nd_reply};
use overlay_common::verdict::{Frame, Tables, Verdict, from_agent, from_port, from_uplink};
use overlay_common::wire::{ETH_LEN, ETH_P_IP, Mac, OUTER_V4_LEN};

use crate::decap::{Decap, rewrite_ecn};
use crate::encap::{Encap, EncapError};
use crate::maps::{Maps, OVL_XSKS, count, count_drop};
use crate::packet::{Buffer, Packet, Skb, Xdp};

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

/// tcx ingress on the near end of the punt link: what the agent sends.
#[classifier]
pub fn ovl_agent_tc(ctx: TcContext) -> i32 {
    let packet = Skb::new(&ctx);
    let verdict = from_agent(&packet, &Maps);
    act(packet, verdict, Origin::Agent)
}

/// XDP on the far end of the punt link: what the other programs hand to the agent.
#[xdp]
pub fn ovl_punt_xdp(ctx: XdpContext) -> u32 {
    let marker = Xdp::new(&ctx)
        .load::<ETH_LEN>(0)
        .and_then(|eth| punt::decode(&eth));
    let punted = matches!(
        marker.map(|marker| marker.kind),
        Some(Kind::FromPort | Kind::FromUplink)
    );
    if !punted {
        count_drop(DropReason::NotPunted);
        return XDP_DROP;
    }
    match OVL_XSKS.redirect(0, u64::from(XDP_DROP)) {
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
}

#[inline(always)]
fn port<P: Encap + Decap>(packet: P) -> i32 {
    count(Stat::PortFrames);
    let verdict = from_port(&packet, &Maps, packet.ifindex());
    act(packet, verdict, Origin::Port)
}

#[inline(always)]
fn uplink<P: Encap + Decap>(packet: P) -> i32 {
    let verdict = from_uplink(&packet, &Maps);
    if matches!(verdict, Verdict::Pass) {
        return P::PASS;
    }
    count(Stat::UplinkFrames);
    act(packet, verdict, Origin::Uplink)
}

/// Carries out a verdict; what fails is a drop with a reason.
#[inline(always)]
fn act<P: Encap + Decap>(mut packet: P, verdict: Verdict<'_>, origin: Origin) -> i32 {
    match carry_out(&mut packet, verdict, origin) {
        Ok(action) => action,
        Err(reason) => {
            count_drop(reason);
            log::dropped(reason, packet.ifindex());
            P::DROP
        }
    }
}

#[inline(always)]
fn carry_out<P: Encap + Decap>(
    packet: &mut P,
    verdict: Verdict<'_>,
    origin: Origin,
) -> Result<i32, DropReason> {
    match verdict {
        Verdict::Pass => Ok(P::PASS),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Punt { reason, vni } => hand_over(packet, origin, reason, vni),
        Verdict::Encap {
            vtep,
            dst,
            meta,
            vni,
        } => {
            let config = Maps.config().ok_or(DropReason::UnknownPort)?;
            let outer = OuterV4::to_vtep(config, vtep, dst, meta, vni);
            match packet.encap(&outer) {
                Ok(()) => done(packet.redirect(vtep.ifindex), Stat::Encapsulated),
                Err(EncapError::Unable) => hand_over(packet, origin, Reason::CantEncap, vni),
                Err(EncapError::Failed(reason)) => Err(reason),
            }
        }
        Verdict::Switch { ifindex } => done(packet.deliver(ifindex), Stat::Switched),
        Verdict::ArpReply { mac } => {
            answer_arp(packet, &mac)?;
            reply(packet, origin, Stat::ArpReplies)
        }
        Verdict::NdReply { mac } => {
            answer_nd(packet, &mac)?;
            reply(packet, origin, Stat::NdReplies)
        }
        Verdict::Decap { ifindex, ecn } => {
            if let Some(ecn) = ecn {
                rewrite_ecn(packet, ecn)?;
            }
            packet.decap()?;
            match origin {
                // What the agent sends has been on a veth of its own: the long way is right for
                // every protocol.
                Origin::Agent => done(packet.redirect(ifindex), Stat::AgentToPort),
                _ => done(packet.deliver(ifindex), Stat::Decapsulated),
            }
        }
        Verdict::Forward { vtep } => {
            packet.store(0, &vtep.dst_mac)?;
            packet.store(6, &vtep.src_mac)?;
            done(packet.redirect(vtep.ifindex), Stat::AgentToVtep)
        }
    }
}

/// Hands a frame to the agent: over the punt link, as VXLAN, marked with where it comes from.
#[inline(always)]
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
        Origin::Uplink => {
            if len > LARGEST {
                return Err(DropReason::PuntTooBig);
            }
            let marker = punt::encode(Kind::FromUplink, Some(reason), ifindex, ETH_P_IP);
            packet.store(0, &marker)?;
        }
        // The agent's frames are never punted back to it.
        Origin::Agent => return Err(DropReason::NotPunted),
    }
    log::punted(reason, ifindex, vni);
    done(packet.redirect(config.punt_ifindex), Stat::Punted)
}

/// Makes a request its reply. A BPF function of its own, for its own 100 bytes of stack.
#[inline(never)]
fn answer_arp<P: Packet>(packet: &mut P, mac: &Mac) -> Result<(), DropReason> {
    let mut room = Buffer::new();
    let frame = packet.fill(0, &mut room).ok_or(DropReason::Truncated)?;
    arp_reply(frame, mac);
    packet.store(0, frame)
}

/// Makes a solicitation its advertisement; see [`answer_arp`].
#[inline(never)]
fn answer_nd<P: Packet>(packet: &mut P, mac: &Mac) -> Result<(), DropReason> {
    let mut room = Buffer::new();
    let frame = packet.fill(0, &mut room).ok_or(DropReason::Truncated)?;
    nd_reply(frame, mac);
    packet.store(0, frame)
}

/// Sends an answer back to who asked.
#[inline(always)]
fn reply<P: Packet>(packet: &P, origin: Origin, stat: Stat) -> Result<i32, DropReason> {
    match origin {
        // Not XDP_TX: a veth leaves such frames lying in the other end's ring, unless that end has
        // an XDP program of its own.
        Origin::Port => done(packet.redirect(packet.ifindex()), stat),
        // Only ports ask.
        Origin::Uplink | Origin::Agent => Err(DropReason::Helper),
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
