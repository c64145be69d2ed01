//! The binary as a plugin of container runtimes: CNI and netavark. Each call asks the agent and
//! prints what its protocol wants; nothing is kept here.

mod alone;
mod cni;
pub(crate) mod fuzzing;
mod netavark;
pub(crate) mod network;
mod ports;

use std::ffi::OsString;
use std::process::ExitCode;

/// Does what a runtime asks for, if it is one that calls.
///
/// CNI says what it wants in the environment and gives no arguments; netavark's verbs are none of
/// the command line's. So the file may be called as the runtime likes to call its plugins.
pub fn called() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    if words.len() != args.len() {
        return None;
    }
    match &words[..] {
        [] if std::env::var_os("CNI_COMMAND").is_some() => Some(cni::main()),
        _ => netavark::Call::parse(&words).map(netavark::main),
    }
}

/// One thread is enough for one question.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}
