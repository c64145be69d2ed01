//! This crate's insides, as the fuzzer reaches them: bytes that others have written.

use std::path::Path;

use overlay_core::facts::{NetworkSpec, Version, Want};
use overlay_core::model::{HostId, Vni};

use crate::pki::{self, Authority};
use crate::state;
use crate::transport::decode;
use crate::wire::{Answer, Ask, HostInfo, Request};

/// Takes a message of the control port: a request, an answer, or neither. A join's certificate
/// request is looked at as the manager does, whoever sent it.
pub fn message(bytes: &[u8]) {
    let _ = decode::<Answer>(bytes);
    let Ok(ask) = decode::<Ask>(bytes) else {
        return;
    };
    if let Request::Join { csr, .. } | Request::Renew { csr } = ask.request {
        thread_local! {
            static CA: Option<Authority> = Authority::new().ok();
        }
        CA.with(|ca| {
            if let Some(ca) = ca {
                let _ = ca.certify(&csr, HostId(7), false);
            }
        });
    }
}

/// Good ones.
pub fn messages() -> Vec<Vec<u8>> {
    let info = HostInfo {
        name: "host2".to_owned(),
        vtep: [192, 0, 2, 2].into(),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
    };
    let csr = pki::new_request().map(|(_, csr)| csr).unwrap_or_default();
    let requests = [
        Request::Join {
            secret: [7; 16],
            csr: csr.clone(),
            info: info.clone(),
        },
        Request::Renew { csr },
        Request::Update(info),
        Request::NetworkCreate {
            spec: NetworkSpec {
                name: "net".to_owned(),
                ..NetworkSpec::default()
            },
            avoid: Vec::new(),
        },
        Request::Grant {
            vni: Vni::MAX,
            want: Want::Addresses(8),
        },
        Request::HostRemove { id: HostId(3) },
        Request::Raft(vec![1, 2, 3]),
        Request::Leave,
    ];
    let have = Version::default();
    let asks = requests.map(|request| postcard::to_stdvec(&Ask { have, request }));
    let answers = [
        Answer::Voters(vec![HostId(1)]),
        Answer::NotLeader(None),
        Answer::Denied("no".to_owned()),
    ];
    let answers = answers.map(|answer| postcard::to_stdvec(&answer));
    asks.into_iter().chain(answers).flatten().collect()
}

/// Reads what a host's state file may have become.
pub fn state_file(bytes: &[u8]) {
    let _ = state::parse(Path::new("state.json"), bytes);
}

/// What is near to one.
pub fn state_file_seed() -> Vec<u8> {
    let key = "00".repeat(40);
    let text = format!(
        r#"{{"format":3,"id":2,"incarnation":7,"identity":{{"key":"{key}","cert":"{key}","ca":"{key}"}},"facts":"{key}"}}"#
    );
    text.into_bytes()
}
