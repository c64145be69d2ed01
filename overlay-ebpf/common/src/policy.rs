//! Who may reach an endpoint, judged where it is: at its own host's port.
//!
//! A port that policies are about has [`PORT_POLICED`](crate::layout::PORT_POLICED), and its MAC's
//! entry [`FDB_POLICED`](crate::layout::FDB_POLICED); others cost a look at that bit. A matching rule
//! that denies wins; else one that allows; else [`PolicyEntry::otherwise`] tells. What answers something
//! that the endpoint itself has begun always comes in: [`note_begun`] notes what it begins.
//!
//! The sender is known by its MAC, which is bound to its port, or to its VTEP.

use core::hint::black_box;

use crate::counters::DropReason;
use crate::layout::{FdbEntry, FdbKey, pod};
use crate::service::FlowKey;
use crate::verdict::{Frame, Tables};
use crate::wire::{
    ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, Ip16, Mac, PROTO_ICMPV6,
    PROTO_TCP, PROTO_UDP, UNSPECIFIED, be16, map_v4, words,
};

/// The most rules about one endpoint. The verifier follows each of them in more than one way: twice as
/// many are close to what it is willing to look at.
pub const MAX_RULES: usize = 32;
/// [`Rule::protocol`] of ICMP, in both families.
pub const PROTO_ICMP: u8 = 1;
/// [`Rule::action`]: it comes in, unless another rule denies it.
pub const ALLOW: u32 = 1;
/// [`Rule::action`]: it does not come in.
pub const DENY: u32 = 2;
/// From here on ports are given to who begins (Linux's `ip_local_port_range`).
const EPHEMERAL: u16 = 32768;

/// One rule about who may reach an endpoint. All that it says must be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The sender's address …
    pub ip: Ip16,
    /// … in these bits.
    pub mask: Ip16,
    /// The sender's [`FdbEntry::identity`](crate::layout::FdbEntry::identity); 0 for any.
    pub identity: u32,
    /// The lowest destination port …
    pub first_port: u16,
    /// … and the highest; 0 to 65535 for any, and for what has none.
    pub last_port: u16,
    /// TCP, UDP, [`PROTO_ICMP`], or 0 for any.
    pub protocol: u8,
    /// [`ALLOW`] or [`DENY`].
    pub action: u32,
    /// It must come through a host's router: from a host itself, or from outside.
    pub outside: bool,
}

/// A [`Rule`] as the programs have it: each of its conditions is a difference that must be 0, so that
/// all of them are looked at with one branch. With one for each condition the verifier would follow
/// more ways through [`MAX_RULES`] of them than it does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleEntry {
    ip: Ip16,
    mask: Ip16,
    identity: u32,
    identity_mask: u32,
    protocol: u32,
    protocol_mask: u32,
    first_port: u32,
    last_port: u32,
    outside: u32,
    /// All ones when it denies: what hides its ports is not told apart then.
    deny_mask: u32,
    action: u32,
}
pod!(RuleEntry, 68);

impl From<Rule> for RuleEntry {
    fn from(rule: Rule) -> RuleEntry {
        let mask = |is: bool| if is { u32::MAX } else { 0 };
        RuleEntry {
            ip: rule.ip,
            mask: rule.mask,
            identity: rule.identity,
            identity_mask: mask(rule.identity != 0),
            protocol: rule.protocol.into(),
            protocol_mask: mask(rule.protocol != 0),
            first_port: rule.first_port.into(),
            last_port: rule.last_port.into(),
            outside: mask(rule.outside),
            deny_mask: mask(rule.action == DENY),
            action: rule.action,
        }
    }
}

/// Who may reach the endpoint behind a port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PolicyEntry {
    /// How many rules there are.
    pub count: u32,
    /// 0 when what no rule is about is denied, else [`ALLOW`].
    pub otherwise: u32,
    /// The rules; those behind `count` are zero.
    pub rules: [RuleEntry; MAX_RULES],
}
pod!(PolicyEntry, 2184);

impl core::fmt::Debug for PolicyEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PolicyEntry")
            .field("otherwise", &self.otherwise)
            .field("rules", &self.used())
            .finish()
    }
}

impl PolicyEntry {
    /// Nobody comes in.
    pub const SHUT: PolicyEntry = PolicyEntry {
        count: 0,
        otherwise: 0,
        rules: [RuleEntry {
            ip: UNSPECIFIED,
            mask: UNSPECIFIED,
            identity: 0,
            identity_mask: 0,
            protocol: 0,
            protocol_mask: 0,
            first_port: 0,
            last_port: 0,
            outside: 0,
            deny_mask: 0,
            action: 0,
        }; MAX_RULES],
    };

    /// These rules, of which those that are too many are left out.
    pub fn new(closed: bool, rules: impl IntoIterator<Item = Rule>) -> PolicyEntry {
        let mut entry = PolicyEntry {
            otherwise: if closed { 0 } else { ALLOW },
            ..PolicyEntry::SHUT
        };
        for (slot, rule) in entry.rules.iter_mut().zip(rules) {
            *slot = rule.into();
            entry.count += 1;
        }
        entry
    }

    /// The rules.
    pub fn used(&self) -> &[RuleEntry] {
        self.rules.get(..self.count as usize).unwrap_or(&self.rules)
    }

    /// Whether something comes in, answers aside.
    #[inline(always)]
    fn allows(&self, seen: &Seen) -> bool {
        // What is gathered comes from memory, so the verifier does not tell apart which rule it was.
        let mut acted = self.otherwise;
        let mut i = 0;
        while i < MAX_RULES {
            if i >= self.count as usize {
                break;
            }
            let rule = &self.rules[i];
            if rule.difference(seen) == 0 {
                acted |= rule.action;
            }
            i += 1;
        }
        acted & (ALLOW | DENY) == ALLOW
    }
}

impl RuleEntry {
    /// 0 when all that it says is so.
    #[inline(always)]
    fn difference(&self, seen: &Seen) -> u32 {
        let (src, ip, mask) = (words(&seen.key.src), words(&self.ip), words(&self.mask));
        let address = ((src[0] ^ ip[0]) & mask[0])
            | ((src[1] ^ ip[1]) & mask[1])
            | ((src[2] ^ ip[2]) & mask[2])
            | ((src[3] ^ ip[3]) & mask[3]);
        let who = ((seen.identity ^ self.identity) & self.identity_mask)
            | (self.outside & !seen.outside)
            | address;
        // Negative when it is out of the range.
        let port = seen.port.wrapping_sub(self.first_port) | self.last_port.wrapping_sub(seen.port);
        let what =
            ((seen.key.protocol ^ self.protocol) & self.protocol_mask) | (port & 0x8000_0000);
        // What can't be seen may be what is denied, and is not what is allowed.
        who | (what & !(seen.hidden & self.deny_mask))
    }
}

/// What a frame is to an endpoint's policies.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    /// It needs no rule: ARP, neighbour discovery, ICMP's errors and answers, and the fragments of
    /// which the first one is judged.
    #[default]
    Free,
    /// It begins a TCP connection.
    Opening,
    /// Anything else.
    Other,
}

/// A frame as rules see it.
#[derive(Default)]
#[repr(C)]
pub struct Seen {
    /// The protocol is 0 when it can't be seen; [`PROTO_ICMP`] in both families.
    key: FlowKey,
    kind: Kind,
    identity: u32,
    /// All ones when it comes through a host's router.
    outside: u32,
    /// The destination port; 0 for none.
    port: u32,
    /// All ones when its protocol can't be seen.
    hidden: u32,
}

impl Seen {
    /// Becomes the frame whose Ethernet header is at `at`; `None` when it is to be refused.
    #[inline(always)]
    fn read<F: Frame>(&mut self, frame: &F, at: usize, vni: u32) -> Option<()> {
        let nowhere = nowhere();
        self.key.vni = vni;
        self.key.protocol = 0;
        self.key.src = nowhere;
        self.key.dst = nowhere;
        self.key.ports = [0; 4];
        self.kind = Kind::Other;
        let [t0, t1] = frame.load(at + ETH_LEN - 2)?;
        let ip = at + ETH_LEN;
        match be16(t0, t1) {
            ETH_P_ARP => {
                self.kind = Kind::Free;
                Some(())
            }
            ETH_P_IP => {
                let h: [u8; IPV4_LEN] = frame.load(ip)?;
                self.key.src = map_v4([h[12], h[13], h[14], h[15]]);
                self.key.dst = map_v4([h[16], h[17], h[18], h[19]]);
                let offset = be16(h[6], h[7]) & 0x1fff;
                if offset != 0 {
                    // Where a TCP header goes on it may say something else than the first fragment
                    // (RFC 3128).
                    self.kind = Kind::Free;
                    return (offset != 1).then_some(());
                }
                if h[0] != 0x45 {
                    return Some(());
                }
                self.look(frame, ip + IPV4_LEN, h[9], PROTO_ICMP)
            }
            ETH_P_IPV6 => {
                let [next] = frame.load(ip + 6)?;
                self.key.src = frame.load(ip + 8)?;
                self.key.dst = frame.load(ip + 24)?;
                self.look(frame, ip + IPV6_LEN, next, PROTO_ICMPV6)
            }
            _ => Some(()),
        }
    }

    /// Reads the header at `l4`, of `protocol`; `icmp` is its family's.
    #[inline(always)]
    fn look<F: Frame>(&mut self, frame: &F, l4: usize, protocol: u8, icmp: u8) -> Option<()> {
        match protocol {
            PROTO_TCP => {
                let h: [u8; 14] = frame.load(l4)?;
                self.key.ports = [h[0], h[1], h[2], h[3]];
                const RST: u8 = 4;
                const ACK: u8 = 16;
                // All that goes on has one of these.
                if h[13] & (RST | ACK) == 0 {
                    self.kind = Kind::Opening;
                }
            }
            PROTO_UDP => self.key.ports = frame.load(l4)?,
            // Extension headers hide what comes behind them.
            0 | 43 | 44 | 51 | 60 => return Some(()),
            _ if protocol == icmp => {
                let [kind] = frame.load(l4)?;
                let free = match icmp {
                    PROTO_ICMP => matches!(kind, 0 | 3 | 11 | 12),
                    _ => kind < 128 || matches!(kind, 129..=137 | 143),
                };
                if free {
                    self.kind = Kind::Free;
                }
                self.key.protocol = PROTO_ICMP as u32;
                return Some(());
            }
            // The other family's is none here.
            PROTO_ICMP | PROTO_ICMPV6 => return None,
            _ => {}
        }
        self.key.protocol = protocol as u32;
        Some(())
    }

    #[inline(always)]
    fn src_port(&self) -> u16 {
        be16(self.key.ports[0], self.key.ports[1])
    }

    #[inline(always)]
    fn dst_port(&self) -> u16 {
        be16(self.key.ports[2], self.key.ports[3])
    }

    /// Whether its sender begins something with it, so that the answers are to come in.
    #[inline(always)]
    fn begins(&self) -> bool {
        if matches!(self.kind, Kind::Free) {
            return false;
        }
        let (src, dst) = (self.src_port(), self.dst_port());
        const TCP: u32 = PROTO_TCP as u32;
        const ICMP: u32 = PROTO_ICMP as u32;
        match self.key.protocol {
            TCP => matches!(self.kind, Kind::Opening) || (src >= EPHEMERAL && dst < EPHEMERAL),
            // It can't be seen; or its answers are known as such.
            0 | ICMP => false,
            _ => src >= EPHEMERAL || dst < EPHEMERAL,
        }
    }

    /// Looks up who sends it.
    #[inline(always)]
    fn identify<F: Frame, T: Tables>(&mut self, frame: &F, at: usize, tables: &T) -> Option<()> {
        let mac: Mac = frame.load(at + 6)?;
        let all_ones = |is: bool| if is { u32::MAX } else { 0 };
        let source = tables.fdb(&FdbKey::new(self.key.vni, mac));
        self.identity = source.map_or(0, FdbEntry::identity);
        self.outside = all_ones(source.is_some_and(FdbEntry::is_router));
        self.port = self.dst_port() as u32;
        self.hidden = all_ones(self.key.protocol == 0);
        Some(())
    }

    /// As what it may be the answer to was sent.
    #[inline(always)]
    fn turn(&mut self) {
        let [a, b, c, d] = self.key.ports;
        self.key.ports = [c, d, a, b];
        core::mem::swap(&mut self.key.src, &mut self.key.dst);
    }
}

/// [`UNSPECIFIED`] as words that the compiler knows nothing of. What it knows to be zero it has written by a
/// function, whose frame the stack has no room for.
#[inline(always)]
fn nowhere() -> Ip16 {
    let [a, b, c, d] = black_box(0_u32).to_ne_bytes();
    [a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d]
}

/// Judges a frame on the network `vni`, whose Ethernet header is at `at`, for the endpoint behind a
/// policed port.
///
/// # Errors
/// [`DropReason::Policy`] when it must not come in.
#[inline(always)]
pub fn judge<F: Frame, T: Tables>(
    frame: &F,
    at: usize,
    tables: &T,
    vni: u32,
    port: u32,
) -> Result<(), DropReason> {
    const DENIED: DropReason = DropReason::Policy;
    let entry = tables.policy(port).ok_or(DENIED)?;
    let comes_in = tables.with_seen(|seen| {
        if seen.read(frame, at, vni).is_none() {
            return false;
        }
        if matches!(seen.kind, Kind::Free) {
            return true;
        }
        if seen.identify(frame, at, tables).is_none() {
            return false;
        }
        // From here on the verifier knows nothing of what was seen: there is one way through the rules,
        // and not one for each kind of frame.
        let seen = black_box(seen);
        if entry.allows(seen) {
            return true;
        }
        if matches!(seen.kind, Kind::Opening) {
            return false;
        }
        seen.turn();
        tables.has_begun(&seen.key)
    });
    match comes_in {
        Some(true) => Ok(()),
        Some(false) | None => Err(DENIED),
    }
}

/// Which rule decides about a frame that has come in or not; `None` when it is none: for people.
/// The arguments are as with [`judge`].
pub fn deciding<F: Frame, T: Tables>(
    frame: &F,
    at: usize,
    tables: &T,
    vni: u32,
    port: u32,
) -> Option<usize> {
    let entry = tables.policy(port)?;
    let mut seen = Seen::default();
    seen.read(frame, at, vni)?;
    if matches!(seen.kind, Kind::Free) {
        return None;
    }
    seen.identify(frame, at, tables)?;
    let matching = |action| {
        let rules = &mut entry.used().iter();
        rules.position(|rule| rule.action == action && rule.difference(&seen) == 0)
    };
    matching(DENY).or_else(|| matching(ALLOW))
}

/// Notes what a policed endpoint begins with a frame that it sends, so that the answers come in.
///
/// Of TCP that is the first segment. What goes on, of a connection that is older than the policy or
/// was forgotten, and what UDP sends, is taken for its own unless it comes from a port that servers
/// have and goes to one that clients get.
#[inline(never)]
pub fn note_begun<F: Frame, T: Tables>(frame: &F, tables: &T, vni: u32) {
    tables.with_seen(|seen| {
        if seen.read(frame, 0, vni).is_some() && seen.begins() && !tables.has_begun(&seen.key) {
            tables.set_begun(&seen.key);
        }
    });
}
