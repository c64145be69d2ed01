//! This crate's insides, as the fuzzer reaches them: bytes that others have written.

use overlay_core::facts::{Secrets, StateMachine};
use overlay_core::model::{Host, HostId};

use crate::types::Store;
use crate::wire::{self, Envelope, Receiver, Request};
use crate::{backup, machine};

const PEER: HostId = HostId(2);

/// Takes what another manager may send: a request, a response, or a whole snapshot.
pub fn message(bytes: &[u8]) {
    let me = Receiver {
        store: Store(7),
        epoch: 1,
        term: 3,
    };
    let _ = wire::decode_request(PEER, bytes, &me);
    let _ = wire::decode_response(bytes);
    let _ = machine::decode(bytes);
}

/// Good ones, as far as they are short.
pub fn messages() -> Vec<Vec<u8>> {
    let envelope = Envelope {
        from: PEER,
        store: Store(7),
        epoch: 1,
        leads: false,
    };
    let requests = [Request::Hello, Request::ReadIndex].into_iter();
    let requests = requests.map(|request| wire::encode_request(&envelope, &request, &[]));
    let mut messages: Vec<_> = requests.collect();
    messages.push(backup());
    messages
}

/// A backup of a cluster with one host.
pub fn backup() -> Vec<u8> {
    let host = Host {
        id: HostId(1),
        name: "host1".to_owned(),
        vtep: [192, 0, 2, 1].into(),
        data_port: 4789,
        esp_port: 4500,
        control_port: 2377,
        gossip_port: 7946,
        manager: true,
    };
    let machine = StateMachine::new(host, Secrets::default(), [0xfd, 0, 0, 0, 0, 1], 1);
    backup::write(&machine, 1)
}
