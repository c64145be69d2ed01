//! Going on from the data path of an agent with another map layout: when our programs take its
//! programs' place.

use std::time::Duration;

use super::Agent;

/// How often it is looked whether all is known.
pub const LOOK: Duration = Duration::from_millis(50);
/// Who has not told its endpoints by then may not run; the others must not wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

impl Agent {
    /// Swaps the programs when our maps hold what the old ones do: all hosts have told what they
    /// have in our containers' networks, and that is in the tables. `no_news`: what they told was
    /// taken in.
    pub(super) fn swap_when_known(&mut self, no_news: bool) {
        let heard = |vni| self.cluster.unheard(vni).is_empty();
        let known =
            no_news && self.untold.is_empty() && self.state.networks().into_iter().all(heard);
        // Twice, as news may be on their way between the two.
        let known = std::mem::replace(&mut self.all_was_known, known) && known;
        let is_late = self.started.elapsed() > PATIENCE;
        if self.bpf.has_late_hooks() && !known && !is_late {
            return;
        }
        if is_late {
            tracing::warn!(
                "not all hosts have told what they have: their containers are reached when they do"
            );
        }
        self.flush();
        match self.bpf.swap() {
            Ok(()) => tracing::info!("another version's data path has been replaced"),
            Err(error) => tracing::error!("{error:#}"),
        }
    }
}
