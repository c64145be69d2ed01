//! This crate's insides, as the fuzzer reaches them: bytes that others have written.

use serde::de::DeserializeOwned;

use crate::agent::fuzzing as agent;
use crate::api::{self, admin, attachments, docker as api_docker, policies, services, trace};
use crate::docker::fuzzing as engine;
use crate::plugins::fuzzing as plugins;

/// A request's body, as each request that there is.
pub fn api(body: &[u8]) {
    fn take<T: DeserializeOwned>(body: &[u8]) {
        let _ = serde_json::from_slice::<T>(body);
    }
    take::<api::NetworkCreate>(body);
    take::<api::ContainerAdd>(body);
    take::<api::ContainerRemove>(body);
    take::<api::FdbAdd>(body);
    take::<api::FdbRemove>(body);
    take::<api::Detach>(body);
    take::<admin::HostRemove>(body);
    take::<admin::Role>(body);
    take::<admin::TokenAsk>(body);
    take::<admin::VerifyAsk>(body);
    take::<attachments::AttachmentRef>(body);
    take::<attachments::AttachmentCheck>(body);
    take::<api_docker::DockerCreate>(body);
    take::<services::ServiceCreate>(body);
    take::<policies::PolicyAdd>(body);
    take::<policies::PolicyDefault>(body);
    take::<trace::TraceAsk>(body);
}

/// A request of Docker's, as each that there is.
pub fn docker(body: &[u8]) {
    engine::request(body);
}

/// A configuration of CNI's, and what netavark says.
pub fn cni(text: &[u8]) {
    plugins::configuration(text);
}

/// The agent's journal, as a crash or another hand may have left it.
pub fn journal(bytes: &[u8]) {
    agent::journal(bytes);
}

/// Good ones.
pub fn journals() -> Vec<Vec<u8>> {
    agent::journals()
}
