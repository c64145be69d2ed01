//! Missing capabilities and limits. Capabilities are a thread's; the limit is the process's, and stays
//! lowered, which does not concern the other tests because root has CAP_IPC_LOCK.

use std::thread;

use overlay_xsk::{Xsk, XskConfig, XskError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::lab::{is_root, shout};

const HARD: u64 = 2 << 20;
const FITS: u32 = 256; // frames: 1 MiB
const TOO_MANY: u32 = 4096; // frames: 16 MiB

/// Binds on a thread which has all capabilities but these. Without an interface, so that nothing is
/// touched: `NoDevice` means that all before it went well.
fn bind_without(dropped: CapabilitySet, frame_count: u32) -> XskError {
    let bind = move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(dropped);
        sets.permitted.remove(dropped);
        sets.inheritable.remove(dropped);
        set_capabilities(None, sets).unwrap();
        Xsk::bind(&XskConfig {
            frame_count,
            ..XskConfig::new(u32::MAX >> 1, 0)
        })
        .unwrap_err()
    };
    thread::spawn(bind).join().unwrap()
}

#[test]
fn without_net_raw_it_is_not_permitted() {
    let error = bind_without(CapabilitySet::NET_RAW, FITS);
    assert!(matches!(error, XskError::NotPermitted), "{error}");
    assert!(error.to_string().contains("CAP_NET_RAW"));
}

#[test]
fn memlock_is_raised_as_far_as_it_goes_and_then_named() {
    if !is_root() {
        return;
    }
    let set = |current| {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(HARD),
        };
        setrlimit(Resource::Memlock, limit).unwrap();
    };
    let soft = || getrlimit(Resource::Memlock).current;
    let neither = CapabilitySet::IPC_LOCK | CapabilitySet::SYS_RESOURCE;

    set(1 << 16);
    let error = bind_without(CapabilitySet::SYS_RESOURCE, TOO_MANY);
    assert!(
        matches!(error, XskError::NoDevice { .. }),
        "CAP_IPC_LOCK needs no limit: {error}"
    );
    assert_eq!(
        soft(),
        Some(1 << 16),
        "a limit that is not in the way stays as it is"
    );

    let error = bind_without(neither, FITS);
    assert!(matches!(error, XskError::NoDevice { .. }), "{error}");
    assert_eq!(soft(), Some(HARD));

    set(1 << 16);
    let error = bind_without(neither, TOO_MANY);
    assert!(
        matches!(
            error,
            XskError::Memlock {
                needed: 0x100_0000,
                limit: HARD
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("LimitMEMLOCK=infinity"),
        "{error}"
    );

    if capabilities(None)
        .unwrap()
        .effective
        .contains(CapabilitySet::SYS_RESOURCE)
    {
        let error = bind_without(CapabilitySet::IPC_LOCK, TOO_MANY);
        assert!(matches!(error, XskError::NoDevice { .. }), "{error}");
        assert_eq!(soft(), None);
    } else {
        shout("NOT SHOWN: raising the hard limit, which needs CAP_SYS_RESOURCE");
    }
}
