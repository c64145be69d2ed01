//! What a container is called.

use anyhow::{Result, bail};
use overlay_core::model::{Endpoint, HostId, check_name};

use super::ContainerAdd;

/// Of the random part of a task's name.
const ID_LEN: usize = 12;
const ID_LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// The name that was asked for, or that of the next task of its service. All names that the
/// container is to have are checked.
pub(super) fn of_container(ask: &ContainerAdd, others: &[(HostId, Endpoint)]) -> Result<String> {
    for name in ask.aliases.iter().chain(&ask.service) {
        check_name(name)?;
    }
    let name = match (&ask.name, &ask.service) {
        (Some(name), _) => name.clone(),
        (None, Some(service)) => {
            let slot = free_slot(service, others);
            format!("{service}.{slot}.{}", random_id())
        }
        (None, None) => bail!("a container needs a name, or a service to be named after"),
    };
    check_name(&name)?;
    Ok(name)
}

/// The lowest number, from 1, that no task of the service has, as far as this host knows.
fn free_slot(service: &str, others: &[(HostId, Endpoint)]) -> u32 {
    let slot = |endpoint: &Endpoint| {
        let rest = endpoint.name.strip_prefix(service)?.strip_prefix('.')?;
        rest.split('.').next()?.parse::<u32>().ok()
    };
    let taken: std::collections::BTreeSet<u32> = others
        .iter()
        .filter(|(_, endpoint)| endpoint.service.as_deref() == Some(service))
        .filter_map(|(_, endpoint)| slot(endpoint))
        .collect();
    (1..).find(|slot| !taken.contains(slot)).unwrap_or(u32::MAX)
}

fn random_id() -> String {
    (0..ID_LEN)
        .map(|_| char::from(ID_LETTERS[rand::random_range(0..ID_LETTERS.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use overlay_core::model::{MacAddr, Vni};

    use super::*;
    use crate::api::Netns;

    fn ask(name: Option<&str>, service: Option<&str>) -> ContainerAdd {
        ContainerAdd {
            name: name.map(str::to_owned),
            network: "n".into(),
            netns: Netns::Pid(1),
            aliases: Vec::new(),
            service: service.map(str::to_owned),
            resolv_conf: false,
            ip: None,
            mac: None,
            ifname: "eth0".into(),
            attachment: None,
            publish: Vec::new(),
            limit: None,
        }
    }

    fn task(name: &str, service: &str) -> (HostId, Endpoint) {
        let endpoint = Endpoint {
            name: name.into(),
            vni: Vni::MAX,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            ips: Vec::new(),
            aliases: Vec::new(),
            service: Some(service.into()),
            router: false,
            unready: false,
        };
        (HostId(1), endpoint)
    }

    #[test]
    fn tasks_take_the_lowest_free_slot() {
        let others = [
            task("web.1.a", "web"),
            task("web.3", "web"),
            task("web.2.b", "other"),
            task("web.x", "web"),
        ];
        let name = of_container(&ask(None, Some("web")), &others).unwrap();
        let id = name.strip_prefix("web.2.").unwrap();
        assert_eq!(id.len(), ID_LEN);
        assert!(id.bytes().all(|b| ID_LETTERS.contains(&b)));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let of = |ask: &ContainerAdd| of_container(ask, &[]);
        assert_eq!(of(&ask(Some("a.1"), Some("web"))).unwrap(), "a.1");
        assert!(of(&ask(None, None)).is_err());
        assert!(of(&ask(Some("a b"), None)).is_err());
        assert!(of(&ask(None, Some(&"w".repeat(50)))).is_err());
        let mut bad = ask(Some("a"), None);
        bad.aliases = vec!["ok".into(), "-no".into()];
        assert!(of(&bad).is_err());
    }
}
