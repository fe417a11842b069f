//! Every interleaving, within a bound, of a writer that reuses records and readers that may still hold them.
//!
//! Runs the very code of `table::slab`, `table::index` and `table::qsbr` on loom's atomics, then the editor and reader above
//! them. The protocol: unpublish, retire, wait until every reader has passed, only then write again. Broken
//! variants of it must be caught, or the model would prove nothing.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p sixway-dataplane --release --test publication_loom`
#![cfg(loom)]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use loom::sync::Arc;
use loom::thread;
use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::table::index::Index;
use sixway_dataplane::table::qsbr::Quiescence;
use sixway_dataplane::table::slab::{Encap, Entry, Learn, NONE, Owner, Path, Slab};
use sixway_dataplane::table::{Reader, tables};
use sixway_dataplane::update::{Ipv6Prefix, Outer, Tunnel, TunnelId, Update};

/// As many as finish in seconds; the broken variants need fewer.
const PREEMPTIONS: usize = 4;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(run);
}

/// A record of which every word follows from `n`; the prefix is the same for odd and for even `n`.
fn record(n: u32) -> Entry {
    let path = Path {
        tunnel: TunnelId(n),
        encap: Encap::Udp,
        mtu: n as u16,
        remote: Ipv4Addr::from(n),
        remote_port: n as u16,
        local: Ipv4Addr::from(n),
        local_port: n as u16,
        socket: n as u16,
        learn: Learn::Never,
        manners: Default::default(),
    };
    Entry { bits: key(n), len: 64, owner: Owner::Tunnel(path), next: NONE }
}

fn key(n: u32) -> u128 {
    u128::from(n % 2 + 1) << 64
}

/// Where both keys start their search: in the same slot, so that each search passes the other's records.
const HASH: u64 = 3;

struct Table {
    slab: Slab,
    index: Index,
    quiescence: Quiescence,
}

impl Table {
    /// Record 1 lies in place 0 and can be found.
    fn new(readers: usize) -> Arc<Self> {
        let table =
            Self { slab: Slab::new(4), index: Index::for_items(2), quiescence: Quiescence::new(readers) };
        assert!(table.slab.write(0, &record(1)));
        table.index.insert(HASH, 0);
        Arc::new(table)
    }

    /// Puts record 3, of the same prefix, in place 1 and takes place 0 out. Returns the stamp to wait for.
    fn supersede(&self) -> u64 {
        assert!(self.slab.write(1, &record(3)));
        assert!(self.index.replace(HASH, 0, 1));
        self.quiescence.retire()
    }

    /// Puts record 2, of another prefix, where record 1 was.
    fn reuse(&self) {
        assert!(self.slab.write(0, &record(2)));
        self.index.insert(HASH, 0);
    }

    fn find(&self) -> u32 {
        self.index.find(HASH, |n| self.slab.prefix(n) == Some((key(1), 64))).expect("missed")
    }

    /// What a reader that has found place `number` makes of it.
    fn look(&self, number: u32) {
        let entry = self.slab.read(number).unwrap();
        assert!(entry == record(1) || entry == record(3), "half a record, or another's: {entry:?}");
    }

    fn look_once(&self) {
        self.look(self.find());
    }
}

/// Looks twice whether the readers have passed. The yield matters: loom does not see by itself that a reader's store to
/// what it has just loaded (`quiescent`) could have come before the writer's look at it.
fn write_patiently(table: &Table) -> bool {
    let stamp = table.supersede();
    for _ in 0..2 {
        if table.quiescence.passed() >= stamp {
            table.reuse();
            return true;
        }
        thread::yield_now();
    }
    false
}

/// Runs the model with a writer that keeps to the protocol, and makes sure that it has both waited and reused.
fn patient(readers: usize, read: fn(&Table, usize)) {
    static OUTCOMES: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    let before = OUTCOMES.each_ref().map(|o| o.load(Ordering::Relaxed));
    model(move || {
        let table = Table::new(readers);
        let threads = (0..readers).map(|who| {
            let table = table.clone();
            thread::spawn(move || read(&table, who))
        });
        let threads: Vec<_> = threads.collect();
        let reused = write_patiently(&table);
        OUTCOMES[usize::from(reused)].fetch_add(1, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    let after = OUTCOMES.each_ref().map(|o| o.load(Ordering::Relaxed));
    assert!(before.iter().zip(after).all(|(before, after)| after > *before), "{before:?} {after:?}");
}

/// The same with a writer and a reader of which one does not keep to it.
fn broken(read: fn(&Table), write: fn(&Table)) {
    model(move || {
        let table = Table::new(1);
        let shared = table.clone();
        let reader = thread::spawn(move || read(&shared));
        write(&table);
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_between_batches_holds_nothing() {
    patient(1, |table, who| {
        table.quiescence.online(who);
        table.look_once();
        table.quiescence.quiescent(who);
        table.look_once();
        table.quiescence.offline(who);
    });
}

#[test]
fn a_reader_that_slept_holds_nothing() {
    patient(1, |table, who| {
        table.quiescence.online(who);
        table.look_once();
        table.quiescence.offline(who);
        table.quiescence.online(who);
        table.look_once();
        table.quiescence.offline(who);
    });
}

#[test]
fn every_reader_is_waited_for() {
    patient(2, |table, who| {
        table.quiescence.online(who);
        table.look_once();
        table.quiescence.offline(who);
    });
}

fn read_properly(table: &Table) {
    table.quiescence.online(0);
    table.look_once();
    table.quiescence.offline(0);
}

#[test]
#[should_panic(expected = "half a record")]
fn a_writer_that_does_not_wait_is_caught() {
    broken(read_properly, |table| {
        table.supersede();
        table.reuse();
    });
}

#[test]
#[should_panic(expected = "half a record")]
fn a_writer_that_waits_for_the_last_stamp_only_is_caught() {
    broken(read_properly, |table| {
        let stamp = table.supersede();
        if table.quiescence.passed() >= stamp - 1 {
            table.reuse();
        }
    });
}

#[test]
#[should_panic(expected = "half a record")]
fn a_reader_that_does_not_say_that_it_reads_is_caught() {
    broken(Table::look_once, |table| {
        write_patiently(table);
    });
}

#[test]
#[should_panic(expected = "half a record")]
fn a_reader_that_keeps_a_number_is_caught() {
    let keep = |table: &Table| {
        table.quiescence.online(0);
        let number = table.find();
        table.quiescence.quiescent(0);
        table.look(number);
        table.quiescence.offline(0);
    };
    broken(keep, |table| {
        write_patiently(table);
    });
}

// ---- the same through the editor ----

fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::from(key(1)), 64).unwrap()
}

fn remote(id: u32, mtu: u16) -> Ipv4Addr {
    Ipv4Addr::from(id << 16 | u32::from(mtu))
}

fn tunnel(id: u32, mtu: u16, prefixes: Vec<Ipv6Prefix>) -> Update {
    let outer = Outer::Proto41 { local: None, remote: remote(id, mtu) };
    Update::Upsert(Tunnel { id: TunnelId(id), outer, prefixes, mtu, manners: Default::default() })
}

fn look(reader: &mut Reader) {
    let entry = reader.view().longest_match(prefix().addr()).expect("missed");
    let path = entry.owner.path().unwrap();
    assert_eq!(path.remote, remote(path.tunnel.0, path.mtu), "half a record: {path:?}");
}

#[test]
fn the_editor_moves_a_prefix_and_reuses_its_records() {
    model(|| {
        let (mut editor, mut readers) = tables(2, 1, 1);
        editor.apply(&[tunnel(0, 2000, vec![prefix()])]).unwrap();
        let mut reader = readers.pop().unwrap();
        let thread = thread::spawn(move || {
            reader.online();
            look(&mut reader);
            reader.quiescent();
            look(&mut reader);
        });
        editor.apply(&[tunnel(0, 2001, vec![]), tunnel(1, 3000, vec![prefix()])]).unwrap();
        editor.apply(&[tunnel(1, 3001, vec![prefix()])]).unwrap();
        thread.join().unwrap();
    });
}

// ---- the same where prefixes have direct slots ----

/// The `n`th of eight prefixes side by side: just so near that the first and the last share a block.
fn neighbour(n: u32) -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(n) << 64), 64).unwrap()
}

/// Tunnel 0 has neighbour 0 and tunnel 1 neighbour 7, in one batch, which makes a block.
fn block() -> (Editor, Reader) {
    let (mut editor, mut readers) = tables(4, 1, 1);
    editor.apply(&[tunnel(0, 2000, vec![neighbour(0)]), tunnel(1, 2000, vec![neighbour(7)])]).unwrap();
    (editor, readers.pop().unwrap())
}

/// Whose neighbour 0 is; never a record of another prefix, and none that is half written.
fn holder(reader: &mut Reader) -> Option<u32> {
    let entry = reader.view().longest_match(neighbour(0).addr())?;
    assert_eq!(entry.prefix(), Some(neighbour(0)), "another's record");
    let path = entry.owner.path().expect("another's record");
    assert_eq!(path.remote, remote(path.tunnel.0, path.mtu), "half a record: {path:?}");
    Some(path.tunnel.0)
}

/// A reader that looks in two batches while the editor does `change`.
fn reading(prepare: fn() -> (Editor, Reader), look: fn(&mut Reader), change: fn(&mut Editor)) {
    model(move || {
        let (mut editor, mut reader) = prepare();
        let thread = thread::spawn(move || {
            reader.online();
            look(&mut reader);
            reader.quiescent();
            look(&mut reader);
            reader.offline();
        });
        change(&mut editor);
        thread.join().unwrap();
    });
}

fn look_for_a_holder(reader: &mut Reader) {
    holder(reader).expect("missed");
}

fn pass_on(editor: &mut Editor) {
    editor.apply(&[tunnel(0, 2001, vec![]), tunnel(2, 3000, vec![neighbour(0)])]).unwrap();
    editor.apply(&[tunnel(1, 3001, vec![neighbour(7)])]).unwrap();
}

#[test]
fn a_slot_passes_to_another_tunnel_and_its_record_is_reused() {
    reading(block, look_for_a_holder, pass_on);
}

#[test]
fn a_slot_is_emptied_and_its_record_is_reused() {
    let look = |reader: &mut Reader| assert!(matches!(holder(reader), None | Some(0)));
    reading(block, look, |editor| {
        // A neighbour more, so that the block stays.
        editor.apply(&[tunnel(2, 2000, vec![neighbour(3)])]).unwrap();
        editor.apply(&[Update::Remove(TunnelId(0))]).unwrap();
        editor.apply(&[tunnel(1, 3001, vec![neighbour(7)])]).unwrap();
    });
}

#[test]
fn a_hashed_prefix_moves_into_a_block() {
    let hashed = || {
        let (mut editor, mut readers) = tables(4, 1, 1);
        editor.apply(&[tunnel(0, 2000, vec![neighbour(0)])]).unwrap();
        (editor, readers.pop().unwrap())
    };
    reading(hashed, look_for_a_holder, |editor| {
        editor.apply(&[tunnel(1, 2000, vec![neighbour(1)]), tunnel(2, 2000, vec![neighbour(2)])]).unwrap();
        editor.apply(&[tunnel(0, 2001, vec![neighbour(0)])]).unwrap();
        editor.apply(&[tunnel(1, 2001, vec![neighbour(1)])]).unwrap();
    });
}

#[test]
fn a_prefix_leaves_a_block_that_is_given_up() {
    reading(block, look_for_a_holder, |editor| {
        editor.apply(&[Update::Remove(TunnelId(1))]).unwrap();
        editor.apply(&[tunnel(0, 2001, vec![neighbour(0)])]).unwrap();
        editor.apply(&[tunnel(2, 2001, vec![neighbour(5)])]).unwrap();
    });
}

#[test]
#[should_panic(expected = "record")]
fn a_reader_of_a_block_that_does_not_say_that_it_reads_is_caught() {
    model(|| {
        let (mut editor, mut reader) = block();
        let thread = thread::spawn(move || look_for_a_holder(&mut reader));
        pass_on(&mut editor);
        thread.join().unwrap();
    });
}
