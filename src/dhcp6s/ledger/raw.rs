//! Rows of pages straight out of SQLite's file and its log, whatever is left of the tree that leads to them: each leaf is found
//! by its own first octet. So damage to one block costs what is in that block.
//!
//! ```text
//!   leaf of a table     0x0d | - 2 | cells 2 | - 3 | where each begins 2 ...
//!   cell                octets of payload v | number v | payload, or its beginning and the block of the rest 4
//!   payload             octets of header v | type of each column v ... | columns: -, records, count
//! ```
//!
//! (SQLite's file format, sections 1.6, 2.1 and 4.1.) What is found is told apart from what only looks like it by its types here,
//! and by the sum of each record by whoever reads it. Knows nothing of leases; reads alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The first octet of a leaf of a table.
const LEAF: u8 = 0x0d;
/// Octets of a row's payload that are believed: pages have far less.
const LARGEST: usize = 16 << 20;

/// How many records a row says that it has (negative: it cannot be read), and they.
pub(super) type Row = (Option<i64>, Vec<u8>);

/// SQLite's file, in blocks of one size, and which of them are newer in its log.
struct Blocks {
    file: File,
    log: Option<File>,
    size: usize,
    number: u32,
    newer: BTreeMap<u32, u64>,
}

/// All rows of pages that can be found, by their numbers. Takes as much memory as they have octets.
///
/// # Errors
/// The file cannot be opened. What cannot be read in it is left out.
pub(super) fn rows(path: &Path) -> io::Result<BTreeMap<i64, Row>> {
    let blocks = Blocks::open(path)?;
    let mut all = BTreeMap::<i64, Row>::new();
    // The first block has the schema.
    for number in 2..=blocks.number {
        let Some(block) = blocks.block(number).filter(|block| block.first() == Some(&LEAF)) else { continue };
        let cells = usize::from(be16(&block, 3).unwrap_or(0));
        for n in 0..cells {
            let Some(at) = be16(&block, 8 + 2 * n) else { break };
            let Some((number, row)) = blocks.row(&block, at.into()) else { continue };
            // Of what there is twice, for SQLite moves rows, one may have lost its end.
            if all.get(&number).is_none_or(|(_, had)| had.len() < row.1.len()) {
                all.insert(number, row);
            }
        }
    }
    Ok(all)
}

impl Blocks {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut header = [0; 100];
        // A shorter file has no blocks.
        let _read = file.read_exact_at(&mut header, 0);
        let size = match be16(&header, 16) {
            Some(1) => 65_536,
            Some(size) if size.is_power_of_two() && size >= 512 => size.into(),
            _ => 4096,
        };
        let number = u32::try_from(file.metadata()?.len() / size as u64).unwrap_or(u32::MAX);
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let log = File::open(Path::new(&log)).ok();
        let mut blocks = Self { file, log, size, number, newer: BTreeMap::new() };
        blocks.read_log();
        Ok(blocks)
    }

    /// Which blocks of whole batches the log has.
    fn read_log(&mut self) -> Option<()> {
        let log = self.log.as_ref()?;
        let (mut header, mut frame) = ([0; 32], [0; 24]);
        log.read_exact_at(&mut header, 0).ok()?;
        let (mut at, mut batch) = (32, Vec::new());
        while log.read_exact_at(&mut frame, at).is_ok() && frame[8..16] == header[16..24] {
            batch.push((be32(&frame, 0)?, at + 24));
            if be32(&frame, 4)? != 0 {
                self.newer.extend(batch.drain(..));
            }
            at += 24 + self.size as u64;
        }
        let highest = self.newer.last_key_value().map_or(0, |(number, _)| *number);
        self.number = self.number.max(highest);
        Some(())
    }

    fn block(&self, number: u32) -> Option<Vec<u8>> {
        let mut octets = vec![0; self.size];
        let read = match (self.newer.get(&number), &self.log) {
            (Some(at), Some(log)) => log.read_exact_at(&mut octets, *at),
            _ => self.file.read_exact_at(&mut octets, u64::from(number.checked_sub(1)?) * self.size as u64),
        };
        read.ok().map(|()| octets)
    }

    /// The row whose cell begins here; `None`: it is none of a page, or makes no sense.
    fn row(&self, block: &[u8], at: usize) -> Option<(i64, Row)> {
        let mut cell = block.get(at..)?;
        let octets = usize::try_from(varint(&mut cell)?).ok().filter(|octets| *octets <= LARGEST)?;
        let number = varint(&mut cell)? as i64;
        let payload = self.payload(cell, octets)?;
        let mut header = &payload[..];
        let begin = usize::try_from(varint(&mut header)?).ok()?;
        let types = payload.get(payload.len() - header.len()..begin)?;
        let (mut left, mut types_of) = (types, Vec::new());
        while !left.is_empty() && types_of.len() < 4 {
            types_of.push(varint(&mut left)?);
        }
        let (&records, count) = match &types_of[..] {
            [0, records] => (records, &0),
            [0, records, count] => (records, count),
            _ => return None,
        };
        let length = usize::try_from(records.checked_sub(12)?).ok().filter(|_| records % 2 == 0)? / 2;
        let end = (begin.checked_add(length)?).min(payload.len());
        let records = payload.get(begin..end)?.to_vec();
        Some((number, (integer(*count, payload.get(end..)?), records)))
    }

    /// The octets of a cell's payload, as many of them as can be had.
    fn payload(&self, cell: &[u8], octets: usize) -> Option<Vec<u8>> {
        let most = self.size - 35;
        let least = (self.size - 12) * 32 / 255 - 23;
        if octets <= most {
            return cell.get(..octets).map(<[u8]>::to_vec);
        }
        let some = least + (octets - least) % (self.size - 4);
        let here = if some <= most { some } else { least };
        let mut payload = cell.get(..here)?.to_vec();
        let mut next = be32(cell, here)?;
        while payload.len() < octets && next != 0 {
            let Some(block) = self.block(next) else { break };
            let more = (octets - payload.len()).min(self.size - 4);
            payload.extend_from_slice(block.get(4..4 + more)?);
            next = be32(&block, 0)?;
        }
        Some(payload)
    }
}

/// A number of a column of this type; `None`: there is none.
fn integer(kind: u64, octets: &[u8]) -> Option<i64> {
    let length = match kind {
        0 => return None,
        1..=4 => kind as usize,
        5 => 6,
        6 => 8,
        8 => return Some(0),
        9 => return Some(1),
        _ => return Some(-1),
    };
    let Some(octets) = octets.get(..length) else { return Some(-1) };
    Some(octets.iter().fold(0, |all, octet| all << 8 | i64::from(*octet)))
}

/// SQLite's numbers of one to nine octets, the highest first.
fn varint(left: &mut &[u8]) -> Option<u64> {
    let mut all = 0;
    for n in 0..9 {
        let (octet, rest) = left.split_first()?;
        *left = rest;
        if n == 8 {
            return Some(all << 8 | u64::from(*octet));
        }
        all = all << 7 | u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            return Some(all);
        }
    }
    None
}

fn be16(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn be32(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}
