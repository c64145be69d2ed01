//! The facts that the cluster's managers agree on: Raft around [`overlay_core::facts`], with its
//! log on disk.
#![forbid(unsafe_code)]
