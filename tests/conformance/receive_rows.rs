//! What a VTEP may be sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bed::Place;
use super::frames::{BROADCAST, Ip, Outer, Sum, sum_again, tagged, with_ecn};
use super::receive::{ECN, Given, Row, inside, outer, outers, row, wire};
use super::table::{Claim, Family, Section};

const SENDERS: &str = "any sender is good enough for it, and it learns; only VTEPs of the cluster and \
    static ones are for us";
const IGNORED: &str = "RFC 7348 §5: reserved bits are ignored on receipt";
const TAGS: &str = "RFC 7348 §6.1: frames with inner VLAN tags SHOULD be discarded";
const PARTS: &str = "RFC 7348 §4.3: fragments of VXLAN packets MAY be discarded";
const FROM_US: &str = "no VTEP sends such";

pub fn section() -> Section {
    Section {
        title: "Receiving",
        about: "What is put on the wire of a host, and what its container gets. A reason in brackets is \
            the counter of `overlay-dp status`.",
        claims: rows().into_iter().map(|row| row.claim).collect(),
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows = headers();
    rows.extend(vxlan_header());
    rows.extend(lengths());
    rows.extend(inner_frames());
    rows.extend(ecn());
    rows
}

fn headers() -> Vec<Row> {
    let claim = Claim::new;
    vec![
        outer(claim("a good frame", "RFC 7348 §4.1: it is delivered"), |_| {}),
        outer(
            claim("UDP checksum valid", "RFC 7348 §5: it MUST be accepted"),
            |outer| outer.sum = Sum::Valid,
        ),
        outer(
            claim("UDP checksum 0", "RFC 7348 §5: it MUST be accepted").over(Family::V4),
            |outer| outer.sum = Sum::Zero,
        ),
        outer(
            claim("UDP checksum 0", "RFC 6935 §5: tunnels MAY use it over IPv6")
                .over(Family::V6)
                .differs("dropped", "arrives", "`udp6zerocsumrx` makes it the same"),
            |outer| outer.sum = Sum::Zero,
        ),
        outer(
            claim(
                "UDP checksum corrupt",
                "RFC 7348 §5: it MAY be verified, and must be dropped then",
            )
            .differs(
                "dropped",
                "arrives",
                "we don't verify it: what is inside has checksums, and an outer header that was hit \
                 is of no VTEP or VNI (RFC 6936 §3)",
            ),
            |outer| outer.sum = Sum::Corrupt,
        ),
        outers(
            claim(
                "UDP source ports 1, 1023, 4789, 65535",
                "RFC 7348 §5: a hash is recommended, none is forbidden",
            ),
            |outer| {
                let ports = [1, 1023, 4789, 65535];
                ports
                    .map(|src_port| Outer {
                        src_port,
                        ..outer.clone()
                    })
                    .into()
            },
        ),
        outer(
            claim("another UDP destination port", "it is none of VXLAN's").both("dropped"),
            |outer| outer.dst_port = 4788,
        ),
        outer(claim("TTL or hop limit 1", "RFC 1122 §3.2.1.7: no reason to discard it"), |outer| {
            outer.ttl = 1;
        }),
        outer(
            claim("DF not set", "RFC 7348 §4.3: nothing is said of it").over(Family::V4),
            |outer| outer.df = false,
        ),
        outer(
            claim("DSCP 46 outside, 0 inside", "RFC 2983 §3.1: the inner one counts"),
            |outer| outer.tos = 46 << 2,
        ),
        wire(
            claim("IPv4 header checksum wrong", "RFC 1122 §3.2.1.2: it MUST be discarded")
                .over(Family::V4)
                .differs("dropped", "dropped (outer-checksum)", ""),
            |place, inner| {
                let mut frame = place.outer().around(inner);
                frame[24] ^= 0x10;
                vec![frame]
            },
        ),
        outer(
            claim("IPv4 options", "RFC 1122 §3.2.1.8: a host accepts them")
                .over(Family::V4)
                .differs("arrives", "dropped", FROM_US),
            |outer| outer.options = true,
        ),
        outer(
            claim("IPv6 destination options", "RFC 8200 §4: a host accepts them")
                .over(Family::V6)
                .differs("arrives", "dropped", FROM_US),
            |outer| outer.options = true,
        ),
        wire(
            claim("two outer fragments", PARTS).differs("arrives", "dropped", "they MAY be"),
            |place, inner| place.outer().fragments(inner).into(),
        ),
        row(
            claim("an unknown sender", "RFC 7348 §4.1: senders are learned")
                .differs("arrives", "dropped (unknown-vtep)", SENDERS),
            |place, marks| {
                let mut outer = place.outer();
                outer.src = match outer.src {
                    IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 99).into(),
                    IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0x99).into(),
                };
                let both = place.ins().into_iter();
                both.map(|ends| {
                    let mark = marks.another();
                    // Linux drops what contradicts its static entry.
                    let inner = from_nobody(&ends.udp(Ip::default(), (4000, 9), &mark, 60));
                    let wire = vec![outer.around(&inner)];
                    Given { mark, wire, inner }
                })
                .collect()
            },
        ),
    ]
}

fn vxlan_header() -> Vec<Row> {
    let bits = |range: std::ops::Range<usize>| {
        move |outer: Outer| {
            let reserved = range.clone().filter(|bit| *bit != 4);
            reserved
                .map(|bit| {
                    let mut outer = outer.clone();
                    outer.vxlan[bit / 8] |= 0x80 >> (bit % 8);
                    outer
                })
                .collect()
        }
    };
    let ignored = |what: &str| {
        Claim::new(what, IGNORED).differs(
            "dropped",
            "arrives",
            "Linux refuses what it does not know",
        )
    };
    let claim = Claim::new;
    vec![
        outers(ignored("each of the 7 reserved flags"), bits(0..8)),
        outers(
            ignored("each of the 24 reserved bits before the VNI"),
            bits(8..32),
        ),
        outers(
            ignored("each of the 8 reserved bits behind the VNI"),
            bits(56..64),
        ),
        outer(
            claim(
                "flag I not set",
                "RFC 7348 §5: it MUST be 1 for a valid VNI",
            )
            .differs("dropped", "dropped (vxlan-flags)", ""),
            |outer| outer.vxlan[0] = 0,
        ),
        outer(
            claim(
                "all flags but I",
                "RFC 7348 §5: it MUST be 1 for a valid VNI",
            )
            .differs("dropped", "dropped (vxlan-flags)", ""),
            |outer| outer.vxlan[0] = 0xf7,
        ),
        outer(
            claim(
                "a VNI that nobody here has",
                "RFC 7348 §4.1: segments are separate",
            )
            .differs("dropped", "dropped (unknown-vni)", ""),
            |outer| outer.vxlan[5] ^= 0x40,
        ),
        outer(
            claim("VNI 0", "RFC 7348 §5: a VNI as any other").differs(
                "dropped",
                "dropped (malformed-echo)",
                "we keep it for VTEPs' own echoes",
            ),
            |outer| outer.vxlan[4..7].fill(0),
        ),
    ]
}

fn lengths() -> Vec<Row> {
    let claim = Claim::new;
    let length = |at: fn(Family) -> usize, change: fn(u16) -> u16| {
        move |place: &Place, inner: &[u8]| {
            let mut frame = place.outer().around(inner);
            let at = at(place.family);
            let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
            frame[at..at + 2].copy_from_slice(&change(old).to_be_bytes());
            if place.family == Family::V4 {
                sum_again(&mut frame);
            }
            vec![frame]
        }
    };
    let udp = |family| if family == Family::V4 { 38 } else { 58 };
    let ip = |family| if family == Family::V4 { 16 } else { 18 };
    let contradiction = |what: &'static str| {
        claim(what, "RFC 768, RFC 791, RFC 8200: lengths agree").differs(
            "dropped",
            "dropped (outer-length)",
            "",
        )
    };
    vec![
        wire(
            claim(
                "16 bytes behind the outer packet",
                "RFC 894: padding is no part of the packet",
            )
            .differs(
                "arrives",
                "arrives with 16 bytes more",
                "no link pads packets of this size, and packets inside have a length of their own",
            ),
            |place, inner| vec![[place.outer().around(inner), vec![0xee; 16]].concat()],
        ),
        wire(
            contradiction("UDP length larger than the packet"),
            length(udp, |len| len + 1),
        ),
        wire(
            contradiction("UDP length less than its header's"),
            length(udp, |_| 7),
        ),
        wire(
            contradiction("IP length larger than the frame"),
            length(ip, |len| len + 1),
        ),
        wire(
            contradiction("the inner Ethernet header is cut"),
            |place, inner| vec![place.outer().around(&inner[..13])],
        ),
    ]
}

fn inner_frames() -> Vec<Row> {
    let claim = Claim::new;
    vec![
        inside(claim("inner broadcast", "RFC 7348 §4.2"), |_, frame| {
            [&BROADCAST, &frame[6..]].concat()
        }),
        inside(claim("inner multicast", "RFC 7348 §4.2"), |_, frame| {
            [&[0x33, 0x33, 0, 0, 0, 0xfb], &frame[6..]].concat()
        }),
        inside(
            claim("inner EtherType 0x88b5", "RFC 7348 §4: any Ethernet frame"),
            |_, frame| [&frame[..12], &[0x88, 0xb5], &frame[14..]].concat(),
        ),
        inside(
            claim("inner 802.1Q tag", TAGS).differs(
                "arrives",
                "dropped (inner-vlan)",
                "Linux has VLANs above the device",
            ),
            |_, frame| tagged(frame, 0x8100),
        ),
        inside(
            claim("inner 802.1ad tag", TAGS).differs("arrives", "dropped (inner-vlan)", "as above"),
            |_, frame| tagged(frame, 0x88a8),
        ),
        row(
            claim("inner fragments", "RFC 7348 §4: any Ethernet frame"),
            |place, marks| {
                let both = place.ins().into_iter();
                both.flat_map(|ends| {
                    let marks = [marks.another(), marks.another()];
                    let parts = ends.fragments((4000, 9), [&marks[0], &marks[1]]);
                    let given = marks.into_iter().zip(parts).map(|(mark, inner)| Given {
                        mark,
                        wire: vec![place.outer().around(&inner)],
                        inner,
                    });
                    given.collect::<Vec<_>>()
                })
                .collect()
            },
        ),
        row(
            claim(
                "an inner packet of the whole MTU",
                "RFC 7348 §4.3: the underlay's is larger",
            ),
            |place, marks| {
                let both = place.ins().into_iter();
                both.map(|ends| {
                    let mark = marks.another();
                    let headers = if ends.dst.is_ipv4() { 28 } else { 48 };
                    let inner = ends.udp(Ip::default(), (4000, 9), &mark, place.mtu - headers);
                    let wire = vec![place.outer().around(&inner)];
                    Given { mark, wire, inner }
                })
                .collect()
            },
        ),
        inside(
            claim(
                "inner source MAC is a group's",
                "IEEE 802.3 §3.2.3: it is an individual's",
            )
            .differs("dropped", "dropped (inner-source)", ""),
            |_, frame| [&frame[..6], &BROADCAST, &frame[12..]].concat(),
        ),
        inside(
            claim("inner source MAC is the receiver's own", "no loops").differs(
                "dropped",
                "dropped (wrong-vtep)",
                "",
            ),
            |place, frame| [&frame[..6], &place.mac, &frame[12..]].concat(),
        ),
        inside(
            claim(
                "inner source MAC is nobody's",
                "RFC 7348 §4.1: it is learned",
            )
            .differs(
                "arrives",
                "dropped (unknown-source)",
                "we are told by gossip, and don't learn",
            ),
            |_, frame| from_nobody(frame),
        ),
        inside(
            claim(
                "inner destination MAC is nobody's",
                "RFC 7348 §4.2: unknown unicast is flooded",
            )
            .differs(
                "arrives",
                "dropped (unknown-destination)",
                "each container's MAC is known, so nobody has it",
            ),
            |_, frame| [&[2, 0x42, 9, 9, 9, 9], &frame[6..]].concat(),
        ),
    ]
}

/// The frame with a source MAC that no endpoint has.
fn from_nobody(frame: &[u8]) -> Vec<u8> {
    [&frame[..6], &[2, 0x42, 9, 9, 9, 9], &frame[12..]].concat()
}

/// RFC 6040 section 4.2, figure 4: all 16 pairs, IPv4 and IPv6 inside.
fn ecn() -> Vec<Row> {
    // Inner, outer, and what arrives of it.
    let pairs = [0, 2, 1, 3]
        .into_iter()
        .flat_map(|inner| [0, 2, 1, 3].map(|outer| (inner, outer)));
    pairs
        .map(|(inner, outer): (u8, u8)| {
            let what = format!(
                "{} inside, {} outside",
                ECN[usize::from(inner)],
                ECN[usize::from(outer)]
            );
            let claim = Claim::new(what, "RFC 6040 §4.2");
            let claim = match (inner, outer) {
                (0, 3) => claim.differs("dropped", "dropped (ecn-illegal)", ""),
                (_, 3) if inner != 3 => claim.both("arrives as CE"),
                (2, 1) => claim.both("arrives as ECT(1)"),
                _ => claim,
            };
            row(claim, move |place, marks| {
                let both = place.ins().into_iter();
                both.map(|ends| {
                    let mark = marks.another();
                    let frame = ends.udp(Ip::default(), (4000, 9), &mark, 60);
                    let inner = with_ecn(&frame, inner);
                    let mut headers = place.outer();
                    headers.tos = outer;
                    let wire = vec![headers.around(&inner)];
                    Given { mark, wire, inner }
                })
                .collect()
            })
        })
        .collect()
}
