//! What ought to come of a frame: the native verdict, carried out on a `Vec`. The verdict code is
//! the programs' own; the rest is written again here, from the formats.

use overlay_common::counters::{DropReason, Stat};
use overlay_common::outer::{OuterV4, OuterV6};
use overlay_common::punt::{self, Kind, Reason};
use overlay_common::verdict::testing::{Memory, Slice};
use overlay_common::verdict::{
    Frame, Verdict, Way, from_agent, from_port, from_uplink, leave, neighbour, note_entrance,
    renew_entrance,
};
use overlay_common::wire::{Family, be16};

use super::object::{Action, Beside, Hook, Outcome};
use super::world::PORT_A;

pub fn outcome(hook: Hook, frame: &[u8], beside: Beside, tables: &Memory) -> Outcome {
    let slice = Slice {
        bytes: frame,
        gso_size: beside.gso_size,
        sum_aside: !hook.is_xdp(),
        ..Slice::default()
    };
    let (verdict, stats) = match hook {
        Hook::PortXdp | Hook::PortTc => {
            let verdict = match from_port(&slice, tables, PORT_A) {
                Verdict::Leave(leaving) => leave(&slice, tables, &leaving),
                other => other,
            };
            (verdict, vec![Stat::PortFrames])
        }
        Hook::UplinkXdp | Hook::UplinkTc => match from_uplink(&slice, tables, Way::Clear) {
            Verdict::Pass => (Verdict::Pass, vec![]),
            verdict => (verdict, vec![Stat::UplinkFrames]),
        },
        Hook::AgentTc if is_opened(frame) => {
            let verdict = match from_uplink(&slice, tables, Way::Sealed) {
                Verdict::Pass | Verdict::Open => Verdict::Drop(DropReason::MalformedEsp),
                verdict => verdict,
            };
            (verdict, vec![Stat::Opened])
        }
        Hook::AgentTc => (from_agent(&slice, tables), vec![]),
        Hook::PuntXdp => panic!("no verdict there"),
    };
    let mut run = Run {
        hook,
        tables,
        beside,
        opened: hook == Hook::AgentTc && is_opened(frame),
        outcome: Outcome {
            action: Action::Redirect,
            bytes: frame.to_vec(),
            drops: vec![],
            stats,
        },
    };
    if let Err(reason) = run.carry_out(verdict) {
        run.outcome.action = Action::Drop;
        run.outcome.drops.push(reason);
    }
    run.outcome
}

struct Run<'t> {
    hook: Hook,
    tables: &'t Memory,
    beside: Beside,
    opened: bool,
    outcome: Outcome,
}

impl Run<'_> {
    fn carry_out(&mut self, verdict: Verdict<'_>) -> Result<(), DropReason> {
        let len = self.outcome.bytes.len() as u32;
        let bytes = &mut self.outcome.bytes;
        let stat = match verdict {
            Verdict::Pass => {
                self.outcome.action = Action::Pass;
                return Ok(());
            }
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Punt { reason, vni } => return self.punt(reason, vni),
            // The kernel's tunnel support is for IP only.
            Verdict::Encap { vni, .. } if !self.hook.is_xdp() && !is_ip(bytes) => {
                return self.punt(Reason::CantEncap, vni);
            }
            Verdict::Encap {
                vtep,
                dst,
                meta,
                vni,
                seal,
            } => {
                let config = self.tables.config.as_ref().unwrap();
                match Family::of(dst) {
                    Family::V4 => {
                        let outer = OuterV4::to_vtep(config, vtep, dst, meta, vni);
                        bytes.splice(..0, outer.to_bytes(len));
                    }
                    Family::V6 => {
                        let outer = OuterV6::to_vtep(config, vtep, dst, meta, vni);
                        bytes.splice(..0, outer.to_bytes(len));
                    }
                }
                if seal {
                    return self.give_to_crypt(Kind::ToSeal, Stat::ToSeal);
                }
                Stat::Encapsulated
            }
            Verdict::Switch { .. } => Stat::Switched,
            Verdict::Enter { vni, .. } => {
                renew_entrance(&Slice::new(bytes), self.tables, vni);
                Stat::Switched
            }
            Verdict::Leave(_) => panic!("it was decided about"),
            Verdict::Route { mac, .. } => {
                bytes[..6].copy_from_slice(&mac);
                Stat::Routed
            }
            Verdict::Return {
                vtep,
                dst,
                meta,
                vni,
                mac,
                seal,
            } => {
                bytes[..6].copy_from_slice(&mac);
                return self.carry_out(Verdict::Encap {
                    vtep,
                    dst,
                    meta,
                    vni,
                    seal,
                });
            }
            // There are no services here.
            Verdict::Balance { vni } => return self.punt(Reason::NoBackend, vni),
            Verdict::ArpReply { mac } => {
                neighbour::arp_reply(bytes.first_chunk_mut().unwrap(), &mac);
                Stat::ArpReplies
            }
            Verdict::NdReply { mac } => {
                neighbour::nd_reply(bytes.first_chunk_mut().unwrap(), &mac);
                Stat::NdReplies
            }
            Verdict::Decap {
                ecn,
                family,
                router,
                entered,
                ..
            } => {
                if entered {
                    note_entrance(&Slice::new(bytes), self.tables, family);
                }
                let outer = family.outer_len();
                let ethertype = be16(bytes[outer + 12], bytes[outer + 13]);
                let kept = match (family, ethertype) {
                    (Family::V6, 0x86dd) => 40,
                    _ => 20,
                };
                if let Some(ecn) = ecn {
                    bytes[outer + 15] = ecn.byte1;
                    if let Some(checksum) = ecn.checksum {
                        bytes[outer + 24..outer + 26].copy_from_slice(&checksum);
                    }
                }
                // The kernel keeps an IP header's length behind the Ethernet header.
                let least = outer + 14 + kept;
                if !self.hook.is_xdp() && bytes.len() < least {
                    bytes.resize(least, 0);
                }
                bytes.drain(..outer);
                match self.hook {
                    Hook::AgentTc if !self.opened => Stat::AgentToPort,
                    _ if router => Stat::Routed,
                    _ => Stat::Decapsulated,
                }
            }
            Verdict::EchoReply { family, unsound } => {
                let (ip, len) = match family {
                    Family::V4 => (26, 4),
                    Family::V6 => (22, 16),
                };
                let message = ip + 2 * len + 16;
                swap(bytes, 0, 6);
                swap(bytes, ip, len);
                swap(bytes, ip + 2 * len, 2);
                swap(bytes, message, 2);
                if unsound {
                    bytes[message - 10..message - 8].fill(0);
                    bytes[message..message + 4].copy_from_slice(&overlay_common::echo::UNSOUND);
                }
                Stat::EchoReplies
            }
            Verdict::Forward { vtep } => {
                bytes[..6].copy_from_slice(&vtep.dst_mac);
                bytes[6..12].copy_from_slice(&vtep.src_mac);
                Stat::AgentToVtep
            }
            Verdict::Seal => return self.give_to_crypt(Kind::ToSeal, Stat::ToSeal),
            Verdict::Open => return self.give_to_crypt(Kind::ToOpen, Stat::ToOpen),
        };
        self.outcome.stats.push(stat);
        Ok(())
    }

    fn give_to_crypt(&mut self, kind: Kind, stat: Stat) -> Result<(), DropReason> {
        let marker = punt::encode(kind, None, PORT_A, 0x0800);
        self.outcome.bytes[..12].copy_from_slice(&marker[..12]);
        self.outcome.stats.push(stat);
        Ok(())
    }

    fn punt(&mut self, reason: Reason, vni: u32) -> Result<(), DropReason> {
        let bytes = &mut self.outcome.bytes;
        if reason == Reason::TooBig {
            bytes.truncate(punt::TOO_BIG_KEEP as usize);
            self.beside.gso_size = 0;
        }
        let len = match self.beside.gso_size {
            0 => bytes.len() as u32,
            segment => segment + 192,
        };
        let from_port = matches!(self.hook, Hook::PortXdp | Hook::PortTc);
        let kind = if from_port {
            Kind::FromPort
        } else if self.opened {
            Kind::FromOpened
        } else {
            Kind::FromUplink
        };
        if len + if from_port { 50 } else { 0 } > punt::MTU + 14 {
            return Err(DropReason::PuntTooBig);
        }
        let marker = punt::encode(kind, Some(reason), PORT_A, 0x0800);
        if from_port {
            let config = self.tables.config.as_ref().unwrap();
            let headers = OuterV4::punted(config, marker, vni).to_bytes(bytes.len() as u32);
            bytes.splice(..0, headers);
        } else {
            bytes[..12].copy_from_slice(&marker[..12]);
        }
        self.outcome.stats.push(Stat::Punted);
        Ok(())
    }
}

/// Whether a crypt worker says that it has opened it.
fn is_opened(frame: &[u8]) -> bool {
    let marker = frame.first_chunk().and_then(punt::decode);
    marker.is_some_and(|marker| marker.kind == Kind::Opened)
}

/// Exchanges the `len` bytes at `at` with those behind them.
fn swap(bytes: &mut [u8], at: usize, len: usize) {
    let (a, b) = bytes[at..at + 2 * len].split_at_mut(len);
    a.swap_with_slice(b);
}

/// Whether the kernel takes the frame for IP.
fn is_ip(frame: &[u8]) -> bool {
    let ethertype: Option<[u8; 2]> = Slice::new(frame).load(12);
    matches!(ethertype.map(|[a, b]| be16(a, b)), Some(0x0800 | 0x86dd))
}
