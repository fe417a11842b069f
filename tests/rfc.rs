//! `docs/rfc.md`: what must hold, by RFC, and the tests that show it; written from `rfc/rows.tsv` and from the tests.
//!
//! A test names its rows in its comment: `/// RFC: E3, E6 (RFC 4213 section 3.2.1)`. A row that nobody names needs a reason in
//! the table. Knows names only; whether a test shows what its row says is for its reader to judge.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/rfc.md";
const HEAD: &str = "# Requirements\n\n\
    What a tunnel's data plane and the DHCPv6 server must hold, where that is said, and the tests that show it. Written by `scripts/rfc` from the\n\
    tests' own comments and `tests/rfc/rows.tsv`; `scripts/test` fails when a test that is named here did not run.\n\n\
    *Done*: the tests show all of it. *Not done*: something is missing, and why; tests beside it show what holds.\n\
    Rows R are faults that other programs shipped; rows V are DHCPv6's.\n\n";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One requirement.
struct Row {
    id: String,
    must: String,
    at: String,
    reason: String,
}

fn rows(table: &str) -> Vec<Row> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let row = |line: &str| {
        let cells: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [id, must, at, reason] = <[String; 4]>::try_from(cells)
            .unwrap_or_else(|cells| panic!("{} cells instead of 4: {line}", cells.len()));
        Row { id, must, at, reason }
    };
    lines.map(row).collect()
}

/// A test that names rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    /// The program that runs it, as cargo calls it.
    program: String,
    /// Its name as the program prints it.
    name: String,
    /// Its file, below the root.
    file: String,
}

/// All Rust files below a folder.
fn sources(folder: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = format!("{folder}/{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            sources(&name, found);
        } else if name.ends_with(".rs") {
            found.push(name);
        }
    }
}

/// The program that a file is part of, and the path of its module there.
fn place(file: &str) -> (String, Vec<String>) {
    let roots =
        [("dataplane/src/", "sixway_dataplane"), ("netns-tests/src/", "netns_tests"), ("src/", "sixway")];
    let modules = |rest: &str| {
        let rest = rest.trim_end_matches(".rs");
        let parts = rest.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main"));
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    for (folder, program) in roots {
        if let Some(rest) = file.strip_prefix(folder) {
            return (program.to_owned(), modules(rest));
        }
    }
    let file =
        ["netns-tests/tests/", "dataplane/tests/", "tests/"].iter().find_map(|root| file.strip_prefix(root));
    let rest = file.unwrap();
    let mut modules = modules(rest);
    (modules.remove(0), modules)
}

/// The rows that a line names: `/// RFC: E3, E6 (RFC 4213 section 3.2.1)`.
fn ids(line: &str) -> Option<Vec<String>> {
    let list = line.trim().strip_prefix("/// RFC: ")?;
    let list = list.split('(').next().unwrap_or(list);
    Some(list.split(',').map(|id| id.trim().to_owned()).collect())
}

/// The tests of a file that name rows, by row.
fn markers(file: &str, text: &str) -> Vec<(String, Named)> {
    let (program, path) = place(file);
    let lines: Vec<_> = text.lines().collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let Some(ids) = ids(line) else { continue };
        let rest: Vec<_> = lines[n..].iter().map(|line| line.trim()).collect();
        let function = rest.iter().position(|line| line.starts_with("fn ") || line.starts_with("async fn "));
        let function = function.unwrap_or_else(|| panic!("{file}: no function behind {line}"));
        let attributes = &rest[..function];
        let is_test = attributes.iter().any(|line| matches!(*line, "#[test]" | "#[tokio::test]"));
        assert!(is_test, "{file}: what {line} stands above is no test");
        let name = rest[function].split("fn ").nth(1).unwrap().split('(').next().unwrap();
        let inner = lines[..n].iter().rev().find(|line| line.ends_with("mod tests {"));
        let modules = path.iter().map(String::as_str).chain(inner.map(|_| "tests")).chain([name]);
        let name = modules.collect::<Vec<_>>().join("::");
        let named = Named { program: program.clone(), name, file: file.to_owned() };
        found.extend(ids.into_iter().map(|id| (id, named.clone())));
    }
    found
}

/// Every test that names a row, by row.
fn tests() -> BTreeMap<String, BTreeSet<Named>> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "dataplane/src", "dataplane/tests", "netns-tests/src", "netns-tests/tests"]
    {
        sources(folder, &mut files);
    }
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for file in files.iter().filter(|file| *file != "tests/rfc.rs") {
        for (id, named) in markers(file, &fs::read_to_string(root().join(file)).unwrap()) {
            all.entry(id).or_default().insert(named);
        }
    }
    all
}

fn shown(row: &Row, tests: &BTreeSet<Named>) -> String {
    let state = match row.reason.split_once(": ") {
        None => "done".to_owned(),
        Some((state, why)) => format!("**{state}**, because: {why}"),
    };
    let links = tests.iter().map(|t| format!("[`{}::{}`](../{})", t.program, t.name, t.file));
    let links = links.collect::<Vec<_>>().join("<br>");
    format!("| {} | {} | {} | {state} | {links} |\n", row.id, row.must, row.at)
}

/// The page; `Err` names rows without test or reason, and tests that name no row.
fn render(rows: &[Row], tests: &BTreeMap<String, BTreeSet<Named>>) -> Result<String, Vec<String>> {
    let none = BTreeSet::new();
    let of = |row: &Row| tests.get(&row.id).unwrap_or(&none);
    let known: BTreeSet<_> = rows.iter().map(|row| row.id.as_str()).collect();
    let mut wrong: Vec<_> = tests
        .iter()
        .filter(|(id, _)| !known.contains(id.as_str()))
        .flat_map(|(id, tests)| {
            tests.iter().map(move |t| format!("{}: {} names {id}, which is no row", t.file, t.name))
        })
        .collect();
    for row in rows {
        let stated = ["not done: ", "not applicable: "].iter().any(|state| row.reason.starts_with(state));
        match (row.reason.is_empty(), stated) {
            (false, false) => {
                wrong.push(format!("{}: '{}' is neither empty nor a reason", row.id, row.reason))
            }
            (true, _) if of(row).is_empty() => {
                wrong.push(format!("{}: no test names it, and no reason is given", row.id))
            }
            _ => {}
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let mut page = HEAD.to_owned();
    let (dhcpv6, tunnels): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.id.starts_with('V'));
    for (what, rows) in [("Tunnels", tunnels), ("DHCPv6", dhcpv6)].iter().filter(|(_, rows)| !rows.is_empty())
    {
        let count = |state: &str| rows.iter().filter(|row| row.reason.starts_with(state)).count();
        let (missing, strange) = (count("not done"), count("not applicable"));
        let (done, all) = (rows.len() - missing - strange, rows.len());
        writeln!(page, "{what}: {done} of {all} rows done, {missing} not done, {strange} not applicable.\n")
            .unwrap();
    }
    page.push_str("| row | what must hold | where | state | tests |\n|---|---|---|---|---|\n");
    page.extend(rows.iter().map(|row| shown(row, of(row))));
    Ok(page)
}

#[test]
fn the_page_says_what_the_tests_say() {
    let table = fs::read_to_string(root().join("tests/rfc/rows.tsv")).unwrap();
    let page = render(&rows(&table), &tests()).unwrap_or_else(|wrong| panic!("{}", wrong.join("\n")));
    let path = root().join(PAGE);
    if std::env::var_os("SIXWAY_RFC_WRITE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == page, "{PAGE} is stale: run scripts/rfc");
}

/// Program and name of every test that passed, in what cargo and the tests have printed.
fn passed(log: &str) -> BTreeSet<(String, String)> {
    let mut program = String::new();
    let mut found = BTreeSet::new();
    for line in log.lines() {
        if let (true, Some((_, deps))) = (line.contains("Running "), line.rsplit_once("/deps/")) {
            program = deps.rsplit_once('-').map_or(deps, |(name, _)| name).to_owned();
        }
        if let Some((_, rest)) = line.split_once("test ")
            && let Some((name, _)) = rest.split_once(" ... ok")
        {
            found.insert((program.clone(), name.trim_end_matches(" - should panic").to_owned()));
        }
    }
    found
}

/// The tests that are named and did not pass in this log.
fn absent(tests: &BTreeMap<String, BTreeSet<Named>>, log: &str) -> Vec<String> {
    let passed = passed(log);
    let did = |t: &Named| passed.contains(&(t.program.clone(), t.name.clone()));
    let all = tests.iter().flat_map(|(id, tests)| tests.iter().map(move |t| (id, t)));
    all.filter(|(_, t)| !did(t))
        .map(|(id, t)| format!("{id}: {}::{} ({})", t.program, t.name, t.file))
        .collect()
}

#[test]
#[ignore = "scripts/test runs it with the log of all tests in SIXWAY_TEST_LOG"]
fn every_test_that_is_named_ran() {
    let log = std::env::var_os("SIXWAY_TEST_LOG").unwrap();
    let log = fs::read(Path::new(&log)).unwrap();
    let absent = absent(&tests(), &String::from_utf8_lossy(&log));
    assert!(absent.is_empty(), "these did not run, or did not pass:\n{}", absent.join("\n"));
}

#[test]
fn what_is_missing_or_wrong_is_found() {
    let text = "mod tests {\n    /// Any comment.\n    /// RFC: E1, E2 (RFC 4213 section 3.1)\n    #[test]\n    fn a_test() {\n";
    let found = markers("dataplane/src/encap/mod.rs", text);
    let names: Vec<_> =
        found.iter().map(|(id, t)| (id.as_str(), t.program.as_str(), t.name.as_str())).collect();
    let name = "encap::tests::a_test";
    assert_eq!(names, [("E1", "sixway_dataplane", name), ("E2", "sixway_dataplane", name)]);
    let tests: BTreeMap<_, _> = found.into_iter().map(|(id, t)| (id, BTreeSet::from([t]))).collect();
    let table = "# a comment\nE1\ta\tb\t\nE3\ta\tb\t\nE4\ta\tb\tlater\nE5\ta\tb\tnot done: why\n";
    let wrong = render(&rows(table), &tests).unwrap_err();
    assert_eq!(wrong.len(), 3, "E2 is no row, E3 has no test, E4 has no reason: {wrong:?}");
    assert!(
        render(&rows("E1\ta\tb\t\nE2\ta\tb\tnot done: c\n"), &tests).unwrap().contains("1 of 2 rows done")
    );
    let log = "     Running unittests src/lib.rs (target/debug/deps/sixway_dataplane-0a)\ntest encap::tests::a_test ... ok\n";
    assert_eq!(absent(&tests, log), [""; 0]);
    assert_eq!(absent(&tests, &log.replace("ok", "FAILED")).len(), 2);
    assert_eq!(absent(&tests, &log.replace("sixway_dataplane", "other")).len(), 2);
    let nothing = std::panic::catch_unwind(|| markers("tests/x.rs", "/// RFC: E1\nfn helper() {\n"));
    assert!(nothing.is_err(), "only tests may name rows");
    assert_eq!(place("dataplane/tests/forward_cases/by_rfc.rs").1, ["by_rfc"]);
    assert_eq!(place("netns-tests/tests/spoof.rs"), ("spoof".to_owned(), vec![]));
    assert_eq!(place("tests/fuzz.rs"), ("fuzz".to_owned(), vec![]));
}
