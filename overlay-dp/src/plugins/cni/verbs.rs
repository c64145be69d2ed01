//! DEL, CHECK, GC and STATUS.

use std::net::IpAddr;

use hyper::Method;
use serde_json::Value;

use super::add::must_run;
use super::config::{Config, Container, Valid, valid};
use super::error::{
    CHANGED, CONFIG, DECODE, ENVIRONMENT, Error, LIMITED, NOT_AVAILABLE, REFUSED, Result,
};
use crate::api::attachments::AttachmentCheck;
use crate::api::client::{agent_runs, call};
use crate::api::{Attachment, AttachmentRef, ContainerInfo};
use crate::instance::Instance;
use crate::plugins::{alone, network};

/// Detaches a container. It is no error when there is nothing left of it.
pub async fn del(config: &Config, container: &Container) -> Result<()> {
    let instance = config.instance()?;
    if !agent_runs(&instance).await {
        let Some(netns) = &container.netns else {
            return Ok(());
        };
        let gone = alone::detach(&instance, netns, &container.ifname).await;
        return gone.map_err(|error| Error::new(REFUSED, error.to_string()));
    }
    remove(&instance, &container.reference(config)).await
}

async fn remove(instance: &Instance, which: &AttachmentRef) -> Result<()> {
    let gone =
        call::<_, Vec<ContainerInfo>>(instance, Method::DELETE, "/v1/attachments", Some(which));
    gone.await.map(drop).map_err(|error| Error::refused(&error))
}

/// Compares what there is with what ADD told.
pub async fn check(config: &Config, container: &Container) -> Result<()> {
    let Some(previous) = config.prev_result.as_ref().filter(|r| r.is_object()) else {
        return Err(Error::new(CONFIG, "CHECK without prevResult"));
    };
    if container.netns.is_none() {
        return Err(Error::new(ENVIRONMENT, "CNI_NETNS is not set"));
    }
    let (mac, ips) = told(previous, container)?;
    let instance = config.instance()?;
    must_run(&instance).await?;
    let which = container.reference(config);
    let checked: AttachmentCheck = call(
        &instance,
        Method::POST,
        "/v1/attachments/check",
        Some(&which),
    )
    .await
    .map_err(|error| Error::refused(&error))?;
    let changed = |msg: String| Err(Error::new(CHANGED, msg));
    let Some(found) = checked.containers.first() else {
        return changed(format!("{} is not attached", container.id));
    };
    if let Some(problem) = checked.problems.first() {
        return changed(problem.clone());
    }
    if mac.is_some_and(|mac| !mac.eq_ignore_ascii_case(&found.mac.to_string())) {
        return changed(format!("its MAC is {} and not as it was told", found.mac));
    }
    match ips.iter().find(|ip| !found.ips.contains(ip)) {
        Some(ip) => changed(format!("it has not the address {ip} that was told")),
        None => Ok(()),
    }
}

/// The MAC and the addresses that a result has for the container's interface.
fn told(previous: &Value, container: &Container) -> Result<(Option<String>, Vec<IpAddr>)> {
    let list = |field: &str| previous[field].as_array().cloned().unwrap_or_default();
    let interfaces = list("interfaces");
    let sandbox = |interface: &Value| interface["sandbox"].as_str().is_some_and(|s| !s.is_empty());
    let index = interfaces
        .iter()
        .position(|interface| interface["name"] == *container.ifname && sandbox(interface));
    let Some(index) = index else {
        let msg = format!("prevResult has no interface {}", container.ifname);
        return Err(Error::new(CONFIG, msg));
    };
    let mac = interfaces[index]["mac"].as_str().map(str::to_owned);
    let of_it = list("ips")
        .into_iter()
        .filter(|ip| ip["interface"] == index);
    let parse = |ip: Value| {
        let address = ip["address"]
            .as_str()
            .and_then(|text| text.split('/').next());
        let parsed = address.and_then(|address| address.parse().ok());
        parsed.ok_or_else(|| Error::new(DECODE, format!("prevResult: {ip} has no address")))
    };
    Ok((mac, of_it.map(parse).collect::<Result<_>>()?))
}

/// Detaches what this configuration attached and is not valid any more. Goes on past errors.
pub async fn gc(config: &Config) -> Result<()> {
    let valid = valid(config)?;
    let instance = config.instance()?;
    must_run(&instance).await?;
    let all: Vec<ContainerInfo> = call(&instance, Method::GET, "/v1/attachments", None::<&()>)
        .await
        .map_err(|error| Error::refused(&error))?;
    let mut failed = Vec::new();
    for local in all.into_iter().filter_map(|container| container.local) {
        let Some(Attachment { owner, id }) = local.attachment else {
            continue;
        };
        let ifname = local.ifname;
        let here = Valid { id, ifname };
        if owner != config.owner() || valid.contains(&here) {
            continue;
        }
        let Valid { id, ifname } = here;
        let shown = format!("{id} {ifname}");
        let which = AttachmentRef {
            attachment: Attachment { owner, id },
            ifname: Some(ifname),
        };
        if let Err(error) = remove(&instance, &which).await {
            failed.push(format!("{shown}: {}", error.msg));
        }
    }
    match failed.len() {
        0 => Ok(()),
        count => {
            Err(Error::new(REFUSED, format!("{count} attachments are left"))
                .details(failed.join("; ")))
        }
    }
}

/// Whether ADD can be served.
pub async fn status(config: &Config) -> Result<()> {
    let instance = config.instance()?;
    if !agent_runs(&instance).await {
        let msg = format!("no agent answers on {}", instance.socket().display());
        return Err(Error::new(LIMITED, msg)
            .details("containers have no names, and what is new on other hosts is not known"));
    }
    if config.make.wanted() {
        return Ok(());
    }
    let found = network::find(&instance, config.network()).await;
    found
        .map(drop)
        .map_err(|error| Error::new(NOT_AVAILABLE, format!("{error:#}")))
}
