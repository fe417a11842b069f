//! Leases on disk: restarts, earlier forms, full disks, damage; written anew in any order of steps.

use super::*;
use crate::broker::{BindKey, BindKind};
use crate::dhcp6s::plan::Life;
use crate::dhcp6s::shelf::NEVER;
use crate::dhcp6s::tidy::Tidy;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use sixway_dataplane::update::Ipv6Prefix;
use std::collections::BTreeMap;
use std::ops::Bound;

const BEGIN: (&str, u64, u64) = ("boot", 1000, 1_700_000_000);

/// A folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("sixway-ledger-{name}-{}", std::process::id())))
    }

    fn file(&self) -> PathBuf {
        self.0.join("leases.db")
    }

    fn open(&self) -> Ledger {
        Ledger::open(&self.file(), BEGIN).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone_or_not = std::fs::remove_dir_all(&self.0);
    }
}

/// The n-th of many.
fn nth(n: u32) -> Lease {
    let one = lease(&format!("2001:{:x}:{:x}::/48", n >> 16, n & 0xffff), "vs0", 5000, None);
    Lease { key: BindKey { client: n.to_be_bytes().repeat(4).into(), ..one.key }, ..one }
}

fn rows(ledger: &Ledger, what: &str) -> i64 {
    ledger.store.query_row(&format!("SELECT {what}"), [], |row| row.get(0)).unwrap()
}

fn lease(prefix: &str, link: &str, until: u64, peer: Option<&str>) -> Lease {
    Lease {
        key: BindKey {
            tunnel: link.into(),
            client: [0, 1, 2][..].into(),
            kind: BindKind::Prefix,
            number: u32::MAX,
        },
        prefix: prefix.parse().unwrap(),
        life: Life { preferred: 7, valid: 2_000_000_000 },
        until,
        peer: peer.map(|peer| peer.parse().unwrap()),
        reach: peer.map(|peer| peer.parse().unwrap()),
    }
}

fn page(changes: Vec<Change>) -> Page {
    Page { changes, ..Page::default() }
}

#[test]
fn what_is_written_is_there_the_next_time() {
    let folder = std::env::temp_dir().join(format!("sixway-ledger-{}", std::process::id()));
    let path = folder.join("leases.db");
    let a = lease("2001:db8:1::/48", "vs0", NEVER, Some("fe80::1"));
    let b = lease("2001:db8:2::/48", "vs1", 9000, None);
    let mut ledger = Ledger::open(&path, ("boot", 1000, 1_700_000_000)).unwrap();
    let proofs = Proofs::from([([0, 1][..].into(), u64::MAX - 1)]);
    let both = vec![Change::Has(a.clone()), Change::Has(b.clone())];
    ledger.write(&Page { proofs: proofs.clone(), ..page(both) }).unwrap();
    drop(ledger);
    // Somebody sets the calendar while no process runs.
    let mut ledger = Ledger::open(&path, ("boot", 2000, 1_800_000_000)).unwrap();
    assert_eq!(ledger.load("vs0", 2000).unwrap(), [a.clone(), b.clone()]);
    assert_eq!(ledger.load_proofs().unwrap(), proofs);
    let changes = vec![Change::Gone(a), Change::Has(Lease { until: 7000, ..b.clone() })];
    ledger.write(&Page { ahead: Some(1_900_000_000), ..page(changes) }).unwrap();
    drop(ledger);
    // The system was away for 100 s.
    let mut ledger = Ledger::open(&path, ("next", 50, 1_900_002_100)).unwrap();
    assert_eq!(ledger.load("vs0", 50).unwrap(), [Lease { until: 4950, ..b }]);
    assert_eq!(ledger.records(), 4);
    ledger.store.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(ledger);
    assert!(Ledger::open(&path, ("next", 50, 60)).unwrap_err().to_string().contains("format 99"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_file_of_the_old_form_is_taken_over_and_written_anew() {
    let folder = std::env::temp_dir().join(format!("sixway-ledger-old-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("leases.db");
    let old = Connection::open(&path).unwrap();
    let row = "INSERT INTO lease VALUES ('2001:db8:2::/48', x'000102', 'prefix', 4294967295, 7, 2000000000, 1700000100, NULL);";
    // One that says how long it lasts in no number that there is, and one that is no prefix, cost nobody else anything.
    let bad = "INSERT INTO lease VALUES ('2001:db8:1::/48', x'00', 'prefix', 1, 7, -8, 1700000100, NULL), ('?', x'', 'prefix', 1, 7, 8, 1, '');";
    old.execute_batch(&format!("{SCHEMA}{bad}{row}PRAGMA user_version = 1;")).unwrap();
    drop(old);
    let own = lease("2001:db8:2::/48", "vs0", 1100, None);
    let begin = ("boot", 1000, 1_700_000_000);
    let mut ledger = Ledger::open(&path, begin).unwrap();
    assert_eq!(ledger.load("vs0", 1000).unwrap(), std::slice::from_ref(&own));
    let next = Lease { until: 2000, ..own };
    ledger.write(&page(vec![Change::Has(next.clone())])).unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(&path, begin).unwrap();
    assert_eq!(ledger.load("vs0", 1000).unwrap(), std::slice::from_ref(&next), "the later one counts");
    let mut tidy = Tidy::default();
    tidy.look(ledger.records(), 1);
    assert!(tidy.is_due());
    let part = Part { leases: vec![next.clone()], is_first: true, is_last: true };
    ledger.write(&Page { part: Some(part), ..Page::default() }).unwrap();
    assert_eq!(ledger.records(), 1);
    drop(ledger);
    let mut ledger = Ledger::open(&path, begin).unwrap();
    assert_eq!((ledger.load("vs0", 1000).unwrap(), ledger.records()), (vec![next], 1));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn pages_of_the_version_before_are_read_and_others_follow() {
    let folder = Folder::new("before");
    let one = nth(1);
    std::fs::create_dir_all(&folder.0).unwrap();
    let mut records = Vec::new();
    record::emit_lease(&one, 1, |until| until as i64 + 1_699_999_000, &mut records);
    // There were no sums.
    records.truncate(records.len() - 4);
    let old = Connection::open(folder.file()).unwrap();
    let schema = [SCHEMA, FROM_1, FROM_2, FROM_3].concat();
    old.execute_batch(&format!("{schema}PRAGMA user_version = 4;")).unwrap();
    old.execute("INSERT INTO page VALUES (7, ?1)", [&records[..]]).unwrap();
    drop(old);
    let mut ledger = folder.open();
    assert_eq!(ledger.load("vs0", 1000).unwrap(), std::slice::from_ref(&one));
    ledger.write(&page(vec![Change::Has(nth(2))])).unwrap();
    drop(ledger);
    let mut ledger = folder.open();
    assert_eq!(ledger.load("vs0", 1000).unwrap(), [one.clone(), nth(2)]);
    // They are written anew at once, however few they are.
    let mut tidy = Tidy::default();
    tidy.look(ledger.records(), 2);
    assert!(tidy.is_due());
    // What is not whole is damage there too.
    ledger.store.execute("UPDATE page SET records = substr(records, 1, 40) WHERE number = 7", []).unwrap();
    assert!(ledger.load("vs0", 1000).unwrap_err().to_string().contains("page 7 is not as it was written"));
}

#[test]
fn a_batch_of_any_size_is_pages_of_a_bounded_one() {
    let folder = Folder::new("large");
    let all: Vec<Lease> = (0..40_000).map(nth).collect();
    let mut ledger = folder.open();
    ledger.write(&page(all.iter().cloned().map(Change::Has).collect())).unwrap();
    assert!(rows(&ledger, "count(*) FROM page") > 2);
    assert!(rows(&ledger, "max(length(records)) FROM page") <= PAGE as i64 + 200);
    ledger.write(&page(vec![Change::Gone(nth(3))])).unwrap();
    drop(ledger);
    let mut ledger = folder.open();
    let loaded = ledger.load("vs0", 1000).unwrap();
    assert_eq!(loaded.len(), 39_999);
    assert!(
        loaded.iter().all(|lease| all.contains(lease) || lease.key.number == 0) || loaded.len() < all.len()
    );
    assert_eq!(ledger.records(), 40_001);
}

#[test]
fn what_counts_no_more_goes_some_at_a_time() {
    let folder = Folder::new("stale");
    drop(folder.open());
    let store = Connection::open(folder.file()).unwrap();
    let numbers =
        |n| format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n})");
    let pages = "INSERT INTO page (number, count, records) SELECT i, 0, x'' FROM n";
    store.execute_batch(&format!("{} {pages}", numbers(2500))).unwrap();
    // And some large ones, whose records nobody reads any more.
    let large = "INSERT INTO page (number, count, records) SELECT i + 2500, 0, zeroblob(1 << 20) FROM n";
    store.execute_batch(&format!("{} {large}", numbers(10))).unwrap();
    let old = "INSERT INTO lease SELECT printf('2001:%x::/32', i), x'01', 'prefix', 1, 2, 3, 1, NULL, NULL, NULL FROM n";
    store.execute_batch(&format!("{} {old}", numbers(1500))).unwrap();
    drop(store);
    let mut ledger = folder.open();
    let part = Part { leases: vec![nth(1)], is_first: true, is_last: true };
    let mut kept = ledger.write(&Page { part: Some(part), ..Page::default() }).unwrap();
    assert_eq!(kept, Kept { records: 1, is_stale: true });
    let (mut left, mut batches) = ((1500, 2511), 0);
    while kept.is_stale {
        let now = (rows(&ledger, "count(*) FROM lease"), rows(&ledger, "count(*) FROM page"));
        assert!(left.0 - now.0 <= 1024 && left.1 - now.1 <= 1024, "{left:?} {now:?}");
        assert!(now.0 == 0 || now.1 == 2511, "the oldest go first");
        if now.0 == 0 && batches == 3 {
            // Whoever is killed now finds the same.
            drop(ledger);
            ledger = folder.open();
            assert!(ledger.load_sound("vs0", 1000).unwrap().0.contains(&nth(1)));
            let part = Part { leases: vec![nth(1)], is_first: true, is_last: true };
            ledger.write(&Page { part: Some(part), ..Page::default() }).unwrap();
        }
        (left, batches) = (now, batches + 1);
        kept = ledger.write(&Page::default()).unwrap();
    }
    assert!((4..9).contains(&batches), "{batches}");
    assert_eq!((rows(&ledger, "count(*) FROM lease"), rows(&ledger, "count(*) FROM page")), (0, 1));
    drop(ledger);
    assert_eq!(folder.open().load("vs0", 1000).unwrap(), [nth(1)]);
}

#[test]
fn damage_is_named_and_what_is_beside_it_is_read() {
    let folder = Folder::new("damage");
    let mut ledger = folder.open();
    for n in 0..6 {
        ledger.write(&page(vec![Change::Has(nth(2 * n)), Change::Has(nth(2 * n + 1))])).unwrap();
    }
    let sound = |without: &[u32]| (0..12).filter(|n| !without.contains(n)).map(nth).collect::<Vec<_>>();
    assert_eq!(ledger.load("vs0", 1000).unwrap(), sound(&[]));
    // A record less than was written.
    ledger.store.execute("UPDATE page SET count = 3 WHERE number = 2", []).unwrap();
    let said = ledger.load("vs0", 1000).unwrap_err().to_string();
    assert!(said.contains("page 2 is not as it was written, and 1 change of a lease with it"), "{said}");
    ledger.store.execute("UPDATE page SET count = 2 WHERE number = 2", []).unwrap();
    // A page of another place.
    let other = "UPDATE page SET records = (SELECT records FROM page WHERE number = 1) WHERE number = 3";
    ledger.store.execute(other, []).unwrap();
    let damage = Damage { first: 3, pages: 1, missing: 0, lost: 2, tables: Vec::new() };
    assert_eq!(ledger.load_sound("vs0", 1000).unwrap(), (sound(&[4, 5]), damage));
    // Pages that are not there at all.
    ledger.store.execute("DELETE FROM page WHERE number IN (4, 5)", []).unwrap();
    let damage = Damage { first: 3, pages: 3, missing: 2, lost: 2, tables: Vec::new() };
    assert_eq!(ledger.load_sound("vs0", 1000).unwrap(), (sound(&[4, 5, 6, 7, 8, 9]), damage));
    let said = ledger.load("vs0", 1000).unwrap_err().to_string();
    assert!(said.contains("3 pages, the first is 3") && said.contains("of 2 pages nobody knows"), "{said}");
}

#[test]
fn what_the_disk_has_done_to_sqlite_s_own_pages_is_damage_too() {
    let folder = Folder::new("torn");
    let mut ledger = folder.open();
    for n in 0..200 {
        ledger.write(&page(vec![Change::Has(nth(n))])).unwrap();
    }
    drop(ledger);
    let mut octets = std::fs::read(folder.file()).unwrap();
    let client = 100_u32.to_be_bytes().repeat(4);
    let at = octets.windows(16).position(|octets| octets == client).unwrap() / 4096 * 4096;
    octets[at..at + 4096].fill(0xee);
    std::fs::write(folder.file(), octets).unwrap();
    let mut ledger = folder.open();
    let (all, damage) = ledger.load_sound("vs0", 1000).unwrap();
    assert!((20..100).contains(&damage.pages) && damage.missing == damage.pages, "{damage}");
    assert_eq!(all.len() as u64 + damage.pages, 200, "all others are read, before it and behind it");
    assert!(all.contains(&nth(0)) && all.contains(&nth(199)) && !all.contains(&nth(100)));
    assert!(matches!(ledger.load("vs0", 1000), Err(LedgerError::Damaged { .. })));
}

/// The power goes while SQLite writes its log: whatever of it has come to the disk, batches are there up to some point, whole,
/// and nothing counts as damaged.
#[test]
fn a_batch_that_was_torn_was_never_written() {
    let (folder, torn) = (Folder::new("log"), Folder::new("log-torn"));
    let mut ledger = folder.open();
    // The format is in the file itself; the log has batches alone.
    drop(ledger);
    ledger = folder.open();
    for n in 0..5 {
        ledger.write(&page((n * 100..(n + 1) * 100).map(nth).map(Change::Has).collect())).unwrap();
    }
    let log = |file: PathBuf| PathBuf::from(format!("{}-wal", file.display()));
    let (file, written) = (std::fs::read(folder.file()).unwrap(), std::fs::read(log(folder.file())).unwrap());
    std::fs::create_dir_all(&torn.0).unwrap();
    let mut before = 0;
    for end in (0..=written.len()).step_by(1024).chain([written.len()]) {
        for rest in [0, 0x5e] {
            let mut octets = written[..end].to_vec();
            octets.resize(if rest == 0 { end } else { written.len() }, rest);
            std::fs::write(torn.file(), &file).unwrap();
            std::fs::write(log(torn.file()), octets).unwrap();
            let loaded = torn.open().load("vs0", 1000).unwrap();
            assert!(loaded.len() % 100 == 0 && loaded.len() >= before, "{} of {end}", loaded.len());
            assert!(loaded.iter().eq((0..loaded.len() as u32).map(nth).collect::<Vec<_>>().iter()));
            before = loaded.len();
        }
    }
    assert_eq!(before, 500);
}

#[test]
fn two_do_not_use_one_file() {
    let folder = Folder::new("two");
    let _one = folder.open();
    let said = Ledger::open(&folder.file(), BEGIN).unwrap_err().to_string();
    assert!(said.contains("another server uses it"), "{said}");
}

/// The system was started again, and nothing can be written.
#[test]
fn a_file_is_read_though_nothing_can_be_written() {
    let folder = Folder::new("full");
    let mut ledger = folder.open();
    ledger.write(&page(vec![Change::Has(nth(1))])).unwrap();
    drop(ledger);
    let store = Connection::open(folder.file()).unwrap();
    store.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA query_only = ON;").unwrap();
    let mut ledger = Ledger::begin(store, &folder.file(), ("next", 50, 1_700_001_000)).unwrap();
    let aged = |n| Lease { until: 5000 - 1000 - 950, ..nth(n) };
    assert_eq!(ledger.load("vs0", 50).unwrap(), [aged(1)]);
    assert!(ledger.write(&page(vec![Change::Has(aged(2))])).is_err());
    ledger.store.execute_batch("PRAGMA query_only = OFF").unwrap();
    ledger.write(&page(vec![Change::Has(aged(2))])).unwrap();
    drop(ledger);
    // The calendar is set; what was written counts from what was written with it.
    let mut ledger = Ledger::open(&folder.file(), ("next", 60, 1_800_000_000)).unwrap();
    assert_eq!(ledger.load("vs0", 60).unwrap(), [aged(1), aged(2)]);
}

/// The same on a disk that is really full, where this may mount one.
#[test]
fn a_full_disk_is_named_and_works_again_when_it_has_room() {
    let test = || {
        let folder = Folder::new("tmpfs");
        std::fs::create_dir_all(&folder.0).unwrap();
        let none = None::<&str>;
        let own = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(Some("tmpfs"), &folder.0, Some("tmpfs"), MsFlags::empty(), Some("size=2m")));
        if own.is_err() {
            return;
        }
        let mut ledger = folder.open();
        ledger.write(&page(vec![Change::Has(nth(1))])).unwrap();
        drop(ledger);
        let filler = folder.0.join("filler");
        let fill = || {
            let mut file = std::fs::File::create(&filler).unwrap();
            while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        };
        fill();
        let mut ledger = Ledger::open(&folder.file(), ("next", 50, 1_700_001_000)).unwrap();
        assert_eq!(ledger.load("vs0", 50).unwrap().len(), 1);
        let many = || page((0..200).map(nth).map(Change::Has).collect());
        let said = ledger.write(&many()).unwrap_err().to_string();
        assert!(said.contains("make room on the disk"), "{said}");
        std::fs::remove_file(&filler).unwrap();
        ledger.write(&many()).unwrap();
        drop(ledger);
        assert_eq!(folder.open().load("vs0", 1000).unwrap().len(), 200);
    };
    std::thread::spawn(test).join().unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u64),
    Drop(u8),
    Write,
    /// The disk is full, or the like.
    Fail,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<u8>(), 2000_u64..3000).prop_map(|(n, until)| Step::Put(n, until)),
        4 => any::<u8>().prop_map(Step::Drop),
        4 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Written anew in parts, beside changes, over failures and restarts: what is loaded is always what was written last,
    /// and there are never many more records than leases.
    #[test]
    fn nothing_is_lost_when_all_is_written_anew(steps in prop::collection::vec(step(), 0..120)) {
        let folder = std::env::temp_dir().join(format!("sixway-ledger-anew-{}", std::process::id()));
        let path = folder.join("leases.db");
        let begin = ("boot", 1000, 1_700_000_000);
        let mut ledger = Ledger::open(&path, begin).unwrap();
        // What is on the disk, what is so, and what has changed since.
        let (mut disk, mut now, mut changes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut last: Option<Ipv6Prefix> = None;
        for step in steps {
            match step {
                Step::Put(n, until) => {
                    let one = lease(&format!("2001:db8:{:x}::/48", n % 40), "vs0", until, None);
                    now.insert(one.prefix, one.clone());
                    changes.push(Change::Has(one));
                }
                Step::Drop(n) => {
                    let prefix: Ipv6Prefix = format!("2001:db8:{:x}::/48", n % 40).parse().unwrap();
                    changes.extend(now.remove(&prefix).map(Change::Gone));
                }
                Step::Write | Step::Fail => {
                    // Three at a time, without end.
                    let mut left = now.range((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
                    let leases: Vec<Lease> = left.by_ref().take(3).map(|(_, lease)| Lease::clone(lease)).collect();
                    let part = Part { leases, is_first: last.is_none(), is_last: left.next().is_none() };
                    let whole = Page { changes: changes.clone(), part: Some(part), ..Page::default() };
                    if matches!(step, Step::Fail) {
                        ledger.store.execute_batch("PRAGMA query_only = ON").unwrap();
                        prop_assert!(ledger.write(&whole).is_err());
                        ledger.store.execute_batch("PRAGMA query_only = OFF").unwrap();
                        continue;
                    }
                    ledger.write(&whole).unwrap();
                    let part = whole.part.unwrap();
                    last = part.leases.last().filter(|_| !part.is_last).map(|lease| lease.prefix);
                    changes.clear();
                    disk = now.clone();
                    prop_assert!(!part.is_last || ledger.records() <= 240, "{}", ledger.records());
                }
                Step::Restart => {
                    drop(ledger);
                    ledger = Ledger::open(&path, begin).unwrap();
                    let loaded: Vec<Lease> = ledger.load("vs0", 1000).unwrap();
                    prop_assert_eq!(loaded, disk.values().cloned().collect::<Vec<_>>());
                    (now, last) = (disk.clone(), None);
                    changes.clear();
                }
            }
        }
        let loaded: Vec<Lease> = ledger.load("vs0", 1000).unwrap();
        prop_assert_eq!(loaded, disk.into_values().collect::<Vec<_>>());
        drop(ledger);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// Where in the file the leaf is that has this lease, if any is left. (What has been a leaf has octets of it still.)
fn leaf_of(octets: &[u8], n: u32) -> Option<usize> {
    let client = [&[0, 16][..], &n.to_be_bytes().repeat(4)].concat();
    let has = |block: &[u8]| block[0] == 0x0d && block.windows(18).any(|octets| octets == client);
    octets.chunks(4096).position(has).map(|block| block * 4096)
}

/// Pages of numbers that no count from the beginning comes to.
fn old_ledger(folder: &Folder) -> Vec<u8> {
    let mut ledger = folder.open();
    ledger.is_so.last = 70_000;
    for n in 1..201 {
        ledger.write(&page(vec![Change::Has(nth(n))])).unwrap();
    }
    drop(ledger);
    std::fs::read(folder.file()).unwrap()
}

#[test]
fn whatever_block_is_damaged_what_is_in_the_others_is_read() {
    let folder = Folder::new("blocks");
    let sound = old_ledger(&folder);
    for bad in [vec![1], vec![200], vec![1, 200], vec![100], vec![40, 120, 200]] {
        let mut octets = sound.clone();
        for n in bad {
            let at = leaf_of(&sound, n).unwrap();
            octets[at..at + 4096].fill(0xee);
        }
        let left: Vec<Lease> = (1..201).filter(|n| leaf_of(&octets, *n).is_some()).map(nth).collect();
        assert!((50..200).contains(&left.len()));
        std::fs::write(folder.file(), &octets).unwrap();
        let said = Ledger::open(&folder.file(), BEGIN).and_then(|mut ledger| ledger.load("vs0", 1000));
        assert!(said.unwrap_err().to_string().contains("--mend-leases"));
        let _log = std::fs::remove_file(beside(&folder.file(), "-wal"));
        std::fs::write(folder.file(), &octets).unwrap();
        let mended = crate::dhcp6s::mend::mend(&folder.file(), "vs0", BEGIN).unwrap();
        assert_eq!(mended.damage.missing, 200 - left.len() as u64, "{}", mended.damage);
        assert_eq!(std::fs::read(mended.aside.unwrap()).unwrap(), octets, "nothing was done to it");
        assert_eq!(folder.open().load("vs0", 1000).unwrap(), left);
    }
}

#[test]
fn where_no_lease_can_be_read_nothing_takes_the_place_of_the_file() {
    let folder = Folder::new("nothing");
    let mut octets = old_ledger(&folder);
    octets[4096..].fill(0xee);
    std::fs::write(folder.file(), &octets).unwrap();
    let said = crate::dhcp6s::mend::mend(&folder.file(), "vs0", BEGIN).unwrap_err().to_string();
    assert!(said.contains("no lease in it can be read") && !said.contains("--mend-leases"), "{said}");
    assert_eq!(std::fs::read(folder.file()).unwrap(), octets);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1);
}

#[test]
fn what_is_in_the_log_alone_is_mended_too() {
    let (folder, other) = (Folder::new("killed"), Folder::new("killed-copy"));
    drop(folder.open());
    let mut ledger = folder.open();
    for n in 0..100 {
        ledger.write(&page((n * 10..n * 10 + 10).map(nth).map(Change::Has).collect())).unwrap();
    }
    let said = crate::dhcp6s::mend::mend(&folder.file(), "vs0", BEGIN).unwrap_err().to_string();
    assert!(said.contains("another server uses it"), "{said}");
    ledger.store.execute("UPDATE page SET count = 11 WHERE number = 7", []).unwrap();
    // It is killed.
    std::fs::create_dir_all(&other.0).unwrap();
    for more in ["", "-wal"] {
        std::fs::copy(beside(&folder.file(), more), beside(&other.file(), more)).unwrap();
    }
    let mended = crate::dhcp6s::mend::mend(&other.file(), "other", ("next", 5, 1_700_000_900)).unwrap();
    assert_eq!((mended.leases, mended.damage.lost), (1000, 1));
    let aside = mended.aside.unwrap();
    for (more, was) in [("", folder.file()), ("-wal", beside(&folder.file(), "-wal"))] {
        assert!(std::fs::read(beside(&aside, more)).unwrap() == std::fs::read(was).unwrap(), "{more}");
    }
    assert!(!beside(&other.file(), "-wal").exists() && !beside(&other.file(), "-shm").exists());
    assert_eq!(other.open().load("vs0", 1000).unwrap().len(), 1000);
}

#[test]
fn each_table_is_mended_for_itself() {
    let folder = Folder::new("tables");
    let mut ledger = folder.open();
    let proofs = Proofs::from([([0, 1][..].into(), 7)]);
    ledger.write(&Page { proofs: proofs.clone(), ..Page::default() }).unwrap();
    for n in 0..200 {
        ledger.write(&page(vec![Change::Has(nth(n))])).unwrap();
    }
    let names = ["clock", "lease", "proof", "span", "page"];
    let roots = names
        .map(|name| (name, rows(&ledger, &format!("rootpage FROM sqlite_schema WHERE name = '{name}'"))));
    drop(ledger);
    let sound = std::fs::read(folder.file()).unwrap();
    for (name, root) in roots {
        let mut octets = sound.clone();
        let at = (root as usize - 1) * 4096;
        octets[at..at + 4096].fill(0xee);
        std::fs::write(folder.file(), &octets).unwrap();
        let now = ("next", 1000, 1_700_000_500);
        let mended = crate::dhcp6s::mend::mend(&folder.file(), "vs0", now).unwrap();
        assert_eq!(
            (mended.leases, mended.damage.to_string()),
            (200, format!("SQLite cannot read all of `{name}`"))
        );
        assert_eq!(std::fs::read(mended.aside.unwrap()).unwrap(), octets);
        let mut ledger = Ledger::open(&folder.file(), now).unwrap();
        assert_eq!(ledger.load("vs0", 1000).unwrap().len(), 200, "{name}");
        assert_eq!(ledger.load_proofs().unwrap().len(), usize::from(name != "proof"));
    }
}

#[test]
fn first_and_last_pages_that_are_gone_are_missed() {
    for (gone, is_found) in [("number <= 3", 3), ("number > 3", 3), ("true", 0)] {
        let folder = Folder::new("ends");
        let mut ledger = folder.open();
        for n in 0..6 {
            ledger.write(&page(vec![Change::Has(nth(n))])).unwrap();
        }
        ledger.store.execute(&format!("DELETE FROM page WHERE {gone}"), []).unwrap();
        drop(ledger);
        let (all, damage) = folder.open().load_sound("vs0", 1000).unwrap();
        assert_eq!((all.len(), damage.missing), (is_found, 6 - is_found as u64), "{gone}");
    }
    // A file of the format before has no note of them, and has one after the first batch.
    let folder = Folder::new("ends-before");
    let mut ledger = folder.open();
    ledger.write(&page(vec![Change::Has(nth(1))])).unwrap();
    ledger.store.execute_batch("DROP TABLE span; PRAGMA user_version = 5").unwrap();
    drop(ledger);
    let mut ledger = folder.open();
    assert_eq!(ledger.load("vs0", 1000).unwrap(), [nth(1)]);
    ledger.write(&page(vec![Change::Has(nth(2))])).unwrap();
    assert_eq!((rows(&ledger, "first FROM span"), rows(&ledger, "last FROM span")), (1, 2));
}

/// Mended where there is room for some of the new file: it is whole, or the damaged one stays.
#[test]
fn a_nearly_full_disk_never_has_half_a_mended_file() {
    let test = || {
        let folder = Folder::new("mend-full");
        std::fs::create_dir_all(&folder.0).unwrap();
        let none = None::<&str>;
        let own = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(Some("tmpfs"), &folder.0, Some("tmpfs"), MsFlags::empty(), Some("size=8m")));
        if own.is_err() {
            return;
        }
        let mut ledger = folder.open();
        for n in 0..40 {
            ledger.write(&page((n * 400..(n + 1) * 400).map(nth).map(Change::Has).collect())).unwrap();
        }
        ledger.store.execute("UPDATE page SET count = count + 1 WHERE number = 7", []).unwrap();
        drop(ledger);
        let damaged = std::fs::read(folder.file()).unwrap();
        let free = nix::sys::statvfs::statvfs(&folder.0).unwrap();
        let free = free.blocks_available() * free.fragment_size();
        let mut results = Vec::new();
        for tenths in [1, 5, 9, 10, 11, 12, 13, 14, 20] {
            let room = damaged.len() as u64 * tenths / 10;
            std::fs::write(folder.0.join("filler"), vec![0; (free - room) as usize]).unwrap();
            let mended = crate::dhcp6s::mend::mend(&folder.file(), "vs0", BEGIN);
            std::fs::remove_file(folder.0.join("filler")).unwrap();
            results.push(mended.is_ok());
            match mended {
                Err(why) => {
                    let said = why.to_string();
                    assert!(said.contains("octets of free room"), "{said}");
                    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left of it");
                }
                Ok(mended) => {
                    assert_eq!(folder.open().load("vs0", 1000).unwrap().len(), 16_000);
                    std::fs::rename(mended.aside.unwrap(), folder.file()).unwrap();
                }
            }
            assert!(std::fs::read(folder.file()).unwrap() == damaged);
        }
        assert!(!results[0] && results[5..].iter().all(|done| *done), "{results:?}");
    };
    std::thread::spawn(test).join().unwrap();
}
