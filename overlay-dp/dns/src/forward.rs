//! The way to the host's resolvers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::question::Question;
use crate::resolv::ResolvConf;
use crate::upstream;

/// Questions that wait for resolvers at a time.
const PLACES: usize = 256;
/// Those of one container.
const PLACES_EACH: usize = 64;

/// Asks the host's resolvers.
#[derive(Debug)]
pub struct Forwarder {
    conf: ResolvConf,
    port: u16,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_asker: HashMap<u32, usize>,
}

/// What came of a question.
#[derive(Debug)]
pub enum Verdict {
    /// A resolver's answer.
    Answer(Vec<u8>),
    /// The answer that none has answered.
    Failure(Vec<u8>),
}

impl Forwarder {
    /// To the resolvers in this resolv.conf, which listen on this port.
    pub fn new(conf: PathBuf, port: u16) -> Arc<Forwarder> {
        Arc::new(Forwarder {
            conf: ResolvConf::new(conf),
            port,
            taken: Mutex::default(),
        })
    }

    /// A place for a question of this asker; `None` when it has too many under way, or all have.
    pub fn place(self: &Arc<Self>, asker: u32) -> Option<Place> {
        let mut taken = self.taken.lock();
        let its = taken.by_asker.get(&asker).copied().unwrap_or_default();
        if taken.all >= PLACES || its >= PLACES_EACH {
            return None;
        }
        taken.by_asker.insert(asker, its + 1);
        taken.all += 1;
        drop(taken);
        Some(Place {
            forwarder: Arc::clone(self),
            asker,
        })
    }

    /// The resolvers, one after the other. `is_ours` are addresses that must not be asked: they
    /// would ask us.
    async fn ask(&self, question: &Question, is_ours: impl Fn(IpAddr) -> bool) -> Verdict {
        let mut servers = self.conf.servers();
        servers.retain(|server| !is_ours(*server));
        let mut refusal = None;
        for server in servers {
            match upstream::ask(SocketAddr::new(server, self.port), question).await {
                Ok(reply) if reply.is_answer() => return Verdict::Answer(reply.deliver(question)),
                Ok(reply) => refusal = Some(reply),
                Err(_) => {}
            }
        }
        Verdict::Failure(match refusal {
            Some(reply) => reply.deliver(question),
            None => question.failure(),
        })
    }
}

/// Leave to ask one question.
#[derive(Debug)]
pub struct Place {
    forwarder: Arc<Forwarder>,
    asker: u32,
}

impl Place {
    /// Asks it. Takes some seconds at most.
    pub async fn ask(self, question: &Question, is_ours: impl Fn(IpAddr) -> bool) -> Verdict {
        self.forwarder.ask(question, is_ours).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.forwarder.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(its) = taken.by_asker.get_mut(&self.asker) {
            *its = its.saturating_sub(1);
            if *its == 0 {
                taken.by_asker.remove(&self.asker);
            }
        }
    }
}
