//! The command line: asking the agent, and printing what it says.

mod admin;
pub mod args;
mod capture;
mod docker;
mod docs;
mod each;
mod key;
mod limit;
mod mdb;
mod policy;
mod render;
mod run;
mod service;
mod top;
mod trace;
mod usage;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser as _;
use hyper::Method;
use overlay_core::slowpath::FloodLimit;
use serde::Serialize;

use crate::agent::{self, Options};
use crate::api::client::{agent_runs, call};
use crate::api::{
    ContainerAdd, ContainerInfo, ContainerRemove, Detach, Detached, FdbAdd, FdbRemove, FdbRow,
    Netns, NetworkCreate, NetworkDetail, NetworkInfo, Status, VtepInfo,
};
use crate::instance::Instance;
use crate::privileges;
use args::{
    AttachArgs, Cli, Command, ContainerCommand, DetachArgs, FdbCommand, NetworkCommand, VtepCommand,
};
use each::Each;

/// Parses the command line and does what it says. Errors are one line on standard error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::say(&error),
    };
    let json = cli.json;
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            complain(json, &error);
            match error.is::<agent::Expelled>() {
                true => ExitCode::from(agent::Expelled::EXIT_STATUS),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let instance = Instance::new(&cli.instance).context("--instance")?;
    let group = match &cli.command {
        Command::Attach(args) => {
            let group = privileges::group(args.group.as_deref()).context("--group")?;
            privileges::reduce(group)?;
            group
        }
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Run(args) => return run::run(&instance, *args).await,
            Command::Attach(args) => attach(instance, *args, group).await?,
            Command::Completion(args) => docs::completion(&args)?,
            Command::Man(args) => docs::man(&args)?,
            command => ask(&instance, cli.json, command).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn attach(instance: Instance, args: AttachArgs, group: Option<u32>) -> Result<()> {
    log_to_stderr(args.bpf_log);
    let token = args
        .token
        .map(|t| t.parse())
        .transpose()
        .context("--token")?;
    let host_name = match args.host_name {
        Some(name) => name,
        None => agent::default_host_name(),
    };
    let docker = args.docker.options(&instance)?;
    agent::run(Options {
        instance,
        iface: args.iface,
        join: args.join,
        token,
        datapath: args.datapath,
        mtu: args.mtu,
        advertise: args.advertise_addr,
        data_port: args.data_port,
        esp_port: args.esp_port,
        key_lifetime: args.key_lifetime,
        flood: FloodLimit {
            frames: args.flood_limit,
            bytes: args.flood_limit_bytes,
        },
        control_port: args.control_port,
        gossip_port: args.gossip_port,
        host_name,
        resolv_conf: std::path::absolute(args.resolv_conf).context("--resolv-conf")?,
        metrics: args.metrics,
        bpf_log: args.bpf_log,
        on_exit: args.on_exit,
        docker,
        group,
    })
    .await
}

/// `RUST_LOG` rules; without it, what people want to know, and what the programs say if asked to.
fn log_to_stderr(programs: bool) {
    let mut usual =
        "info,foca=warn,openraft=error,quinn=warn,quinn_udp=error,aya=warn,netlink_proto=warn"
            .to_owned();
    if programs {
        usual += ",overlay_ebpf=debug";
    }
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| usual.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

async fn ask(instance: &Instance, json: bool, command: Command) -> Result<()> {
    let get = Method::GET;
    let none = None::<&()>;
    match command {
        Command::Attach(_) | Command::Run(_) | Command::Completion(_) | Command::Man(_) => {
            unreachable!("handled by the caller")
        }
        Command::Detach(args) => detach(instance, json, &args).await,
        Command::Status => {
            let status: Status = call(instance, get, "/v1/status", none).await?;
            print(json, &status, || render::status(&status))
        }
        Command::Capture(args) => capture::capture(instance, json, *args).await,
        Command::Top(args) => top::top(instance, json, args).await,
        Command::Trace(args) => trace::trace(instance, json, args).await,
        Command::Host(command) => admin::host(instance, json, command).await,
        Command::Token(command) => admin::token(instance, json, command).await,
        Command::Cluster(command) => admin::cluster(instance, json, command).await,
        Command::Verify { repair } => admin::verify(instance, json, repair).await,
        Command::Vtep(VtepCommand::Ls) => {
            let vteps: Vec<VtepInfo> = call(instance, get, "/v1/vteps", none).await?;
            print(json, &vteps, || render::vteps(&vteps))
        }
        Command::Network(command) => network(instance, json, command).await,
        Command::Docker(command) => docker::run(instance, json, command).await,
        Command::Container(command) => container(instance, json, command).await,
        Command::Key(command) => key::key(instance, json, command).await,
        Command::Policy(command) => policy::policy(instance, json, command).await,
        Command::Service(command) => service::service(instance, json, command).await,
        Command::Fdb(command) => fdb(instance, json, command).await,
        Command::Mdb(command) => mdb::mdb(instance, json, command).await,
    }
}

async fn detach(instance: &Instance, json: bool, args: &DetachArgs) -> Result<()> {
    let detached: Detached = if agent_runs(instance).await {
        call(
            instance,
            Method::POST,
            "/v1/detach",
            Some(&Detach { force: args.force }),
        )
        .await?
    } else {
        agent::clean_up_after_dead_agent(instance).await?
    };
    print(json, &detached, || match detached.undone.is_empty() {
        true => "Nothing of overlay-dp is on this host.".to_owned(),
        false => detached.undone.join("\n"),
    })
}

async fn network(instance: &Instance, json: bool, command: NetworkCommand) -> Result<()> {
    let none = None::<&()>;
    match command {
        NetworkCommand::Create {
            name,
            subnets,
            gateways,
            ip_range,
            ipv6,
            vni,
            internal,
            encrypted,
            multicast,
        } => {
            let request = NetworkCreate {
                name,
                subnets,
                gateways,
                ip_range,
                ipv6,
                vni,
                internal,
                encrypted,
                multicast,
            };
            let made: NetworkInfo =
                call(instance, Method::POST, "/v1/networks", Some(&request)).await?;
            print(json, &made, || {
                let families = render::families(&made);
                let families =
                    families.map(|(subnet, gateway)| format!("{subnet}, gateway {gateway}, "));
                let families: String = families.collect();
                format!("{}: {families}VNI {}", made.name, made.vni)
            })
        }
        NetworkCommand::Ls => {
            let networks: Vec<NetworkInfo> =
                call(instance, Method::GET, "/v1/networks", none).await?;
            print(json, &networks, || render::networks(&networks))
        }
        NetworkCommand::Inspect { names } => {
            let ask = async |name: &String| network_detail(instance, name).await;
            let found = Each::of(&names, ask).await;
            found.print(json, render::network_details)
        }
        NetworkCommand::Rm { names } => {
            let ask = async |name: &String| {
                let path = format!("/v1/networks/{}", path_part(name));
                call(instance, Method::DELETE, &path, none).await
            };
            let gone: Each<NetworkInfo> = Each::of(&names, ask).await;
            gone.print(json, |gone| lines(gone, |network| network.name.clone()))
        }
    }
}

async fn container(instance: &Instance, json: bool, command: ContainerCommand) -> Result<()> {
    match command {
        ContainerCommand::Add {
            name,
            network,
            netns,
            pid,
            ip,
            mac_address,
            ifname,
            aliases,
            service,
            resolv_conf,
            publish,
            limit,
        } => {
            let netns = match (netns, pid) {
                (Some(text), _) => args::parse_netns(&text)?,
                (None, Some(pid)) => Netns::Pid(pid),
                (None, None) => unreachable!("the command line asks for one of them"),
            };
            let request = ContainerAdd {
                name,
                network,
                netns,
                ip,
                mac: mac_address,
                ifname,
                aliases,
                service,
                resolv_conf,
                attachment: None,
                publish,
                limit: limit.limit(),
            };
            let added: ContainerInfo =
                call(instance, Method::POST, "/v1/containers", Some(&request)).await?;
            print(json, &added, || render::container_added(&added))
        }
        ContainerCommand::Rm { names, network } => {
            let ask = async |name| {
                let request = ContainerRemove {
                    name,
                    network: network.clone(),
                };
                call(instance, Method::DELETE, "/v1/containers", Some(&request)).await
            };
            let gone: Each<Vec<ContainerInfo>> = Each::of(names, ask).await;
            gone.concat().print(json, |gone| {
                lines(gone, |c| format!("{} ({})", c.name, c.network))
            })
        }
        ContainerCommand::Ls { network, local } => {
            let mut all: Vec<ContainerInfo> = match network {
                // A network that is not there is an error, and not an empty one.
                Some(name) => network_detail(instance, &name).await?.containers,
                None => call(instance, Method::GET, "/v1/containers", None::<&()>).await?,
            };
            all.retain(|c| !local || c.local.is_some());
            print(json, &all, || render::containers(&all))
        }
    }
}

async fn fdb(instance: &Instance, json: bool, command: FdbCommand) -> Result<()> {
    match command {
        FdbCommand::Show { network } => {
            let mut rows: Vec<FdbRow> = call(instance, Method::GET, "/v1/fdb", None::<&()>).await?;
            if let Some(name) = network {
                // One that is not there is an error, and not an empty one.
                let network = crate::plugins::network::find(instance, &name).await?;
                rows.retain(|row| row.network == network.name);
            }
            print(json, &rows, || render::fdb(&rows))
        }
        FdbCommand::Add {
            mac,
            network,
            vtep,
            ips,
        } => {
            let request = FdbAdd {
                network,
                mac,
                vtep,
                ips,
            };
            let row: FdbRow = call(instance, Method::POST, "/v1/fdb", Some(&request)).await?;
            print(json, &row, || {
                format!("{} on {} behind {vtep}", row.mac, row.network)
            })
        }
        FdbCommand::Del { mac, network } => {
            let request = FdbRemove { network, mac };
            let row: FdbRow = call(instance, Method::DELETE, "/v1/fdb", Some(&request)).await?;
            print(json, &row, || format!("{} on {}", row.mac, row.network))
        }
    }
}

/// A network with its containers; an error when there is none.
async fn network_detail(instance: &Instance, name: &str) -> Result<NetworkDetail> {
    let path = format!("/v1/networks/{}", path_part(name));
    call(instance, Method::GET, &path, None::<&()>).await
}

/// One line of text for each.
fn lines<T>(all: &[T], line: impl Fn(&T) -> String) -> String {
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// An error, in one line on standard error.
fn complain(json: bool, error: &anyhow::Error) {
    match json {
        true => eprintln!("{}", serde_json::json!({ "error": format!("{error:#}") })),
        false => eprintln!("overlay-dp: {error:#}"),
    }
}

/// Prints `value` as JSON, or as `text` makes it.
fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    use std::io::Write as _;
    let out = if json {
        serde_json::to_string_pretty(value)?
    } else {
        text()
    };
    match writeln!(std::io::stdout(), "{}", out.trim_end()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A name as part of a path: what no name can have is made harmless, and the agent says that
/// there is no such name.
fn path_part(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => (b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
