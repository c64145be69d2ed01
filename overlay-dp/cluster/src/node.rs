//! One host at run time: the state that all its tasks share, and the way every change takes
//! through it. Locks are held for computing only, never across an await, and `swim` before `book`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use overlay_core::facts::{Facts, FactsNews, Version};
use overlay_core::model::{Host, HostId};
use parking_lot::Mutex;
use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::Event;
use crate::error::Error;
use crate::managers::{self, Raft};
use crate::pki::Identity;
use crate::state::Store;
use crate::transport::{self, Goodbye};
use crate::wire::HostInfo;
use crate::{control, gossip};
