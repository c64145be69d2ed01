//! What a VTEP makes of what its container sends.

use std::collections::BTreeSet;

use super::bed::{Place, VXLAN_PORT};
use super::frames::{BROADCAST, Ip, tagged, with_ecn};
use super::receive::ECN;
use super::send::{OnWire, Row, Seen, row};
use super::table::{Claim, Family, Section};

pub fn section() -> Section {
    Section {
        title: "Sending",
        about: "What a container sends, byte by byte, and what its host puts on the wire.",
        claims: rows().into_iter().map(|row| row.claim).collect(),
    }
}

/// A frame of each family inside.
fn both(place: &Place, mark: &[u8]) -> Vec<Vec<u8>> {
    let both = place.outs();
    both.map(|ends| ends.udp(Ip::default(), (4000, 9), mark, 60))
        .into()
}

/// What is said of all frames, when all that were sent have left as they were.
fn all(seen: &Seen, say: impl Fn(&OnWire) -> String) -> String {
    if seen.wire.len() != seen.sent.len() {
        return format!("{} of {} are sent", seen.wire.len(), seen.sent.len());
    }
    if !seen
        .sent
        .iter()
        .all(|sent| seen.wire.iter().any(|wire| wire.inner() == sent))
    {
        return "changed inside".to_owned();
    }
    let said: BTreeSet<String> = seen.wire.iter().map(say).collect();
    said.into_iter().collect::<Vec<_>>().join(" / ")
}

fn each(claim: Claim, say: impl Fn(&OnWire) -> String + 'static) -> Row {
    row(claim, both, move |_, seen| all(seen, &say))
}

/// 512 flows.
fn flows(place: &Place, mark: &[u8]) -> Vec<Vec<u8>> {
    let ports = (0..256_u16).map(|number| (10_000 + number * 7, 9));
    ports
        .flat_map(|ports| {
            place
                .outs()
                .map(|ends| ends.udp(Ip::default(), ports, mark, 20))
        })
        .collect()
}

fn spread(values: impl Iterator<Item = u32>) -> &'static str {
    match values.collect::<BTreeSet<_>>().len() {
        1 => "one for all",
        // Of 512 that are drawn from 16,384 a dozen are there already.
        450.. => "one for each flow",
        _ => "few",
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows = headers();
    rows.extend(flow_rows());
    rows.extend(copied());
    rows.extend(sizes());
    rows.extend(refused());
    rows
}

fn headers() -> Vec<Row> {
    let claim = Claim::new;
    vec![
        each(
            claim("VXLAN header", "RFC 7348 §5: flag I, and reserved bits 0")
                .both("08 00 00 00, VNI, 00"),
            |frame| match frame.vxlan() {
                [8, 0, 0, 0, _, _, _, 0] => "08 00 00 00, VNI, 00".to_owned(),
                other => format!("{other:02x?}"),
            },
        ),
        each(
            claim("UDP destination port", "RFC 7348 §5: 4789").both("4789"),
            |frame| frame.dst_port().to_string(),
        ),
        each(
            claim("UDP checksum", "RFC 7348 §5: SHOULD be 0")
                .over(Family::V4)
                .differs("computed", "0", "`noudpcsum` makes it the same"),
            sum,
        ),
        each(
            claim(
                "UDP checksum",
                "RFC 8200 §8.1: computed; RFC 6935 §5: tunnels MAY send 0",
            )
            .over(Family::V6)
            .differs(
                "computed",
                "0",
                "a program can't sum a super-packet; `udp6zerocsumtx` makes it the same",
            ),
            sum,
        ),
        each(
            claim("DF", "RFC 7348 §4.3: VTEPs MUST NOT fragment")
                .over(Family::V4)
                .differs("not set", "set", "`df set` makes it the same"),
            |frame| if frame.df() { "set" } else { "not set" }.to_owned(),
        ),
        each(
            claim("TTL or hop limit", "RFC 1122 §3.2.1.7: not 0").both("64"),
            |frame| frame.ttl().to_string(),
        ),
    ]
}

fn sum(frame: &OnWire) -> String {
    if frame.udp_sum() == 0 {
        "0"
    } else {
        "computed"
    }
    .to_owned()
}

fn flow_rows() -> Vec<Row> {
    let claim = Claim::new;
    const RANGE: &str = "RFC 7348 §5: RECOMMENDED to be in 49152-65535";
    vec![
        row(
            claim("range of the UDP source port, over 512 flows", RANGE).differs(
                "32768-60999",
                "49152-65535",
                "Linux takes the range of its own sockets; `srcport` sets another",
            ),
            flows,
            |_, seen| {
                let ranges = [(49152, 65535), (32768, 60999)];
                let mut ports = seen.wire.iter().map(OnWire::src_port);
                let (least, most) = ports.clone().fold((u16::MAX, 0), |(least, most), port| {
                    (least.min(port), most.max(port))
                });
                let fits =
                    |(from, to): &(u16, u16)| ports.all(|port| (*from..=*to).contains(&port));
                match ranges.into_iter().find(fits) {
                    Some((from, to)) => format!("{from}-{to}"),
                    None => format!("{least}-{most}"),
                }
            },
        ),
        row(
            claim(
                "UDP source ports of 512 flows",
                "RFC 7348 §5: a hash of the inner headers, for ECMP",
            )
            .both("one for each flow"),
            flows,
            |_, seen| spread(seen.wire.iter().map(|frame| frame.src_port().into())).to_owned(),
        ),
        row(
            claim(
                "UDP source port of 16 packets of one flow",
                "RFC 7348 §5: the same",
            )
            .both("one for all"),
            |place, mark| {
                let ends = place.outs()[0];
                (0..16)
                    .map(|size| {
                        ends.tcp(
                            Ip::default(),
                            (40_000, 80),
                            &[mark, &vec![7; size]].concat(),
                        )
                    })
                    .collect()
            },
            |_, seen| {
                all(seen, |_| {
                    spread(seen.wire.iter().map(|frame| frame.src_port().into())).to_owned()
                })
            },
        ),
        row(
            claim(
                "UDP source port of a datagram's two fragments",
                "RFC 7348 §5: one flow takes one path",
            )
            .both("one for all"),
            |place, mark| {
                let both = place.outs().into_iter();
                both.flat_map(|ends| ends.fragments((4000, 9), [mark, mark]))
                    .collect()
            },
            |_, seen| {
                let (v4, v6): (Vec<_>, Vec<_>) =
                    seen.wire.iter().partition(|frame| frame.inner()[12] == 8);
                let said = [v4, v6]
                    .map(|frames| spread(frames.iter().map(|frame| frame.src_port().into())));
                let said = BTreeSet::from(said)
                    .into_iter()
                    .collect::<Vec<_>>()
                    .join(" / ");
                all(seen, |_| said.clone())
            },
        ),
        row(
            claim(
                "flow labels of 512 flows",
                "RFC 6438 §3: SHOULD be set, for ECMP",
            )
            .over(Family::V6)
            .differs(
                "one for all",
                "one for each flow",
                "Linux sends the one that `flowlabel` says",
            ),
            flows,
            |_, seen| spread(seen.wire.iter().map(OnWire::flow_label)).to_owned(),
        ),
    ]
}

fn copied() -> Vec<Row> {
    let claim = Claim::new;
    let marked = |tos: u8| {
        move |place: &Place, mark: &[u8]| {
            let ip = Ip {
                tos,
                ..Ip::default()
            };
            let both = place.outs();
            both.map(|ends| ends.udp(ip, (4000, 9), mark, 60)).into()
        }
    };
    let mut rows = vec![row(
        claim(
            "DSCP 46 inside",
            "RFC 2983 §3.1: copied (uniform), or not (pipe)",
        )
        .differs("0", "46", "`dsfield inherit` makes it the same"),
        marked(46 << 2),
        |_, seen| all(seen, |frame| (frame.tos() >> 2).to_string()),
    )];
    for ecn in [0, 2, 1, 3_u8] {
        let name = ECN[usize::from(ecn)];
        let claim = Claim::new(format!("{name} inside"), "RFC 6040 §4.1: copied");
        let claim = match ecn {
            3 => claim.differs(
                "ECT(0)",
                "CE",
                "Linux does as RFC 3168 §9.1.1 says, which RFC 6040 replaces",
            ),
            _ => claim.both(name),
        };
        rows.push(row(
            claim,
            move |place, mark| {
                both(place, mark)
                    .iter()
                    .map(|frame| with_ecn(frame, ecn))
                    .collect()
            },
            |_, seen| all(seen, |frame| ECN[usize::from(frame.tos() & 3)].to_owned()),
        ));
    }
    rows
}

fn sizes() -> Vec<Row> {
    let claim = Claim::new;
    let sized = |more: usize, df: bool| {
        move |place: &Place, mark: &[u8]| {
            let ip = Ip {
                df,
                ..Ip::default()
            };
            let both = place.outs().into_iter();
            both.map(|ends| {
                let headers = if ends.dst.is_ipv4() { 28 } else { 48 };
                ends.udp(ip, (4000, 9), mark, place.mtu + more - headers)
            })
            .collect()
        }
    };
    const TOLD: &str = "told: fragmentation needed or packet too big, with the MTU";
    let look = |place: &Place, seen: &Seen| {
        if seen.wire.iter().any(OnWire::is_part) {
            return "sent in fragments".to_owned();
        }
        if !seen.wire.is_empty() {
            return format!("sent in {} bytes", seen.wire[0].len());
        }
        let mtu = (place.mtu as u32).to_be_bytes();
        let errors = seen.back.iter().filter(|frame| match frame[12] {
            8 => frame[34..36] == [3, 4] && frame[40..42] == mtu[2..],
            _ => frame[54..56] == [2, 0] && frame[58..62] == mtu,
        });
        if errors.count() == seen.sent.len() {
            TOLD
        } else {
            "something came back"
        }
        .to_owned()
    };
    let too_big = |what: &'static str, df: bool| {
        const RULE: &str = "RFC 7348 §4.3: VTEPs MUST NOT fragment";
        const WHY: &str = "in front of Linux's device there is a bridge, which drops it";
        let families = [(Family::V4, "sent in fragments"), (Family::V6, "dropped")];
        families.map(|(family, linux)| {
            let claim = claim(what, RULE).over(family);
            row(claim.differs(linux, TOLD, WHY), sized(1, df), look)
        })
    };
    let mut rows = vec![row(
        claim("a packet of the container's MTU", "it fills the underlay's")
            .both("sent in 1500 bytes"),
        sized(0, true),
        |_, seen| all(seen, |frame| format!("sent in {} bytes", frame.len())),
    )];
    rows.extend(too_big("a larger packet with DF, or IPv6", true));
    rows.extend(too_big("a larger packet without DF, or IPv6", false));
    rows
}

fn refused() -> Vec<Row> {
    let claim = Claim::new;
    let left = |_: &Place, seen: &Seen| all(seen, |_| "sent".to_owned());
    vec![
        row(
            claim("a broadcast", "RFC 7348 §4.2: to all VTEPs of the network").both("sent"),
            |place, mark| {
                let both = both(place, mark).into_iter();
                both.map(|frame| [&BROADCAST, &frame[6..]].concat())
                    .collect()
            },
            left,
        ),
        row(
            claim(
                "an 802.1Q tag",
                "RFC 7348 §6.1: a VTEP SHOULD NOT send inner tags",
            )
            .differs(
                "sent",
                "dropped (inner-vlan)",
                "Linux has VLANs above the device",
            ),
            |place, mark| {
                both(place, mark)
                    .iter()
                    .map(|frame| tagged(frame, 0x8100))
                    .collect()
            },
            left,
        ),
        row(
            claim("another source MAC", "a container is one endpoint").differs(
                "sent",
                "dropped (spoofed-mac)",
                "Linux leaves it to what is in front",
            ),
            |place, mark| {
                let both = both(place, mark).into_iter();
                both.map(|frame| [&frame[..6], &[2, 0x42, 9, 9, 9, 9], &frame[12..]].concat())
                    .collect()
            },
            left,
        ),
        row(
            claim("another source address", "a container is one endpoint").differs(
                "sent",
                "dropped (spoofed-ip)",
                "Linux leaves it to what is in front",
            ),
            |place, mark| {
                let both = place.outs().into_iter();
                both.map(|mut ends| {
                    ends.src = match ends.src {
                        std::net::IpAddr::V4(_) => [10, 0, 0, 77].into(),
                        std::net::IpAddr::V6(_) => [0xfe80, 0, 0, 0, 0, 0, 0, 0x77].into(),
                    };
                    ends.udp(Ip::default(), (4000, 9), mark, 60)
                })
                .collect()
            },
            left,
        ),
        row(
            claim(
                "a unicast to nobody's MAC",
                "RFC 7348 §4.2: unknown unicast is flooded",
            )
            .differs(
                "sent",
                "dropped (unknown-destination)",
                "each container's MAC is known, so nobody has it",
            ),
            |place, mark| {
                let both = both(place, mark).into_iter();
                both.map(|frame| [&[2, 0x42, 9, 9, 9, 9], &frame[6..]].concat())
                    .collect()
            },
            left,
        ),
    ]
}

/// The port is Linux's own choice here, too.
const _: () = assert!(VXLAN_PORT == 4789);
