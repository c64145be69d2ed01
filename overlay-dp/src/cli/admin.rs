//! `host`, `token`, `cluster` and `verify`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use hyper::Method;

use super::args::{ClusterCommand, HostCommand, TokenCommand};
use super::each::Each;
use super::{lines, path_part, print, render};
use crate::agent::{self, Finding};
use crate::api::TokenInfo;
use crate::api::admin::{ClusterInfo, HostDetail, HostInfo, HostRemove, Role, TokenAsk, VerifyAsk};
use crate::api::client::{agent_runs, call, fetch};
use crate::instance::Instance;

pub(super) async fn host(instance: &Instance, json: bool, command: HostCommand) -> Result<()> {
    let none = None::<&()>;
    let path = |host: &str| format!("/v1/hosts/{}", path_part(host));
    match command {
        HostCommand::Ls => {
            let hosts: Vec<HostInfo> = call(instance, Method::GET, "/v1/hosts", none).await?;
            print(json, &hosts, || render::admin::hosts(&hosts))
        }
        HostCommand::Inspect { hosts } => {
            let ask = async |host: &String| call(instance, Method::GET, &path(host), none).await;
            let found: Each<HostDetail> = Each::of(&hosts, ask).await;
            found.print(json, render::admin::host_details)
        }
        HostCommand::Rm { hosts, force } => {
            let body = Some(&HostRemove { force });
            let ask = async |host: &String| call(instance, Method::DELETE, &path(host), body).await;
            let gone: Each<HostInfo> = Each::of(&hosts, ask).await;
            gone.print(json, |gone| lines(gone, |host| host.name.clone()))
        }
        HostCommand::Promote { hosts } => roles(instance, json, &hosts, true).await,
        HostCommand::Demote { hosts } => roles(instance, json, &hosts, false).await,
    }
}

async fn roles(instance: &Instance, json: bool, hosts: &[String], manager: bool) -> Result<()> {
    let ask = async |host: &String| {
        let path = format!("/v1/hosts/{}/role", path_part(host));
        call(instance, Method::POST, &path, Some(&Role { manager })).await
    };
    let changed: Each<HostInfo> = Each::of(hosts, ask).await;
    let role = if manager { "manager" } else { "worker" };
    changed.print(json, |changed| {
        lines(changed, |host| format!("{} is a {role}", host.name))
    })
}

pub(super) async fn token(instance: &Instance, json: bool, command: TokenCommand) -> Result<()> {
    let ask = match command {
        TokenCommand::Show { manager } => TokenAsk {
            manager,
            rotate: false,
        },
        TokenCommand::Rotate { manager } => TokenAsk {
            manager,
            rotate: true,
        },
    };
    let token: TokenInfo = call(instance, Method::POST, "/v1/token", Some(&ask)).await?;
    print(json, &token, || {
        let what = if ask.manager { "manager" } else { "host" };
        format!(
            "{}\n\nTo join a {what}:\n  {}",
            token.token, token.join_command
        )
    })
}

pub(super) async fn cluster(
    instance: &Instance,
    json: bool,
    command: ClusterCommand,
) -> Result<()> {
    let none = None::<&()>;
    match command {
        ClusterCommand::Status => {
            let info: ClusterInfo = call(instance, Method::GET, "/v1/cluster", none).await?;
            print(json, &info, || render::admin::cluster(&info))
        }
        ClusterCommand::Backup { file } => {
            // The file first: an answer that can't be kept is of no use.
            let mut out = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file)
                .with_context(|| format!("can't make {}", file.display()))?;
            let written = async {
                let bytes = fetch(instance, Method::GET, "/v1/cluster/backup", none).await?;
                out.write_all(&bytes)?;
                out.sync_all()?;
                anyhow::Ok(bytes.len())
            };
            match written.await {
                Ok(bytes) => print(json, &serde_json::json!({ "bytes": bytes }), || {
                    format!("{}: {bytes} bytes", file.display())
                }),
                Err(error) => {
                    let _ = std::fs::remove_file(&file);
                    Err(error)
                }
            }
        }
        ClusterCommand::Restore { file } => restore(instance, json, &file).await,
    }
}

async fn restore(instance: &Instance, json: bool, file: &Path) -> Result<()> {
    if agent_runs(instance).await {
        bail!(
            "an agent runs here: stop it first, with 'overlay-dp detach' when it is to leave its present cluster"
        );
    }
    let bytes = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    let what = agent::prepare_restore(instance, &bytes)?;
    print(json, &serde_json::json!({ "backup": what }), || {
        format!(
            "{what}\nThe next 'overlay-dp attach --iface <uplink>' on this host makes the cluster anew."
        )
    })
}

/// Fails when something differs that was not repaired.
pub(super) async fn verify(instance: &Instance, json: bool, repair: bool) -> Result<()> {
    let ask = VerifyAsk { repair };
    let found: Vec<Finding> = call(instance, Method::POST, "/v1/verify", Some(&ask)).await?;
    print(json, &found, || render::admin::findings(&found))?;
    match found.iter().filter(|f| !f.repaired).count() {
        0 => Ok(()),
        1 => bail!("1 difference"),
        n => bail!("{n} differences"),
    }
}
