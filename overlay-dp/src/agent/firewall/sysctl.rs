//! Settings of the kernel without which nothing passes.
//!
//! IPv4 is forwarded by interface: an interface forwards what comes in on it. So it is turned on
//! for each, where it is off for the host as a whole, which stays so. IPv6 has but one switch for
//! all; interfaces that listened to routers go on listening.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::super::routers::ROUTER_PREFIX;
use super::rules::Rules;

const IPV4: &str = "/proc/sys/net/ipv4";
const IPV6: &str = "/proc/sys/net/ipv6";

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    path: PathBuf,
    before: String,
    after: String,
}

/// What our own interfaces have: nothing to restore, they go.
const ROUTERS: [(&str, &str); 5] = [
    ("forwarding", "1"),
    // What is asked for comes from the address in the network: others would be refused.
    ("arp_announce", "2"),
    ("arp_ignore", "1"),
    ("send_redirects", "0"),
    // The host reaches what is published at its loopback address, too; a rule guards it.
    ("route_localnet", "1"),
];

/// Sets them; what was changed is noted.
pub fn set(rules: &Rules, changed: &mut Vec<Setting>) -> Result<()> {
    for way in &rules.ways {
        let dir = Path::new(IPV4).join("conf").join(&way.ifname);
        for (key, value) in ROUTERS {
            match fs::write(dir.join(key), value) {
                // The interface has just gone: so will the rule.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => {
                    other.with_context(|| format!("can't set {key} of {}", way.ifname))?;
                }
            }
        }
    }
    forget(rules, changed);
    for (path, value) in foreign(rules) {
        change(path, value, changed)?;
    }
    Ok(())
}

/// Puts back what only networks needed that have gone, and forgets interfaces that have: others'
/// come and go for as long as the host runs.
fn forget(rules: &Rules, changed: &mut Vec<Setting>) {
    let ipv6 = rules.ways.iter().any(|way| way.ipv6);
    changed.retain(|setting| {
        if !setting.path.exists() {
            return false;
        }
        if ipv6 || !setting.path.starts_with(IPV6) {
            return true;
        }
        match restore(setting) {
            Ok(line) => tracing::info!("{line}"),
            Err(error) => tracing::error!("{error:#}"),
        }
        false
    });
}

/// What differs from what it must be.
pub fn differences(rules: &Rules) -> Vec<String> {
    let foreign = foreign(rules).into_iter();
    foreign
        .map(|(path, value)| format!("{} is not {value}", path.display()))
        .collect()
}

/// The settings of others' interfaces that are not as they must be.
fn foreign(rules: &Rules) -> Vec<(PathBuf, &'static str)> {
    let mut all = Vec::new();
    let ipv4 = Path::new(IPV4);
    if read(&ipv4.join("ip_forward")).as_deref() == Some("0") {
        for (_, dir) in interfaces(&ipv4.join("conf")) {
            let path = dir.join("forwarding");
            if read(&path).as_deref() == Some("0") {
                all.push((path, "1"));
            }
        }
    }
    let ipv6 = Path::new(IPV6).join("conf");
    let switch = ipv6.join("all/forwarding");
    if rules.ways.iter().any(|way| way.ipv6) && read(&switch).as_deref() == Some("0") {
        for (_, dir) in interfaces(&ipv6) {
            let path = dir.join("accept_ra");
            if read(&path).as_deref() == Some("1") {
                all.push((path, "2"));
            }
        }
        all.push((switch, "1"));
    }
    all
}

/// Those that are neither ours nor the loopback.
fn interfaces(conf: &Path) -> Vec<(String, PathBuf)> {
    let ours = ["all", "default", "lo"];
    let prefixes = [ROUTER_PREFIX, "ovp-", "ovl-"];
    let entries = fs::read_dir(conf).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| !ours.contains(&name.as_str()))
        .filter(|(name, _)| !prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn change(path: PathBuf, value: &str, changed: &mut Vec<Setting>) -> Result<()> {
    let Some(before) = read(&path) else {
        return Ok(());
    };
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("can't write {value} to {}", path.display()))?,
    }
    tracing::info!(setting = %path.display(), %before, after = value, "changed, for the ways out of networks");
    if changed.iter().all(|setting| setting.path != path) {
        changed.push(Setting {
            path,
            before,
            after: value.to_owned(),
        });
    }
    Ok(())
}

/// Puts one back, unless somebody else wants it as it is by now.
pub fn restore(setting: &Setting) -> Result<String> {
    let Setting {
        path,
        before,
        after,
    } = setting;
    let shown = path.display();
    let now = read(path);
    if now.as_ref() != Some(after) {
        return Ok(format!("left {shown} as somebody else has set it"));
    }
    let whole = read(&Path::new(IPV4).join("ip_forward"));
    if path.starts_with(IPV4) && whole.as_deref() == Some("1") {
        return Ok(format!("left {shown}: the whole host forwards by now"));
    }
    fs::write(path, before).with_context(|| format!("can't put {before} back into {shown}"))?;
    Ok(format!("put {before} back into {shown}"))
}
