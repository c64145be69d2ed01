//! Which services there are.

use crate::facts::{Change, Facts, MAX_PUBLISHED, MAX_SERVICES, Refusal, ServiceSpec};
use crate::model::{Service, check_name};

/// Makes the service that a spec asks for.
pub(super) fn create(
    facts: &Facts,
    spec: &ServiceSpec,
    changes: &mut Vec<Change>,
) -> Result<Service, Refusal> {
    check_name(&spec.name)?;
    if facts.service(&spec.name).is_some() {
        return Err(Refusal::ServiceExists(spec.name.clone()));
    }
    if facts.services().count() >= MAX_SERVICES || spec.publish.len() > MAX_PUBLISHED {
        return Err(Refusal::TooManyServices);
    }
    let network = facts
        .network_named(&spec.network)
        .ok_or_else(|| Refusal::NoNetwork(spec.network.clone()))?;
    if network.internal && !spec.publish.is_empty() {
        return Err(Refusal::Internal(spec.network.clone()));
    }
    for (index, wanted) in spec.publish.iter().enumerate() {
        let port = (wanted.host_port, wanted.protocol);
        if wanted.host_port == 0 || wanted.port == 0 {
            return Err(Refusal::PortZero);
        }
        let taken =
            |publish: &crate::model::ServicePort| (publish.host_port, publish.protocol) == port;
        let others = facts
            .services()
            .filter(|other| other.publish.iter().any(taken));
        let again = spec.publish[..index]
            .iter()
            .any(taken)
            .then(|| spec.name.clone());
        if let Some(service) = others.map(|other| other.name.clone()).next().or(again) {
            return Err(Refusal::Published {
                port: wanted.host_port,
                protocol: wanted.protocol,
                service,
            });
        }
    }
    let service = Service {
        name: spec.name.clone(),
        vni: network.vni,
        publish: spec.publish.clone(),
    };
    changes.push(Change::ServiceSet(service.clone()));
    Ok(service)
}

pub(super) fn remove(facts: &Facts, name: &str, changes: &mut Vec<Change>) -> Result<(), Refusal> {
    if facts.service(name).is_none() {
        return Err(Refusal::NoService(name.to_owned()));
    }
    changes.push(Change::ServiceGone(name.to_owned()));
    Ok(())
}
