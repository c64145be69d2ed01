//! Which packets are wanted, in the words that tcpdump's users know: a small part of them. They are
//! about containers' packets; what is in a tunnel is looked into.
//!
//! ```text
//! filter = and { "or" and }
//! and    = not { ["and"] not }
//! not    = "not" not | "(" filter ")" | term
//! term   = "tcp" | "udp" | "icmp" | "icmp6" | "arp" | "ip" | "ip6"
//!        | ["src" | "dst"] ("host" address | "net" subnet | "port" number) | "ether host" mac
//! ```

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnetwork::IpNetwork;
use overlay_core::model::MacAddr;

/// Deeper nesting is nobody's intention.
const MAX_DEPTH: usize = 32;

/// Which packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All.
    All,
    /// Any of these.
    Or(Vec<Filter>),
    /// All of these at once.
    And(Vec<Filter>),
    /// The others.
    Not(Box<Filter>),
    /// With such an address, at one end.
    Net(Option<End>, IpNetwork),
    /// With such a port, at one end.
    Port(Option<End>, u16),
    /// With such an Ethernet address.
    Ether(MacAddr),
    /// Of this kind.
    Kind(Kind),
}

/// Where from, or where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who sends.
    Source,
    /// Who is to get it.
    Destination,
}

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Address resolution of IPv4.
    Arp,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// TCP over either.
    Tcp,
    /// UDP over either.
    Udp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMP of IPv6.
    Icmp6,
}

impl Filter {
    /// Reads one.
    ///
    /// # Errors
    /// Says which word is wrong.
    pub fn parse(text: &str) -> Result<Filter> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        if words.is_empty() {
            return Ok(Filter::All);
        }
        let mut parser = Parser {
            words: &words,
            depth: 0,
        };
        let filter = parser.or()?;
        match parser.words.first() {
            None => Ok(filter),
            Some(word) => bail!("filter: '{word}' is not expected there"),
        }
    }

    /// True when nothing needs to be looked at.
    pub fn is_all(&self) -> bool {
        *self == Filter::All
    }

    /// Whether this frame is wanted.
    pub fn wants(&self, frame: &[u8]) -> bool {
        match self {
            Filter::All => true,
            _ => LaxSlicedPacket::from_ethernet(frame)
                .is_ok_and(|packet| self.matches(frame, &packet)),
        }
    }

    fn matches(&self, frame: &[u8], packet: &LaxSlicedPacket<'_>) -> bool {
        match self {
            Filter::All => true,
            Filter::Or(any) => any.iter().any(|filter| filter.matches(frame, packet)),
            Filter::And(all) => all.iter().all(|filter| filter.matches(frame, packet)),
            Filter::Not(filter) => !filter.matches(frame, packet),
            Filter::Net(end, net) => {
                let [src, dst] = addresses(packet);
                let is_in = |ip: Option<IpAddr>| ip.is_some_and(|ip| net.contains(ip));
                at(*end, is_in(src), is_in(dst))
            }
            Filter::Port(end, port) => {
                let [src, dst] = ports(packet);
                at(*end, src == Some(*port), dst == Some(*port))
            }
            Filter::Ether(mac) => {
                frame.get(..6) == Some(&mac.0) || frame.get(6..12) == Some(&mac.0)
            }
            Filter::Kind(kind) => is_kind(*kind, packet),
        }
    }
}

fn at(end: Option<End>, src: bool, dst: bool) -> bool {
    match end {
        None => src || dst,
        Some(End::Source) => src,
        Some(End::Destination) => dst,
    }
}

fn addresses(packet: &LaxSlicedPacket<'_>) -> [Option<IpAddr>; 2] {
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            [
                Some(header.source_addr().into()),
                Some(header.destination_addr().into()),
            ]
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            [
                Some(header.source_addr().into()),
                Some(header.destination_addr().into()),
            ]
        }
        Some(LaxNetSlice::Arp(arp)) => {
            let ip = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
            [
                ip(arp.sender_protocol_addr()),
                ip(arp.target_protocol_addr()),
            ]
        }
        None => [None, None],
    }
}

fn ports(packet: &LaxSlicedPacket<'_>) -> [Option<u16>; 2] {
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => [Some(tcp.source_port()), Some(tcp.destination_port())],
        Some(TransportSlice::Udp(udp)) => [Some(udp.source_port()), Some(udp.destination_port())],
        _ => [None, None],
    }
}

fn is_kind(kind: Kind, packet: &LaxSlicedPacket<'_>) -> bool {
    match kind {
        Kind::Arp => matches!(packet.net, Some(LaxNetSlice::Arp(_))),
        Kind::Ip => matches!(packet.net, Some(LaxNetSlice::Ipv4(_))),
        Kind::Ip6 => matches!(packet.net, Some(LaxNetSlice::Ipv6(_))),
        Kind::Tcp => matches!(packet.transport, Some(TransportSlice::Tcp(_))),
        Kind::Udp => matches!(packet.transport, Some(TransportSlice::Udp(_))),
        Kind::Icmp => matches!(packet.transport, Some(TransportSlice::Icmpv4(_))),
        Kind::Icmp6 => matches!(packet.transport, Some(TransportSlice::Icmpv6(_))),
    }
}

struct Parser<'w> {
    words: &'w [&'w str],
    depth: usize,
}

impl<'w> Parser<'w> {
    fn next(&mut self, what: &str) -> Result<&'w str> {
        let (first, rest) = self
            .words
            .split_first()
            .with_context(|| format!("filter: it ends where {what} should follow"))?;
        self.words = rest;
        Ok(first)
    }

    fn take(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    fn or(&mut self) -> Result<Filter> {
        let mut any = vec![self.and()?];
        while self.take("or") {
            any.push(self.and()?);
        }
        Ok(one_or(any, Filter::Or))
    }

    fn and(&mut self) -> Result<Filter> {
        let mut all = vec![self.not()?];
        while !matches!(self.words.first(), None | Some(&("or" | ")"))) {
            let _ = self.take("and");
            all.push(self.not()?);
        }
        Ok(one_or(all, Filter::And))
    }

    fn not(&mut self) -> Result<Filter> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            bail!("filter: it is nested too deeply");
        }
        let filter = if self.take("not") {
            Filter::Not(Box::new(self.not()?))
        } else if self.take("(") {
            let inside = self.or()?;
            if !self.take(")") {
                bail!("filter: a ')' is missing");
            }
            inside
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn term(&mut self) -> Result<Filter> {
        let end = if self.take("src") {
            Some(End::Source)
        } else if self.take("dst") {
            Some(End::Destination)
        } else {
            None
        };
        let word = self.next("a word such as 'host', 'port' or 'tcp'")?;
        let kind = match word {
            "host" => {
                let ip: IpAddr = parse(self.next("an address")?, "an address")?;
                return Ok(Filter::Net(end, IpNetwork::from(ip)));
            }
            "net" => {
                let net = parse(self.next("a subnet")?, "a subnet such as 10.0.0.0/24")?;
                return Ok(Filter::Net(end, net));
            }
            "port" => return Ok(Filter::Port(end, parse(self.next("a port")?, "a port")?)),
            _ if end.is_some() => {
                bail!("filter: 'host', 'net' or 'port' should follow, not '{word}'")
            }
            "ether" if self.take("host") => {
                return Ok(Filter::Ether(parse(self.next("a MAC")?, "a MAC")?));
            }
            "arp" => Kind::Arp,
            "ip" => Kind::Ip,
            "ip6" => Kind::Ip6,
            "tcp" => Kind::Tcp,
            "udp" => Kind::Udp,
            "icmp" => Kind::Icmp,
            "icmp6" => Kind::Icmp6,
            _ => bail!(
                "filter: '{word}' is not known: use host, net, port (each also after src or dst), tcp, udp, icmp, icmp6, \
                 arp, ip, ip6, ether host, and, or, not, ( )"
            ),
        };
        Ok(Filter::Kind(kind))
    }
}

fn one_or(mut several: Vec<Filter>, join: fn(Vec<Filter>) -> Filter) -> Filter {
    match several.len() {
        1 => several.remove(0),
        _ => join(several),
    }
}

fn parse<T: std::str::FromStr>(word: &str, what: &str) -> Result<T> {
    word.parse()
        .map_err(|_| anyhow::anyhow!("filter: '{word}' is not {what}"))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn frame(tcp: bool) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2([2, 0x42, 10, 0, 0, 2], [2, 0x42, 10, 0, 0, 3]).ipv4(
            [10, 0, 0, 2],
            [10, 0, 0, 3],
            64,
        );
        let mut frame = Vec::new();
        match tcp {
            true => ip.tcp(4000, 80, 1, 1).write(&mut frame, b"x"),
            false => ip.udp(4000, 53).write(&mut frame, b"x"),
        }
        .unwrap();
        frame
    }

    #[test]
    fn words_mean_what_tcpdump_s_do() {
        for (text, of_tcp, of_udp) in [
            ("", true, true),
            ("tcp", true, false),
            ("not tcp", false, true),
            ("port 80", true, false),
            ("src port 80", false, false),
            ("dst port 80 or dst port 53", true, true),
            ("host 10.0.0.2", true, true),
            ("dst host 10.0.0.2", false, false),
            ("net 10.0.0.0/24 and not port 53", true, false),
            ("net 10.1.0.0/24", false, false),
            ("(tcp or udp) port 53", false, true),
            ("tcp or udp and port 53", true, true),
            ("ip and not (tcp or icmp)", false, true),
            ("arp or ip6 or icmp6", false, false),
            ("ether host 02:42:0a:00:00:03", true, true),
            ("ether host 02:42:0a:00:00:04", false, false),
        ] {
            let filter = Filter::parse(text).unwrap();
            let found = (filter.wants(&frame(true)), filter.wants(&frame(false)));
            assert_eq!(found, (of_tcp, of_udp), "{text}: {filter:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("prot 80", "'prot' is not known"),
            ("port", "ends where a port"),
            ("port 70000", "'70000' is not a port"),
            ("host example", "'example' is not an address"),
            ("src tcp", "not 'tcp'"),
            ("(tcp", "')' is missing"),
            ("tcp )", "')' is not expected"),
            ("not", "ends where"),
            ("tcp or", "ends where"),
        ] {
            let error = Filter::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(Filter::parse(&"(".repeat(100_000)).is_err());
        assert!(Filter::parse(&"not ".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "[a-z0-9.:/() ]{0,60}", frame in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(filter) = Filter::parse(&text) {
                filter.wants(&frame);
            }
            for filter in ["port 53", "host 10.0.0.1 or arp", "not tcp"] {
                Filter::parse(filter).unwrap().wants(&frame);
            }
        }
    }
}
