//! What the runtime gives: the configuration on standard input, and the environment.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;

use overlay_core::model::{MacAddr, check_name};
use overlay_core::policy::RateLimit;
use serde::Deserialize;
use serde_json::Value;

use super::error::{CONFIG, DECODE, ENVIRONMENT, Error, Result, UNSUPPORTED, VERSION};
use crate::api::{Attachment, AttachmentRef};
use crate::instance::Instance;
use crate::plugins::network::Make;
use crate::plugins::ports::PortMapping;

/// The protocol's versions that are spoken.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// How much of a container's id names it when nothing else does.
const SHORT_ID: usize = 12;

/// A network configuration, as the runtime hands it over.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub cni_version: String,
    /// The configuration's name.
    pub name: String,
    /// Our network [default: the configuration's name].
    network: Option<String>,
    instance: Option<String>,
    socket: Option<PathBuf>,
    #[serde(flatten)]
    pub make: Make,
    ipam: Option<Value>,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    pub prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid: Option<Vec<Valid>>,
}

/// What the runtime fills in for the capabilities that the configuration has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// By the configuration's name.
    aliases: BTreeMap<String, Vec<String>>,
    ips: Vec<String>,
    mac: Option<String>,
    pub port_mappings: Vec<PortMapping>,
    pub dns: Option<Dns>,
    pub bandwidth: Bandwidth,
}

/// How much the container may send; what it gets is not limited.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// In bits a second; 0 for no limit.
    egress_rate: u64,
    /// In bits.
    egress_burst: u64,
}

impl Bandwidth {
    /// As the agent has it.
    pub fn limit(&self) -> Option<RateLimit> {
        let burst = (self.egress_burst != 0).then_some(self.egress_burst / 8);
        RateLimit::new(self.egress_rate / 8, burst)
    }
}

/// How names are to be looked up.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// An attachment that is not garbage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Valid {
    #[serde(rename = "containerID")]
    pub id: String,
    pub ifname: String,
}

/// One variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The version that an answer is in, also to what can't be understood otherwise.
pub fn version_of(input: &Value) -> &str {
    let asked = input["cniVersion"].as_str();
    let known = asked.filter(|asked| VERSIONS.contains(asked));
    known.unwrap_or(VERSIONS[VERSIONS.len() - 1])
}

impl Config {
    /// # Errors
    /// When it is none that can be carried out.
    pub fn parse(input: Value) -> Result<Config> {
        let asked = input["cniVersion"].as_str().unwrap_or("0.1.0");
        if !VERSIONS.contains(&asked) {
            let known = VERSIONS.join(", ");
            return Err(
                Error::new(VERSION, format!("CNI version {asked} is not supported"))
                    .details(format!("supported are {known}")),
            );
        }
        let config: Config = serde_json::from_value(input).map_err(|error| {
            Error::new(DECODE, "the network configuration can't be understood").details(error)
        })?;
        if config.name.is_empty() {
            return Err(Error::new(CONFIG, "the configuration has no name"));
        }
        let no_ipam = |ipam: &Value| ipam.as_object().is_none_or(|fields| fields.is_empty());
        if !config.ipam.as_ref().is_none_or(no_ipam) {
            return Err(Error::new(
                UNSUPPORTED,
                "overlay-dp gives addresses by itself: leave 'ipam' out of the configuration",
            ));
        }
        check_name(config.network()).map_err(|error| Error::new(CONFIG, error.to_string()))?;
        Ok(config)
    }

    /// Our network's name.
    pub fn network(&self) -> &str {
        self.network.as_ref().unwrap_or(&self.name)
    }

    /// Where the agent is.
    pub fn instance(&self) -> Result<Instance> {
        let fallback = variable("OVERLAY_DP_INSTANCE");
        let name = self.instance.clone().or(fallback);
        let instance = Instance::new(name.as_deref().unwrap_or("default"))
            .map_err(|error| Error::new(CONFIG, format!("'instance': {error}")))?;
        Ok(match &self.socket {
            Some(socket) => instance.at(socket.clone()),
            None => instance,
        })
    }

    /// Whose the attachments are that this configuration made.
    pub fn owner(&self) -> String {
        format!("cni:{}", self.name)
    }

    /// More names of the container.
    pub fn aliases(&self) -> Vec<String> {
        let of_it = self.runtime_config.aliases.get(&self.name);
        of_it.cloned().unwrap_or_default()
    }

    /// The addresses that are asked for, by a capability or an argument.
    pub fn ips(&self, args: &Args) -> Result<Vec<IpAddr>> {
        let parse = |text: &String| {
            let ip = text.split('/').next().unwrap_or_default().trim();
            ip.parse()
                .map_err(|_| Error::new(CONFIG, format!("'{text}' is no IP address")))
        };
        let from_args = args.get("IP").map(|ips| ips.split(',').map(str::to_owned));
        let asked: Vec<String> = match self.runtime_config.ips.is_empty() {
            true => from_args.into_iter().flatten().collect(),
            false => self.runtime_config.ips.clone(),
        };
        asked.iter().map(parse).collect()
    }

    /// The MAC that is asked for.
    pub fn mac(&self, args: &Args) -> Result<Option<MacAddr>> {
        let asked = self.runtime_config.mac.clone();
        let asked = asked.or_else(|| args.get("MAC").map(str::to_owned));
        let asked = asked.filter(|mac| !mac.is_empty());
        let parsed = asked
            .map(|mac| mac.to_ascii_lowercase().parse())
            .transpose();
        parsed
            .map_err(|error: overlay_core::model::ModelError| Error::new(CONFIG, error.to_string()))
    }
}

/// `CNI_ARGS`: `KEY=value;…`.
#[derive(Debug, Default)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    pub fn parse(text: &str) -> Result<Args> {
        let pairs = text.split(';').filter(|pair| !pair.is_empty());
        let split = |pair: &str| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::new(ENVIRONMENT, format!("CNI_ARGS: '{pair}' is no KEY=value"))
            })?;
            Ok((key.to_owned(), value.to_owned()))
        };
        Ok(Args(pairs.map(split).collect::<Result<_>>()?))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }
}

/// The container that it is about.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub ifname: String,
    pub netns: Option<PathBuf>,
    pub args: Args,
}

impl Container {
    /// From the environment.
    pub fn from_env() -> Result<Container> {
        let wanted = |name: &str| {
            variable(name).ok_or_else(|| Error::new(ENVIRONMENT, format!("{name} is not set")))
        };
        let container = Container {
            id: wanted("CNI_CONTAINERID")?,
            ifname: wanted("CNI_IFNAME")?,
            netns: variable("CNI_NETNS").map(PathBuf::from),
            args: Args::parse(&variable("CNI_ARGS").unwrap_or_default())?,
        };
        container.check()?;
        Ok(container)
    }

    fn check(&self) -> Result<()> {
        let first = self
            .id
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if !first || !self.id.bytes().all(rest) {
            let msg = format!("CNI_CONTAINERID: '{}' is no container id", self.id);
            return Err(Error::new(ENVIRONMENT, msg));
        }
        let name = &self.ifname;
        let bad = |b: u8| !b.is_ascii_graphic() || b"/:%".contains(&b);
        if name.len() > 15 || name == "." || name == ".." || name.bytes().any(bad) {
            let msg = format!("CNI_IFNAME: '{name}' can't be an interface's name");
            return Err(Error::new(ENVIRONMENT, msg));
        }
        Ok(())
    }

    /// What it is called on the network: as its pod, else by its id.
    pub fn name(&self) -> String {
        let pod = self.args.get("K8S_POD_NAME");
        let name = match (pod, self.args.get("K8S_POD_NAMESPACE")) {
            (Some(pod), Some(namespace)) => format!("{pod}.{namespace}"),
            (Some(pod), None) => pod.to_owned(),
            (None, _) => String::new(),
        };
        match check_name(&name) {
            Ok(()) => name,
            Err(_) => self.id.chars().take(SHORT_ID).collect(),
        }
    }

    /// How the agent finds it again.
    pub fn reference(&self, config: &Config) -> AttachmentRef {
        AttachmentRef {
            attachment: Attachment {
                owner: config.owner(),
                id: self.id.clone(),
            },
            ifname: Some(self.ifname.clone()),
        }
    }
}

/// The attachments that stay.
pub fn valid(config: &Config) -> Result<HashSet<Valid>> {
    let list = config.valid.clone();
    let list = list.ok_or_else(|| Error::new(CONFIG, "GC without cni.dev/valid-attachments"))?;
    Ok(list.into_iter().collect())
}
