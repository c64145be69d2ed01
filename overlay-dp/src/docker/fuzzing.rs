//! Docker's requests, as the fuzzer reaches what reads them.

use super::server::parse;
use super::wire::{OfEndpoint, OfNetwork, OfPool, RequestPool};
use super::{network, publish};

/// A request's body, as each request that there is, up to where the agent would be asked.
pub fn request(body: &[u8]) {
    let _ = parse::<RequestPool>(body);
    let _ = parse::<OfPool>(body);
    if let Ok(ask) = parse::<OfNetwork>(body) {
        network::understand(&ask);
    }
    if let Ok(ask) = parse::<OfEndpoint>(body) {
        publish::understand(&ask);
    }
}
