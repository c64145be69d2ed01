//! What was changed on the host, on disk before it is: a dead agent's changes are undone, too.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::rules::{self, Rules};
use super::sysctl::Setting;
use super::{iptables, sysctl};
use crate::agent::state::JsonFile;
use crate::instance::Instance;

const FILE: &str = "firewall.json";

/// The changes.
pub struct Marks {
    /// nftables' table was made of these.
    pub table: Option<Rules>,
    /// Programs whose rules were extended.
    pub iptables: Vec<String>,
    /// Settings, and what they were.
    pub sysctls: Vec<Setting>,
    file: JsonFile<Stored>,
    saved: Stored,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
struct Stored {
    table: bool,
    iptables: Vec<String>,
    sysctls: Vec<Setting>,
}

impl Marks {
    /// Reads them; there are none where there is no file.
    pub fn load(instance: &Instance) -> Result<Marks> {
        let file: JsonFile<Stored> = JsonFile::new(&instance.state_dir(), FILE)?;
        let saved = file.load()?;
        Ok(Marks {
            // Of which is not known any more: of no rules that anybody could set.
            table: saved.table.then(Rules::default),
            iptables: saved.iptables.clone(),
            sysctls: saved.sysctls.clone(),
            file,
            saved,
        })
    }

    /// Writes them, if they have changed.
    pub fn save(&mut self) -> Result<()> {
        let stored = Stored {
            table: self.table.is_some(),
            iptables: self.iptables.clone(),
            sysctls: self.sysctls.clone(),
        };
        if stored != self.saved {
            self.file.save(&stored)?;
            self.saved = stored;
        }
        Ok(())
    }

    /// Undoes all of them, and says what that was. What can't be undone stays marked.
    pub fn undo(&mut self, instance: &Instance) -> Vec<String> {
        let mut undone = Vec::new();
        let mut note = |done: Result<String>| match done {
            Ok(line) => {
                undone.push(line);
                true
            }
            Err(error) => {
                tracing::error!("{error:#}");
                false
            }
        };
        // The opposite order of making them.
        self.iptables
            .retain(|program| !note(iptables::remove(instance, program)));
        self.sysctls
            .retain(|setting| !note(sysctl::restore(setting)));
        if self.table.is_some() {
            let table = rules::table_name(instance);
            if note(rules::remove(&table).map(|()| format!("removed nftables table {table}"))) {
                self.table = None;
            }
        }
        undone
    }
}
