//! `policy`

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use hyper::Method;
use overlay_core::policy::{self, PolicyProtocol, PortRange, Selector};

use super::render::table;
use super::{path_part, print};
use crate::api::client::call;
use crate::api::policies::{PolicyAdd, PolicyDefault, PolicyInfo};
use crate::instance::Instance;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say who may, or may not, reach which containers of a network; it holds on all hosts at once
    #[command(
        after_help = "What a deny policy is about does not come in, whatever others say. Else what an allow policy is \
    about does; and a container that any allow policy names as --to gets nothing else. Who no policy is about is \
    reached by everybody, unless 'policy default NETWORK deny'. Order does not matter. Answers to what a container has \
    begun itself always come in, as do ARP, neighbour discovery and ICMP errors.

WHO is any, service:NAME, an address or a subnet, or for --from outside: hosts themselves, and what comes through their \
    published ports.

Examples:
  overlay-dp policy add web-only --network uber-net --to service:web --from service:api --proto tcp --port 80
  overlay-dp policy add web-public --network uber-net --to service:web --from outside --proto tcp --port 80
  overlay-dp policy add no-db --network uber-net --to service:db --from service:web --action deny
  overlay-dp policy add ping --network uber-net --proto icmp"
    )]
    Add {
        /// Its name
        name: String,
        /// The network
        #[arg(long)]
        network: String,
        /// Which containers are reached
        #[arg(long, value_name = "WHO", default_value = "any")]
        to: Selector,
        /// By whom
        #[arg(long, value_name = "WHO", default_value = "any")]
        from: Selector,
        /// By which protocol [default: any, without --port]
        #[arg(long, value_name = "PROTOCOL")]
        proto: Option<Proto>,
        /// At which port of theirs, or range of ports as 8000-8010
        #[arg(long = "port", value_name = "PORT", requires = "proto")]
        ports: Option<PortRange>,
        /// Whether they may
        #[arg(long, value_name = "ACTION", default_value = "allow")]
        action: Action,
    },
    /// List policies
    #[command(after_help = "Examples:
  overlay-dp policy ls
  overlay-dp policy ls --network uber-net --json")]
    Ls {
        /// Those of this network only
        #[arg(long)]
        network: Option<String>,
    },
    /// Show policies
    #[command(after_help = "Examples:
  overlay-dp policy inspect web-only --json")]
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove policies
    #[command(after_help = "Examples:
  overlay-dp policy rm web-only")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Say what becomes in a network of what no policy allows; or show what does
    #[command(after_help = "Examples:
  overlay-dp policy default
  overlay-dp policy default uber-net deny
  overlay-dp policy default uber-net allow")]
    Default {
        /// The network
        #[arg(requires = "action")]
        network: Option<String>,
        /// What becomes of it
        action: Option<Action>,
    },
}

/// `--proto`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Proto {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP and ICMPv6, but for errors, answers and neighbour discovery
    Icmp,
}

/// `--action`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Action {
    /// It comes in
    Allow,
    /// It does not
    Deny,
}

impl From<Proto> for PolicyProtocol {
    fn from(proto: Proto) -> PolicyProtocol {
        match proto {
            Proto::Tcp => PolicyProtocol::Tcp,
            Proto::Udp => PolicyProtocol::Udp,
            Proto::Icmp => PolicyProtocol::Icmp,
        }
    }
}

impl From<Action> for policy::Action {
    fn from(action: Action) -> policy::Action {
        match action {
            Action::Allow => policy::Action::Allow,
            Action::Deny => policy::Action::Deny,
        }
    }
}

pub(super) async fn policy(instance: &Instance, json: bool, command: PolicyCommand) -> Result<()> {
    let none = None::<&()>;
    let path = |name: &str| format!("/v1/policies/{}", path_part(name));
    match command {
        PolicyCommand::Add {
            name,
            network,
            to,
            from,
            proto,
            ports,
            action,
        } => {
            let ask = PolicyAdd {
                name,
                network,
                to,
                from,
                protocol: proto.map(Into::into),
                ports,
                action: action.into(),
            };
            let added: PolicyInfo =
                call(instance, Method::POST, "/v1/policies", Some(&ask)).await?;
            print(json, &added, || {
                format!("{} on {}: {}", added.name, added.network, says(&added))
            })
        }
        PolicyCommand::Ls { network } => {
            let mut all: Vec<PolicyInfo> =
                call(instance, Method::GET, "/v1/policies", none).await?;
            all.retain(|p| network.as_ref().is_none_or(|network| p.network == *network));
            print(json, &all, || rows(&all))
        }
        PolicyCommand::Inspect { names } => {
            let mut found: Vec<PolicyInfo> = Vec::new();
            for name in &names {
                found.push(call(instance, Method::GET, &path(name), none).await?);
            }
            print(json, &found, || rows(&found))
        }
        PolicyCommand::Rm { names } => {
            let mut gone: Vec<PolicyInfo> = Vec::new();
            for name in &names {
                gone.push(call(instance, Method::DELETE, &path(name), none).await?);
            }
            print(json, &gone, || {
                let names = gone.iter().map(|policy| policy.name.as_str());
                names.collect::<Vec<_>>().join("\n")
            })
        }
        PolicyCommand::Default { network, action } => {
            const PATH: &str = "/v1/policy-defaults";
            let defaults: Vec<PolicyDefault> = match network.zip(action) {
                Some((network, action)) => {
                    let ask = PolicyDefault {
                        network,
                        action: action.into(),
                    };
                    vec![call(instance, Method::POST, PATH, Some(&ask)).await?]
                }
                None => call(instance, Method::GET, PATH, none).await?,
            };
            print(json, &defaults, || {
                table(
                    ["NETWORK", "DEFAULT"],
                    defaults
                        .iter()
                        .map(|d| [d.network.clone(), d.action.name().to_owned()]),
                )
            })
        }
    }
}

fn says(policy: &PolicyInfo) -> String {
    let what = match (policy.protocol, policy.ports) {
        (None, _) => "anything".to_owned(),
        (Some(protocol), None) => protocol.name().to_owned(),
        (Some(protocol), Some(ports)) => format!("{} {ports}", protocol.name()),
    };
    let PolicyInfo {
        action, from, to, ..
    } = policy;
    format!("{} {what} from {from} to {to}", action.name())
}

fn rows(policies: &[PolicyInfo]) -> String {
    table(
        ["POLICY", "NETWORK", "ACTION", "FROM", "TO", "PROTO", "PORT"],
        policies.iter().map(|policy| {
            [
                policy.name.clone(),
                policy.network.clone(),
                policy.action.name().to_owned(),
                policy.from.to_string(),
                policy.to.to_string(),
                policy.protocol.map_or("any", |p| p.name()).to_owned(),
                policy.ports.map_or("any".to_owned(), |p| p.to_string()),
            ]
        }),
    )
}
