//! What the host's own network stack does for networks: masquerading what leaves, and passing what
//! is published. A task of its own runs `nft` and `iptables`, so that nobody waits for them; it
//! looks again and again whether somebody else has changed what it made.

mod iptables;
mod marks;
mod rules;
mod sysctl;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::instance::Instance;
use marks::Marks;
pub use rules::{Backend, Rules, Way};

/// How often the kernel's tables are compared with what they are to be.
const PERIOD: Duration = Duration::from_secs(10);

/// The running task. Dropping it stops it, and leaves everything as it is.
pub struct Firewall {
    /// With how many there were before.
    wanted: watch::Sender<(u64, Rules)>,
    /// Up to which they have been applied, and what went wrong with the last.
    applied: watch::Receiver<(u64, Option<String>)>,
    took_over: bool,
    work: Arc<Mutex<Work>>,
    task: JoinHandle<()>,
}

/// What the task works on; only it and `verify` wait for the lock.
struct Work {
    instance: Instance,
    marks: Marks,
    /// What `nft` lists of our table when it is as it should be.
    listed: Option<String>,
}

impl Firewall {
    /// Starts it. What an earlier agent left stays until the first rules are set.
    ///
    /// # Errors
    /// When its file can't be read.
    pub fn start(instance: &Instance) -> Result<Firewall> {
        let work = Arc::new(Mutex::new(Work {
            instance: instance.clone(),
            marks: Marks::load(instance)?,
            listed: None,
        }));
        let took_over = work.lock().marks.table.is_some();
        let (wanted, mut changed) = watch::channel((0, Rules::default()));
        let (done, applied) = watch::channel((0, None));
        let working = Arc::clone(&work);
        let task = tokio::spawn(async move {
            loop {
                let _ = tokio::time::timeout(PERIOD, changed.changed()).await;
                let (number, rules) = changed.borrow_and_update().clone();
                if number == 0 {
                    continue;
                }
                let work = Arc::clone(&working);
                let apply = tokio::task::spawn_blocking(move || work.lock().apply(&rules));
                let problem = match apply.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{error:#}")),
                    Err(error) => Some(error.to_string()),
                };
                done.send_if_modified(|last| {
                    if problem.is_some() && last.1 != problem {
                        let problem = problem.as_deref().unwrap_or_default();
                        tracing::error!(
                            "the ways out of networks are not as they should be: {problem}"
                        );
                    }
                    let news = (number, problem);
                    std::mem::replace(last, news.clone()) != news
                });
            }
        });
        Ok(Firewall {
            wanted,
            applied,
            took_over,
            work,
            task,
        })
    }

    /// Whether an earlier agent left something that goes on as it is.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// Sets what is to be.
    pub fn set(&self, rules: Rules) {
        self.wanted.send_if_modified(|(number, last)| {
            if *number > 0 && *last == rules {
                return false;
            }
            *number += 1;
            *last = rules;
            true
        });
    }

    /// Has what was set last compared with the kernel's tables now, and not at the next turn.
    pub fn look(&self) {
        self.wanted.send_if_modified(|(number, _)| {
            *number += u64::from(*number > 0);
            *number > 0
        });
    }

    /// Returns when what was set last has been applied: what went wrong, if anything.
    pub fn applied(&self) -> impl Future<Output = Option<String>> + Send + use<> {
        let wanted = self.wanted.borrow().0;
        let mut applied = self.applied.clone();
        async move {
            match applied.wait_for(|(number, _)| *number >= wanted).await {
                Ok(applied) => applied.1.clone(),
                Err(_) => Some("the agent is stopping".to_owned()),
            }
        }
    }

    /// What differs in the kernel from what was set last.
    pub fn differences(&self) -> Vec<String> {
        let (number, rules) = self.wanted.borrow().clone();
        let (applied, problem) = self.applied.borrow().clone();
        match problem {
            Some(problem) => vec![problem],
            None if applied < number || number == 0 => Vec::new(),
            None => self.work.lock().differences(&rules),
        }
    }

    /// Applies what was set last anew.
    ///
    /// # Errors
    /// When that fails.
    pub fn repair(&self) -> Result<()> {
        let (number, rules) = self.wanted.borrow().clone();
        match number {
            0 => Ok(()),
            _ => self.work.lock().apply(&rules),
        }
    }

    /// Waits until nothing is being applied, and stops.
    pub async fn stop(self) {
        self.task.abort();
        let work = Arc::clone(&self.work);
        // Whoever holds the lock ends first.
        let _ = tokio::task::spawn_blocking(move || drop(work.lock())).await;
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Work {
    fn apply(&mut self, rules: &Rules) -> Result<()> {
        let Work {
            instance,
            marks,
            listed,
        } = self;
        if rules.is_empty() {
            *listed = None;
            for line in marks.undo(instance) {
                tracing::info!("{line}");
            }
            return marks.save();
        }
        let table = rules::table_name(instance);
        let is_there = listed.is_some() && rules::list(&table)? == *listed;
        if !is_there || marks.table.as_ref() != Some(rules) {
            // First that it is to be undone.
            marks.table = Some(rules.clone());
            marks.save()?;
            rules::replace(&table, rules)?;
            *listed = rules::list(&table)?;
        }
        // Only now that what these let in is filtered.
        sysctl::set(rules, &mut marks.sysctls)?;
        iptables::let_through(instance, &mut marks.iptables);
        marks.save()
    }

    fn differences(&self, rules: &Rules) -> Vec<String> {
        let mut all = Vec::new();
        if !rules.is_empty() {
            let table = rules::table_name(&self.instance);
            match rules::list(&table) {
                Ok(now) if now == self.listed => {}
                Ok(Some(_)) => all.push(format!("somebody has changed nftables' table {table}")),
                Ok(None) => all.push(format!("nftables' table {table} is gone")),
                Err(error) => all.push(format!("{error:#}")),
            }
            all.extend(sysctl::differences(rules));
            all.extend(iptables::differences(&self.instance));
        }
        all
    }
}

/// Removes what an agent of this instance made. Returns what that was.
pub fn remove(instance: &Instance) -> Vec<String> {
    if !instance.state_dir().exists() {
        return Vec::new();
    }
    match Marks::load(instance) {
        Ok(mut marks) => {
            let undone = marks.undo(instance);
            if let Err(error) = marks.save() {
                tracing::error!("{error:#}");
            }
            undone
        }
        Err(error) => {
            tracing::error!("{error:#}");
            Vec::new()
        }
    }
}
