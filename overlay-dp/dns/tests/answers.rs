//! What containers are answered.
//!
//! ```text
//! uber-net 10.0.0.0/24, fd00::/64        blue 10.1.0.0/24
//!   test.1  .2  ::2  alias db              other .2
//!   test.2.abc  .3                         blue-web .3
//!   web.1, web.2, web.3  .11-.13, service web
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use overlay_core::model::{
    Endpoint, HostId, MacAddr, Network, Protocol, Service, ServicePort, Subnet, Vni,
};
use overlay_dns::{Names, Outcome, answer};
use proptest::prelude::*;

const A: HostId = HostId(1);
const B: HostId = HostId(2);

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

fn network(number: u32, name: &str, subnet: &str) -> Network {
    let subnet: ipnetwork::IpNetwork = subnet.parse().unwrap();
    Network {
        name: name.into(),
        vni: vni(number),
        subnet,
        gateway: subnet.iter().nth(1).unwrap(),
        ipv6: None,
        internal: false,
        encrypted: false,
        multicast: None,
    }
}

fn endpoint(number: u32, name: &str, ips: &[&str]) -> Endpoint {
    Endpoint {
        name: name.into(),
        vni: vni(number),
        mac: MacAddr([2, 0x42, 0, 0, 0, 9]),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        aliases: Vec::new(),
        service: None,
        router: false,
        unready: false,
    }
}

fn task(name: &str, ip: &str) -> Endpoint {
    Endpoint {
        service: Some("web".into()),
        ..endpoint(1, name, &[ip])
    }
}

fn names() -> Names {
    let mut names = Names::new();
    let mut uber = network(1, "uber-net", "10.0.0.0/24");
    uber.ipv6 = Some(Subnet {
        subnet: "fd00::/64".parse().unwrap(),
        gateway: "fd00::1".parse().unwrap(),
    });
    names.network_set(uber);
    names.network_set(network(2, "blue", "10.1.0.0/24"));
    let mut first = endpoint(1, "test.1", &["10.0.0.2", "fd00::2", "fe80::42:ff:fe00:9"]);
    first.aliases = vec!["db".into(), "My-DB".into()];
    names.endpoint_up(A, &first);
    names.endpoint_up(B, &endpoint(1, "test.2.abc", &["10.0.0.3"]));
    for (host, slot) in [(A, 1), (B, 2), (B, 3)] {
        let ip = format!("10.0.0.1{slot}");
        names.endpoint_up(host, &task(&format!("web.{slot}"), &ip));
    }
    names.endpoint_up(A, &endpoint(2, "other", &["10.1.0.2"]));
    names.endpoint_up(A, &endpoint(2, "blue-web", &["10.1.0.3"]));
    names
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// The answer to a question that is ours.
#[track_caller]
fn ask_of(names: &Names, name: &str, kind: RecordType) -> Message {
    match answer(names, vni(1), &question(name, kind, None), 7) {
        Outcome::Answer { bytes, .. } => {
            assert!(bytes.len() <= 512);
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.id, 4242);
            assert_eq!(message.message_type, MessageType::Response);
            assert!(message.authoritative && message.recursion_desired);
            assert!(message.recursion_available && !message.truncation);
            assert!(message.all_sections().all(|record| record.ttl == 0));
            message
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[track_caller]
fn data(names: &Names, name: &str, kind: RecordType) -> BTreeSet<String> {
    let message = ask_of(names, name, kind);
    assert_eq!(message.response_code, ResponseCode::NoError, "{name}");
    let asked = Name::from_ascii(name).unwrap();
    assert!(
        message
            .answers
            .iter()
            .all(|r| r.name.eq_ignore_root(&asked))
    );
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

fn set<const N: usize>(items: [&str; N]) -> BTreeSet<String> {
    items.map(str::to_owned).into()
}

#[track_caller]
fn is_forwarded(names: &Names, name: &str, kind: RecordType) {
    let outcome = answer(names, vni(1), &question(name, kind, None), 7);
    assert!(
        matches!(outcome, Outcome::Forward(_)),
        "{name}: {outcome:?}"
    );
}

/// There is no such name, or none of that type, and an SOA says of what that is true.
#[track_caller]
fn is_missing(names: &Names, name: &str, kind: RecordType, code: ResponseCode, zone: &str) {
    let message = ask_of(names, name, kind);
    assert_eq!(message.response_code, code, "{name}");
    assert!(message.answers.is_empty());
    let [soa] = &message.authorities[..] else {
        panic!("{message}")
    };
    assert!(matches!(&soa.data, RData::SOA(soa) if soa.minimum == 0));
    assert!(soa.name.eq_ignore_root(&Name::from_ascii(zone).unwrap()));
}

#[test]
fn names_aliases_services() {
    let names = names();
    for name in [
        "test.1",
        "TEST.1",
        "db",
        "my-db",
        "test.1.uber-net",
        "DB.Uber-Net",
    ] {
        assert_eq!(
            data(&names, name, RecordType::A),
            set(["10.0.0.2"]),
            "{name}"
        );
        assert_eq!(data(&names, name, RecordType::AAAA), set(["fd00::2"]));
    }
    assert_eq!(
        data(&names, "test.2.abc.uber-net.", RecordType::A),
        set(["10.0.0.3"])
    );
    let all = set(["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    for name in ["web", "web.uber-net", "tasks.web", "Tasks.web.uber-net"] {
        assert_eq!(data(&names, name, RecordType::A), all, "{name}");
    }
    assert_eq!(data(&names, "web.2", RecordType::A), set(["10.0.0.12"]));
    assert_eq!(
        data(&names, "gateway.uber-net", RecordType::A),
        set(["10.0.0.1"])
    );
    assert_eq!(
        data(&names, "gateway.uber-net", RecordType::AAAA),
        set(["fd00::1"])
    );
}

#[test]
fn tasks_that_are_not_ready_are_left_out_unless_none_is() {
    let mut names = names();
    let mut unready = |slots: &[u8]| {
        for (host, slot) in [(A, 1), (B, 2), (B, 3)] {
            let ip = format!("10.0.0.1{slot}");
            let task = Endpoint {
                unready: slots.contains(&slot),
                ..task(&format!("web.{slot}"), &ip)
            };
            names.endpoint_up(host, &task);
        }
        ["web", "tasks.web", "web.1"].map(|name| data(&names, name, RecordType::A))
    };
    let one = set(["10.0.0.11"]);
    let two = set(["10.0.0.12", "10.0.0.13"]);
    let all = set(["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    assert_eq!(unready(&[1]), [two.clone(), two, one.clone()]);
    assert_eq!(unready(&[1, 2, 3]), [all.clone(), all, one]);
}

#[test]
fn a_service_with_addresses_of_its_own() {
    let mut names = names();
    let vips = ["10.0.0.200".parse().unwrap(), "fd00::c8".parse().unwrap()];
    names.service_set(vni(1), "web", &vips);
    // Also one of which no task is known.
    names.service_set(vni(1), "db.main", &vips[..1]);
    for name in ["web", "WEB.uber-net"] {
        assert_eq!(data(&names, name, RecordType::A), set(["10.0.0.200"]));
        assert_eq!(data(&names, name, RecordType::AAAA), set(["fd00::c8"]));
    }
    assert_eq!(data(&names, "db.main", RecordType::A), set(["10.0.0.200"]));
    let tasks = set(["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    assert_eq!(data(&names, "tasks.web", RecordType::A), tasks);
    assert_eq!(data(&names, "web.2", RecordType::A), set(["10.0.0.12"]));
    assert_eq!(data(&names, "_http._tcp.web", RecordType::SRV).len(), 3);
    use ResponseCode::{NXDomain, NoError};
    is_missing(&names, "main.uber-net", RecordType::A, NoError, "uber-net.");
    is_missing(
        &names,
        "db.main.uber-net",
        RecordType::AAAA,
        NoError,
        "uber-net.",
    );
    is_missing(
        &names,
        "tasks.db.main.uber-net",
        RecordType::A,
        NXDomain,
        "uber-net.",
    );
    let ptr = |names: &Names| data(names, "200.0.0.10.in-addr.arpa", RecordType::PTR);
    names.service_set(vni(1), "db.main", &[]);
    assert_eq!(ptr(&names), set(["web.uber-net."]));

    names.service_set(vni(1), "web", &[]);
    assert_eq!(data(&names, "web", RecordType::A), tasks);
    is_missing(
        &names,
        "db.main.uber-net",
        RecordType::A,
        NXDomain,
        "uber-net.",
    );
    let gone = "200.0.0.10.in-addr.arpa";
    is_missing(&names, gone, RecordType::PTR, NXDomain, gone);
}

#[test]
fn what_is_missing_in_the_network_is_said_to_be() {
    let names = names();
    use ResponseCode::{NXDomain, NoError};
    for name in ["nobody.uber-net", "tasks.test.1.uber-net"] {
        is_missing(&names, name, RecordType::A, NXDomain, "uber-net.");
    }
    // There is an IPv4 address, or there are names below it.
    for name in [
        "web.uber-net",
        "1.uber-net",
        "abc.uber-net",
        "tasks.uber-net",
        "uber-net",
    ] {
        is_missing(&names, name, RecordType::AAAA, NoError, "uber-net.");
    }
    is_missing(&names, "web", RecordType::AAAA, NoError, "web.");
    is_missing(&names, "test.1", RecordType::MX, NoError, "test.1.");
}

#[test]
fn other_names_are_not_ours() {
    let names = names();
    for name in [
        "nobody",
        "example.com",
        "uber-net.example.com",
        "xuber-net",
        ".",
    ] {
        is_forwarded(&names, name, RecordType::A);
    }
    // Other networks' containers are nobody's business.
    for name in ["other", "other.blue", "blue-web.blue"] {
        is_forwarded(&names, name, RecordType::A);
    }
    is_forwarded(&names, "4.4.8.8.in-addr.arpa", RecordType::PTR);
    is_forwarded(&names, "10.in-addr.arpa", RecordType::SOA);
    let unknown = answer(&names, vni(9), &question("test.1", RecordType::A, None), 7);
    assert!(matches!(unknown, Outcome::Forward(_)));
}

#[test]
fn addresses_have_names_as_docker_shows_them() {
    let names = names();
    let ptr = |name: &str| data(&names, name, RecordType::PTR);
    assert_eq!(ptr("2.0.0.10.in-addr.arpa"), set(["test.1.uber-net."]));
    assert_eq!(ptr("3.0.0.10.IN-ADDR.arpa"), set(["test.2.abc.uber-net."]));
    assert_eq!(ptr("1.0.0.10.in-addr.arpa"), set(["gateway.uber-net."]));
    let nibbles = |ip: &str| {
        let ip: std::net::Ipv6Addr = ip.parse().unwrap();
        let digits: String = ip.octets().iter().map(|b| format!("{b:02x}")).collect();
        let mut name: String = digits.chars().rev().flat_map(|c| [c, '.']).collect();
        name.push_str("ip6.arpa");
        name
    };
    for ip in ["fd00::2", "fe80::42:ff:fe00:9"] {
        assert_eq!(ptr(&nibbles(ip)), set(["test.1.uber-net."]));
    }
    assert_eq!(ptr(&nibbles("fd00::1")), set(["gateway.uber-net."]));
    use ResponseCode::{NXDomain, NoError};
    // Nobody's, another network's, another link's: not for the resolvers of the host.
    for name in [
        "99.0.0.10.in-addr.arpa",
        "2.0.1.10.in-addr.arpa",
        &nibbles("fe80::1"),
    ] {
        is_missing(&names, name, RecordType::PTR, NXDomain, name);
    }
    is_missing(
        &names,
        "0.0.10.in-addr.arpa",
        RecordType::PTR,
        NoError,
        "0.0.10.in-addr.arpa.",
    );
    is_missing(
        &names,
        "2.0.0.10.in-addr.arpa",
        RecordType::A,
        NoError,
        "2.0.0.10.in-addr.arpa.",
    );
}

#[test]
fn services_have_srv_records_of_their_tasks() {
    let names = names();
    for name in [
        "_web._tcp.uber-net",
        "_web._udp",
        "_http._tcp.web",
        "_http._tcp.WEB.uber-net",
    ] {
        let message = ask_of(&names, name, RecordType::SRV);
        let tasks: BTreeSet<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
        let wanted = [1, 2, 3].map(|n| format!("0 1 0 web.{n}.uber-net."));
        assert_eq!(tasks, wanted.into(), "{name}");
        assert_eq!(message.additionals.len(), 3);
    }
    use ResponseCode::{NXDomain, NoError};
    is_missing(
        &names,
        "_web._tcp.uber-net",
        RecordType::A,
        NoError,
        "uber-net.",
    );
    is_missing(&names, "_tcp.uber-net", RecordType::A, NoError, "uber-net.");
    is_missing(
        &names,
        "_no._tcp.uber-net",
        RecordType::SRV,
        NXDomain,
        "uber-net.",
    );
    is_forwarded(&names, "_ldap._tcp.example.com", RecordType::SRV);
    is_forwarded(&names, "_ldap._tcp", RecordType::SRV);
}

fn service(name: &str, number: u32, publish: &[(u16, u16, Protocol)]) -> Service {
    let publish = publish
        .iter()
        .map(|(host_port, port, protocol)| ServicePort {
            host_port: *host_port,
            port: *port,
            protocol: *protocol,
        });
    Service {
        name: name.into(),
        vni: vni(number),
        publish: publish.collect(),
        vip: None,
        check: None,
    }
}

/// What a service publishes are ports that its tasks listen on.
#[test]
fn srv_records_have_the_ports_that_the_service_publishes() {
    use Protocol::{Tcp, Udp};
    let mut names = names();
    let ports = [
        (8080, 80, Tcp),
        (8081, 80, Tcp),
        (8443, 443, Tcp),
        (53, 5353, Udp),
    ];
    // Another network's service of that name is another one.
    let all = [service("Web", 1, &ports), service("web", 2, &[(1, 1, Tcp)])];
    names.services_set(&all);
    let of = |names: &Names, name: &str| data(names, name, RecordType::SRV);
    let tasks = |ports: &[u16]| -> BTreeSet<String> {
        let each = |port: &u16| [1, 2, 3].map(|n| format!("0 1 {port} web.{n}.uber-net."));
        ports.iter().flat_map(each).collect()
    };
    for vips in [&[][..], &["10.0.0.200".parse().unwrap()]] {
        names.service_set(vni(1), "web", vips);
        for (name, ports) in [
            ("_web._tcp", &[80, 443][..]),
            ("_web._udp.uber-net", &[5353]),
            ("_http._tcp.WEB", &[80, 443]),
            ("_dns._udp.web.uber-net", &[5353]),
            ("_80._tcp.web", &[80]),
            ("_5353._udp.web", &[5353]),
            // Nothing is known of these.
            ("_80._udp.web", &[0]),
            ("_8080._tcp.web", &[0]),
            // By the name alone.
            ("web", &[80, 443, 5353]),
            ("tasks.web.uber-net", &[80, 443, 5353]),
        ] {
            assert_eq!(of(&names, name), tasks(ports), "{name} {vips:?}");
        }
    }
    // Each address is told once.
    let message = ask_of(&names, "web", RecordType::SRV);
    assert_eq!((message.answers.len(), message.additionals.len()), (9, 3));
    // One task, and one that is none.
    assert_eq!(
        of(&names, "_x._udp.web.2"),
        set(["0 1 5353 web.2.uber-net."])
    );
    assert_eq!(of(&names, "_db._tcp"), set(["0 1 0 test.1.uber-net."]));
    assert_eq!(of(&names, "test.1"), set([]));

    names.services_set(&[]);
    assert_eq!(of(&names, "_web._tcp"), tasks(&[0]));
    assert_eq!(of(&names, "web"), set([]));
}

#[test]
fn any_is_answered_with_little_and_transfers_not_at_all() {
    let names = names();
    let any = data(&names, "web", RecordType::ANY);
    assert_eq!(any.len(), 1);
    assert!(any.iter().all(|data| data.contains("RFC8482")), "{any:?}");
    let soa = ask_of(&names, "uber-net", RecordType::SOA);
    assert_eq!(soa.answers.len(), 1);
    let axfr = question("uber-net", RecordType::AXFR, None);
    let mut chaos = question("version.bind", RecordType::TXT, None);
    let len = chaos.len();
    chaos[len - 1] = u16::from(DNSClass::CH) as u8;
    for message in [axfr, chaos] {
        let Outcome::Unfit(bytes) = answer(&names, vni(1), &message, 7) else {
            panic!()
        };
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.response_code, ResponseCode::Refused);
    }
}

#[test]
fn what_is_no_question_is_said_to_be_or_ignored() {
    let names = names();
    let good = question("web", RecordType::A, Some(1232));
    let code = |change: fn(&mut Vec<u8>)| {
        let mut message = good.clone();
        change(&mut message);
        match answer(&names, vni(1), &message, 7) {
            Outcome::Unfit(bytes) => {
                assert_eq!(bytes[..2], message[..2]);
                Some(Message::from_vec(&bytes).unwrap().response_code)
            }
            Outcome::Ignore => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code(|m| m[2] |= 0x80), None);
    assert_eq!(code(|m| m.truncate(11)), None);
    assert_eq!(code(|m| m[2] |= 0x28), Some(ResponseCode::NotImp));
    assert_eq!(code(|m| m[5] = 2), Some(ResponseCode::FormErr));
    assert_eq!(code(|m| m[5] = 0), Some(ResponseCode::FormErr));
    assert_eq!(code(|m| m[7] = 1), Some(ResponseCode::FormErr));
    assert_eq!(code(|m| m.truncate(14)), Some(ResponseCode::FormErr));
    // A name that points to itself, and one that points on.
    assert_eq!(
        code(|m| m[12..14].copy_from_slice(&[0xc0, 12])),
        Some(ResponseCode::FormErr)
    );
    assert_eq!(
        code(|m| m[12..14].copy_from_slice(&[0xc0, 200])),
        Some(ResponseCode::FormErr)
    );
    // EDNS of another version.
    let version = code(|m| m[12 + 5 + 4 + 6] = 1).map(u16::from);
    assert_eq!(version, Some(u16::from(ResponseCode::BADVERS)));
}

#[test]
fn many_addresses_are_some_of_them_in_any_order() {
    let mut names = names();
    for n in 1..=2000_u32 {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_1000 + n).to_string();
        let mut many = endpoint(1, &format!("many.{n}"), &[&ip]);
        many.service = Some("many".into());
        names.endpoint_up(A, &many);
    }
    let (mut first, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..500 {
        for (edns, limit, least) in [
            (None, 512, 28),
            (Some(1232), 1232, 70),
            (Some(65535), 1232, 70),
        ] {
            let asked = question("many", RecordType::A, edns);
            let Outcome::Answer { bytes, .. } = answer(&names, vni(1), &asked, seed) else {
                panic!()
            };
            assert!(bytes.len() <= limit);
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.edns.is_some(), edns.is_some());
            assert!(!message.truncation && message.answers.len() >= least);
            let addresses = message.answers.iter().map(|r| r.data.to_string());
            let addresses: Vec<String> = addresses.collect();
            first.insert(addresses[0].clone());
            let some: BTreeSet<String> = addresses.into_iter().collect();
            assert_eq!(some.len(), message.answers.len(), "each once");
            seen.extend(some);
        }
    }
    assert!(
        first.len() > 300 && seen.len() == 2000,
        "{} {}",
        first.len(),
        seen.len()
    );
    // SRV records are longer, and their addresses the first to be left out.
    let asked = question("_many._tcp", RecordType::SRV, None);
    let Outcome::Answer { bytes, .. } = answer(&names, vni(1), &asked, 7) else {
        panic!()
    };
    let message = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 512 && message.answers.len() >= 10);
}

/// A service's tasks take turns, whatever the seeds are.
#[test]
fn each_task_comes_first_about_as_often() {
    let names = names();
    let mut first = std::collections::BTreeMap::new();
    for seed in 0..3000 {
        let asked = question("web", RecordType::A, None);
        let Outcome::Answer { bytes, .. } = answer(&names, vni(1), &asked, seed) else {
            panic!()
        };
        let message = Message::from_vec(&bytes).unwrap();
        *first
            .entry(message.answers[0].data.to_string())
            .or_insert(0) += 1;
    }
    assert!(
        first.len() == 3 && first.values().all(|n| (800..1200).contains(n)),
        "{first:?}"
    );
}

#[test]
fn changes_count_at_once() {
    let mut names = names();
    let held = |names: &Names| data(names, "test.1", RecordType::A);
    let old = endpoint(1, "test.1", &["10.0.0.2"]);
    let new = endpoint(1, "test.1", &["10.0.0.50"]);
    names.endpoint_up(A, &new);
    assert_eq!(held(&names), set(["10.0.0.50"]));
    is_forwarded(&names, "db", RecordType::A);
    // Late news of the old one.
    names.endpoint_down(A, &old);
    assert_eq!(held(&names), set(["10.0.0.50"]));
    // Another host claims the name, and leaves.
    names.endpoint_up(B, &endpoint(1, "test.1", &["10.0.0.51"]));
    assert_eq!(held(&names), set(["10.0.0.50", "10.0.0.51"]));
    names.host_gone(B);
    assert_eq!(held(&names), set(["10.0.0.50"]));
    assert_eq!(data(&names, "web", RecordType::A), set(["10.0.0.11"]));
    names.endpoint_down(A, &new);
    is_forwarded(&names, "test.1", RecordType::A);
    let code = ResponseCode::NXDomain;
    is_missing(&names, "test.1.uber-net", RecordType::A, code, "uber-net.");

    // A network's endpoints may be known before it is.
    names.network_gone(vni(1));
    is_forwarded(&names, "web", RecordType::A);
    names.network_set(network(1, "green", "10.0.0.0/24"));
    assert_eq!(data(&names, "web.green", RecordType::A), set(["10.0.0.11"]));
    names.host_gone(A);
    names.network_gone(vni(1));
    names.network_gone(vni(2));
    assert!(names.is_empty() && !names.is_gateway("10.0.0.1".parse().unwrap()));
}

#[test]
fn an_endpoint_may_be_called_what_is_ours() {
    let mut names = names();
    names.endpoint_up(A, &endpoint(1, "gateway", &["10.0.0.60"]));
    names.endpoint_up(A, &endpoint(1, "tasks.web", &["10.0.0.61"]));
    names.endpoint_up(A, &endpoint(1, "uber-net", &["10.0.0.62"]));
    names.endpoint_up(A, &endpoint(1, "odd..dots.", &["10.0.0.63"]));
    let a = |name: &str| data(&names, name, RecordType::A);
    assert_eq!(a("gateway.uber-net"), set(["10.0.0.60"]));
    assert_eq!(a("tasks.web"), set(["10.0.0.61"]));
    assert_eq!(a("uber-net"), set(["10.0.0.62"]));
    let code = ResponseCode::NXDomain;
    let gateway = "1.0.0.10.in-addr.arpa";
    is_missing(&names, gateway, RecordType::PTR, code, gateway);
    let odd = "63.0.0.10.in-addr.arpa";
    is_missing(&names, odd, RecordType::PTR, ResponseCode::NoError, odd);
    assert!(names.is_gateway("10.0.0.1".parse::<IpAddr>().unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes(message in prop::collection::vec(any::<u8>(), 0..600), seed in any::<u64>()) {
        check(&names(), &message, seed);
    }

    #[test]
    fn any_bytes_behind_a_header(
        counts in prop::collection::vec(0..3_u8, 4),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut message = vec![1, 2, 1, 0];
        message.extend(counts.iter().flat_map(|count| [0, *count]));
        message.extend(rest);
        check(&names(), &message, 1);
    }

    #[test]
    fn mutated(
        name in prop::sample::select(vec!["web", "test.1.uber-net", "2.0.0.10.in-addr.arpa"]),
        kind in any::<u16>(),
        changes in prop::collection::vec((0..70_usize, any::<u8>()), 0..5),
        len in 0..80_usize,
    ) {
        let mut message = question(name, kind.into(), Some(4096));
        for (at, value) in changes {
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
        }
        message.truncate(len);
        check(&names(), &message, 3);
    }

    #[test]
    fn any_name(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..6),
        ours in any::<bool>(),
        kind in prop::sample::select(vec![RecordType::A, RecordType::PTR, RecordType::SRV, RecordType::ANY]),
    ) {
        let suffix = if ours { &["uber-net"][..] } else { &[] };
        let labels = labels.iter().map(Vec::as_slice);
        let labels = labels.chain(suffix.iter().map(|label| label.as_bytes()));
        if let Ok(name) = Name::from_labels(labels) {
            let mut message = Message::new(1, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name, kind));
            check(&names(), &message.to_vec().unwrap(), 5);
        }
    }
}

/// Whatever is asked: what is said is a message, to the one who asked, and not too long.
fn check(names: &Names, message: &[u8], seed: u64) {
    match answer(names, vni(1), message, seed) {
        Outcome::Answer { bytes, .. } | Outcome::Unfit(bytes) => {
            assert_eq!(bytes[..2], message[..2]);
            assert!(bytes.len() <= 1232);
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.message_type, MessageType::Response);
        }
        Outcome::Forward(question) => {
            Message::from_vec(&question.failure()).unwrap();
        }
        Outcome::Ignore => {}
    }
}
