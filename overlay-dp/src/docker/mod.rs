//! Docker's network and IPAM driver, served by the agent on a unix socket (a legacy plugin of
//! scope local: each Docker makes its own network, and all that have the same `-o
//! overlay-dp.network=NAME` are one).
//!
//! Docker calls us (`server`) and, when nothing waits for us, we ask Docker (`client`): for the
//! names of its containers, and whether it still has what we think it has (`names`).

mod book;
mod client;
mod create;
mod endpoint;
mod everywhere;
mod forget;
pub(crate) mod fuzzing;
mod ipam;
mod names;
mod network;
mod publish;
mod resolvers;
mod server;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::api::server::Ctx;
pub use book::Store;
pub use client::Client;
pub(crate) use create::create;

/// The name of the cluster's network, in `-o` and `--ipam-opt`.
const NETWORK_OPTION: &str = "overlay-dp.network";
/// Whether the other hosts' Dockers get the network, too.
const EVERYWHERE_OPTION: &str = "overlay-dp.everywhere";
/// Its value in networks that an agent had Docker make.
const FOLLOWS: &str = "follows";
/// The VNI of a network that is made.
const VNI_OPTION: &str = "overlay-dp.vni";

/// How long answers that are under way may take when the agent stops.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What `attach` was told about Docker.
#[derive(Clone, Debug)]
pub struct Options {
    /// The plugin's socket; `None` for no plugin.
    pub plugin: Option<PathBuf>,
    /// Docker's own socket.
    pub daemon: PathBuf,
}

/// What the handlers have.
struct Plugin {
    ctx: Ctx,
    store: Store,
    /// See [`ipam`].
    wish: Mutex<Option<ipam::Wish>>,
    client: Arc<Client>,
    /// Names are to be asked for, or networks to be told of.
    news: Notify,
}

/// The running plugin.
pub struct Docker {
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
    tasks: [JoinHandle<()>; 2],
    socket: PathBuf,
}

/// Serves Docker.
///
/// # Errors
/// When the socket can't be made.
pub(crate) fn start(socket: &Path, client: Arc<Client>, ctx: Ctx, store: Store) -> Result<Docker> {
    store.change(|book| {
        book.socket = Some(socket.to_owned());
        Ok(())
    })?;
    let listener = server::listen(socket)?;
    let plugin = Arc::new(Plugin {
        ctx,
        store,
        wish: Mutex::new(None),
        client,
        news: Notify::new(),
    });
    let tasks = [
        tokio::spawn(names::run(Arc::clone(&plugin))),
        tokio::spawn(everywhere::run(Arc::clone(&plugin))),
    ];
    let (stop, stopped) = oneshot::channel::<()>();
    let router = server::router(plugin);
    let served = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        if let Err(error) = served.await {
            tracing::error!(%error, "the Docker plugin ended");
        }
    });
    Ok(Docker {
        stop,
        served,
        tasks,
        socket: socket.to_owned(),
    })
}

impl Docker {
    /// Lets answers that are under way finish, and removes the socket.
    pub async fn stop(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(ANSWER_WAIT, self.served).await;
        remove_socket(&self.socket);
    }
}

/// What a dead agent left outside of its directories.
pub fn clean_up(state_dir: &Path) {
    if state_dir.join(book::FILE).exists()
        && let Ok(store) = Store::open(state_dir, true)
        && let Some(socket) = store.read(|book| book.socket.clone())
    {
        remove_socket(&socket);
    }
}

/// With the directories that were made for it, if nothing else is in them.
fn remove_socket(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::error!(socket = %socket.display(), %error, "can't remove the Docker plugin's socket");
    }
    let dirs = socket.ancestors().skip(1).take(2);
    let plugins = |dir: &&Path| dir.ends_with("docker/plugins") || dir.ends_with("run/docker");
    for dir in dirs.take_while(plugins) {
        if std::fs::remove_dir(dir).is_err() {
            break;
        }
    }
}

impl Plugin {
    /// An endpoint has come whose container is not known.
    fn names_wanted(&self) {
        self.news.notify_one();
    }
}
