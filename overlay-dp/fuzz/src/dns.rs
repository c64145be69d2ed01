//! Questions of containers, and what resolvers answer to those that are not ours.

use hickory_proto::op::Message;
use overlay_core::model::{Endpoint, HostId, MacAddr, Network, Vni};
use overlay_dns::{Names, Outcome, answer, fuzzing};

const VNI: Vni = match Vni::new(4096) {
    Some(vni) => vni,
    None => panic!("24 bits"),
};

fn names() -> Names {
    let mut names = Names::new();
    names.network_set(Network {
        name: "net".to_owned(),
        vni: VNI,
        subnet: "10.0.0.0/24".parse().expect("a subnet"),
        gateway: [10, 0, 0, 1].into(),
        ipv6: None,
        internal: false,
        encrypted: false,
        multicast: None,
    });
    for last in 2..200 {
        names.endpoint_up(
            HostId(1),
            &Endpoint {
                name: format!("web.{last}"),
                vni: VNI,
                mac: MacAddr([2, 0x42, 10, 0, 0, last]),
                ips: vec![[10, 0, 0, last].into()],
                aliases: vec!["db".to_owned()],
                service: Some("web".to_owned()),
                router: false,
                unready: false,
            },
        );
    }
    names
}

/// A question behind its length in two bytes, and a resolver's answer.
pub fn run(input: &[u8]) {
    thread_local! {
        static NAMES: Names = names();
    }
    let Some((len, rest)) = input.split_first_chunk() else {
        return;
    };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    let (message, reply) = rest.split_at(len);
    let outcome = NAMES.with(|names| answer(names, VNI, message, 7));
    match outcome {
        Outcome::Answer { bytes, .. } | Outcome::Unfit(bytes) => well_formed(&bytes),
        Outcome::Forward(question) => {
            well_formed(&question.failure());
            fuzzing::reply(&question, reply);
        }
        Outcome::Ignore => {}
    }
}

fn well_formed(message: &[u8]) {
    assert!(message.len() <= 4096, "{} bytes", message.len());
    Message::from_vec(message).expect("what we answer is DNS");
}

/// A query for that name: one label or more.
fn query(name: &str, kind: u8) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let len = u8::try_from(label.len()).expect("a short label");
        [&[len], label.as_bytes()].concat()
    });
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(labels);
    message.extend([0, 0, kind, 0, 1]);
    message
}

pub fn seeds() -> Vec<Vec<u8>> {
    let questions = [
        query("web", 1),
        query("web.2.net", 28),
        query("tasks.web.net", 1),
        query("2.0.0.10.in-addr.arpa", 12),
        query("_web._tcp", 33),
        query("gateway.net", 1),
        query("nobody.net", 1),
        query("www.example.com", 1),
        // With EDNS.
        [
            &query("www.example.com", 28)[..],
            &[0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 0],
        ]
        .concat(),
    ];
    let seed = |question: &Vec<u8>| {
        let len = u16::try_from(question.len()).expect("a short question");
        // The answer to it, with one address.
        let mut reply = question.clone();
        (reply[2], reply[3], reply[7]) = (0x81, 0x80, 1);
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        [&len.to_be_bytes(), &question[..], &reply].concat()
    };
    questions.iter().map(seed).collect()
}
