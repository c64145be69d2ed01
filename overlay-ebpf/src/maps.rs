//! The maps, and how the verdicts read them. The agent is the only writer, counters and what
//! programs note for themselves excepted.
//!
//! All are pinned by name, so that a program loaded by the next agent sees what the last one
//! wrote. The hash maps are not preallocated: an idle host pays only for buckets, and an element
//! that is replaced or deleted stays as it was for whoever still looks at it.

use core::arch::asm;
use core::hint::assert_unchecked;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, XskMap};
use overlay_common::bulk::Bulk;
use overlay_common::counters::{DropReason, Stat};
use overlay_common::layout::{
    Config, EntranceEntry, FdbEntry, FdbKey, FlowKey, NeighbourEntry, NeighbourKey, NetworkEntry,
    PortEntry, VtepEntry,
};
use overlay_common::policy::{PolicyEntry, Seen};
use overlay_common::punt::CRYPT_QUEUES;
use overlay_common::rate;
use overlay_common::service;
use overlay_common::verdict::Tables;
use overlay_common::wire::Ip16;

#[map]
static OVL_CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
static OVL_PORTS: HashMap<u32, PortEntry> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
static OVL_NETWORKS: HashMap<u32, NetworkEntry> = HashMap::pinned(1 << 16, BPF_F_NO_PREALLOC);
#[map]
static OVL_FDB: HashMap<FdbKey, FdbEntry> = HashMap::pinned(1 << 20, BPF_F_NO_PREALLOC);
#[map]
static OVL_NEIGHBOURS: HashMap<NeighbourKey, NeighbourEntry> =
    HashMap::pinned(1 << 20, BPF_F_NO_PREALLOC);
#[map]
static OVL_VTEPS: HashMap<Ip16, VtepEntry> = HashMap::pinned(1 << 16, BPF_F_NO_PREALLOC);
/// Written by the programs. Of so many flows from outside the answers find their way back; then
/// those that were silent longest are forgotten first. Nothing ends by time.
#[map]
static OVL_ENTRANCES: LruHashMap<FlowKey, EntranceEntry> = LruHashMap::pinned(1 << 17, 0);
#[map]
static OVL_POLICIES: HashMap<u32, PolicyEntry> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
/// Written by the programs: what policed endpoints have begun. Nothing ends by time here, either.
#[map]
static OVL_BEGUN: LruHashMap<service::FlowKey, u32> = LruHashMap::pinned(1 << 16, 0);
/// Written by the programs: by ifindex, when what a port has sent is paid for. Room for more ports
/// than there can be, so that none loses its place to another.
#[map]
static OVL_BUCKETS: LruHashMap<u32, u64> = LruHashMap::pinned(1 << 14, 0);
#[map]
static OVL_DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DropReason::COUNT as u32, 0);
#[map]
static OVL_STATS: PerCpuArray<u64> = PerCpuArray::pinned(Stat::COUNT as u32, 0);
#[map]
pub static OVL_XSKS: XskMap = XskMap::pinned(1 + CRYPT_QUEUES, 0);

/// What policies see of the frame that is judged: here, because the stack has no room for it.
#[map]
static OVL_SEEN: PerCpuArray<Seen> = PerCpuArray::with_max_entries(1, 0);

/// Ports by their ifindex, of which several may share a slot: no harm, but a longer way for some.
/// What an agent's programs have counted is of no use to the next one's.
#[map]
pub static OVL_BULK: PerCpuArray<Bulk> = PerCpuArray::with_max_entries(BULK_SLOTS, 0);
/// See [`OVL_BULK`].
pub const BULK_SLOTS: u32 = 256;

/// Counts an event.
#[inline(always)]
pub fn count(stat: Stat) {
    add_one(&OVL_STATS, stat as u32);
}

/// Counts a drop.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    add_one(&OVL_DROPS, reason as u32);
}

#[inline(always)]
fn add_one(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: an aligned u64 that lives as long as the map, which outlives the program's run.
        // The slot is this CPU's, and softirqs, in which these programs run, do not interrupt
        // one another, so nobody else writes it; the agent only reads.
        unsafe { *counter += 1 };
    }
}

/// Reminds the compiler, which has forgotten it behind the lookup, that it may read the addresses in
/// an entry by words.
#[inline(always)]
fn aligned<T>(entry: &T) -> &T {
    // SAFETY: a reference's address is a multiple of its type's alignment.
    unsafe { assert_unchecked((&raw const *entry).is_aligned()) };
    entry
}

/// The maps as the verdicts see them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        // An array's elements exist, as zeros, before they are written.
        OVL_CONFIG
            .get(0)
            .map(aligned)
            .filter(|config| config.punt_ifindex != 0)
    }

    // SAFETY of the lookups: a program runs inside an RCU read section. Without preallocation the
    // kernel never changes an element in place: an update puts a new one in, and the old one is
    // freed after the section's end, hence after the last use of the reference. Keys and values
    // are plain bytes without padding.

    #[inline(always)]
    fn port(&self, ifindex: u32) -> Option<&PortEntry> {
        // SAFETY: as above.
        unsafe { OVL_PORTS.get(ifindex) }.map(aligned)
    }

    #[inline(always)]
    fn network(&self, vni: u32) -> Option<&NetworkEntry> {
        // SAFETY: as above.
        unsafe { OVL_NETWORKS.get(vni) }
    }

    #[inline(always)]
    fn fdb(&self, key: &FdbKey) -> Option<&FdbEntry> {
        // SAFETY: as above.
        unsafe { OVL_FDB.get(key) }.map(aligned)
    }

    #[inline(always)]
    fn neighbour(&self, key: &NeighbourKey) -> Option<&NeighbourEntry> {
        // SAFETY: as above.
        unsafe { OVL_NEIGHBOURS.get(key) }
    }

    #[inline(always)]
    fn vtep(&self, ip: &Ip16) -> Option<&VtepEntry> {
        // SAFETY: as above.
        unsafe { OVL_VTEPS.get(ip) }.map(aligned)
    }

    // Unlike the others it keeps room for all its elements and uses them again. An entry that
    // becomes another flow's while it is read gives a MAC that no router has, or another's: a frame
    // that goes astray once.

    #[inline(always)]
    fn entrance(&self, flow: &FlowKey) -> Option<&EntranceEntry> {
        // SAFETY: the map's memory outlives the program's run; any bytes are an entry.
        unsafe { OVL_ENTRANCES.get(flow) }
    }

    #[inline(always)]
    fn set_entrance(&self, flow: &FlowKey, entry: &EntranceEntry) {
        // It fails only when other CPUs hold all that could be reused: the next packet tries again.
        let _ = OVL_ENTRANCES.insert(flow, entry, 0);
    }

    #[inline(always)]
    fn policy(&self, port: u32) -> Option<&PolicyEntry> {
        // SAFETY: as with the tables above.
        unsafe { OVL_POLICIES.get(port) }
    }

    #[inline(always)]
    fn has_begun(&self, flow: &service::FlowKey) -> bool {
        // SAFETY: nothing is read through it.
        unsafe { OVL_BEGUN.get(flow) }.is_some()
    }

    #[inline(always)]
    fn with_seen<R>(&self, then: impl FnOnce(&mut Seen) -> R) -> Option<R> {
        let seen = OVL_SEEN.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element, which outlives the program's run; zeros and what was written here are a
        // `Seen`. Nothing else uses it meanwhile: programs run with bottom halves off, one after the other, and
        // `then` is never called inside of another.
        Some(then(unsafe { &mut *seen }))
    }

    #[inline(always)]
    fn set_begun(&self, flow: &service::FlowKey) {
        // As with entrances.
        let _ = OVL_BEGUN.insert(flow, 1, 0);
    }

    #[inline(never)]
    fn charge(&self, port: u32, entry: &PortEntry, len: u32) -> bool {
        /// Other CPUs that come first, each of which has sent something.
        const TRIES: u32 = 8;
        if entry.rate == 0 {
            return true;
        }
        let Some(paid) = OVL_BUCKETS.get_ptr_mut(port) else {
            // The first packet of a port. Whoever writes it twice gives away one burst.
            let _ = OVL_BUCKETS.insert(port, 0, 0);
            return true;
        };
        // SAFETY: the helper takes nothing.
        let now = unsafe { bpf_ktime_get_ns() };
        let cost = rate::cost(len, entry.rate);
        // SAFETY: an aligned u64 in the map, which outlives the program's run.
        let mut old = unsafe { paid.read_volatile() };
        let mut tries = 0;
        while tries < TRIES {
            let Some(new) = rate::take(old, now, cost, entry.burst_ns) else {
                return false;
            };
            // SAFETY: as above; all that write it do so here.
            let found = unsafe { compare_exchange(paid, old, new) };
            if found == old {
                return true;
            }
            old = found;
            tries += 1;
        }
        false
    }
}

/// Writes `new` to a word that is `old`; returns what it was. The compiler knows no such operation for
/// this target, the kernel does since 5.12.
///
/// # Safety
/// `word` must point to an aligned u64 in a map.
#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let found;
    // SAFETY: one instruction, which reads and writes the word, as the caller promises, and r0.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inlateout("r0") old => found,
            options(nostack),
        );
    }
    found
}
