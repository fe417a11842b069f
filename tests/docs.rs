//! The documents against the code: counts, rooms, links, commands and configurations that the pages name must exist, and
//! what exists must be named.
//!
//! Compares names only; whether a sentence is true no test can tell. `docs/config.md` has tests of its own in
//! `src/config/tests.rs`.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sixway::config::Config;
use sixway::delegation::report::names;
use sixway::dtcp::server::Counts;
use sixway::endpoint::EndpointCounters;
use sixway::nd::Silence;
use sixway::pmtu::session::PathCounters;
use sixway_dataplane::counters::Event;
use sixway_dataplane::verdict::Reason;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// README, ARCHITECTURE, CHANGELOG and all of `docs/`, by their paths below the root.
fn pages() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()));
    let top = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(str::to_owned);
    top.into_iter().chain(docs.filter(|name| name.ends_with(".md"))).collect()
}

/// What stands under the heading `## title`, up to the next one.
fn section<'a>(text: &'a str, title: &str) -> &'a str {
    let heading = format!("\n## {title}\n");
    let (_, rest) = text.split_once(&heading).unwrap_or_else(|| panic!("there is no section '{title}'"));
    rest.split("\n## ").next().unwrap_or(rest)
}

/// The contents of all fenced blocks in `language`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    text.split(&open).skip(1).map(|rest| rest.split("```").next().unwrap_or(rest)).collect()
}

/// The text without its fenced blocks.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The first cells of a section's table, where they are names in backticks.
fn named(section: &str) -> BTreeSet<String> {
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    cells.map(|(name, _)| name.to_owned()).collect()
}

/// What differs between the names on a page and those in the code.
fn differences(
    what: &str,
    on_page: &BTreeSet<String>,
    in_code: impl IntoIterator<Item = String>,
) -> Vec<String> {
    let in_code: BTreeSet<_> = in_code.into_iter().collect();
    let missing = in_code.difference(on_page).map(|name| format!("{what}: `{name}` is not on the page"));
    let stale = on_page.difference(&in_code).map(|name| format!("{what}: `{name}` is not in the code"));
    missing.chain(stale).collect()
}

/// `DuplicateAddress` as `duplicate_address`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[test]
fn the_counters_page_names_every_count_and_no_other() {
    let text = page("docs/counters.md");
    let on_page = |title| named(section(&text, title));
    let reasons = Reason::ALL.iter().map(|r| r.name().to_owned());
    let events = Event::ALL.iter().map(|e| e.name().to_owned());
    let silences = Silence::ALL.iter().map(|s| snake_case(&format!("{s:?}")));
    let discovery = silences.chain(["answered", "advertised"].map(str::to_owned));
    let found = [
        differences("drops", &on_page("Drops"), reasons),
        differences("events", &on_page("Events"), events),
        differences("nd", &on_page("Neighbour discovery"), discovery),
        differences("endpoints", &on_page("Endpoints"), endpoint_counts()),
        differences("pmtu", &on_page("Path MTU"), path_counts()),
        differences("dtcp", &on_page("DTCP"), dtcp_counts()),
        differences("tsp", &on_page("TSP"), sixway::tsp::server::Counts::default().all().into_keys()),
        differences("dhcpv6", &on_page("DHCPv6"), dhcpv6_counts()),
        differences("dhcpv6_client", &on_page("DHCPv6 client"), names().into_iter().map(str::to_owned)),
    ]
    .concat();
    assert!(found.is_empty(), "docs/counters.md\n{}", found.join("\n"));
}

/// The fields of the prober's counters, and the one count beside them.
fn endpoint_counts() -> BTreeSet<String> {
    let printed = format!("{:?}", EndpointCounters::default());
    let fields = printed.split(['{', ',']).filter_map(|part| part.split_once(": "));
    let mut names: BTreeSet<_> = fields.map(|(name, _)| name.trim().to_owned()).collect();
    names.insert("inject_queue_full".to_owned());
    names
}

/// The DHCPv6 server's counts.
fn dhcpv6_counts() -> BTreeSet<String> {
    let in_tunnels =
        sixway::dhcpv6::server::Server::new(sixway::dhcpv6::session::Terms::default(), 0).counts();
    let on_links = sixway::dhcp6s::LINK_COUNTS.map(str::to_owned);
    in_tunnels.into_keys().chain(on_links).collect()
}

/// The fields of path MTU discovery's counters, and the two counts beside them.
fn path_counts() -> BTreeSet<String> {
    let printed = format!("{:?}", PathCounters::default());
    let fields = printed.split(['{', ',']).filter_map(|part| part.split_once(": "));
    let mut names: BTreeSet<_> = fields.map(|(name, _)| name.trim().to_owned()).collect();
    names.extend(["malformed", "id_wrap_risk"].map(str::to_owned));
    names
}

/// The DTCP server's counts, and the one that it does not count but has.
fn dtcp_counts() -> BTreeSet<String> {
    let mut names: BTreeSet<_> = Counts::default().all().into_keys().collect();
    names.insert("interfaces".to_owned());
    names
}

#[test]
fn the_picture_of_the_packet_s_way_shows_every_reason_and_no_other() {
    let text = page("docs/counters.md");
    let picture = blocks(section(&text, "The packet's way"), "text").concat();
    let shown: BTreeSet<&str> =
        picture.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.contains('_')).collect();
    // Names of one word look like prose: of those only absence shows.
    let known: BTreeSet<&str> = Reason::ALL.iter().map(|r| r.name()).collect();
    let missing: Vec<_> = known.iter().filter(|name| !has_word(&picture, name)).collect();
    let stale: Vec<_> = shown.difference(&known).collect();
    assert!(missing.is_empty() && stale.is_empty(), "missing: {missing:?}, unknown: {stale:?}");
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|w| w == word)
}

/// Files that the map in ARCHITECTURE.md names: indented lines under the folder that stands at the line's start.
fn mapped(map: &str) -> BTreeSet<String> {
    let mut folder = "";
    let mut found = BTreeSet::new();
    for line in map.lines() {
        match line.strip_prefix("    ") {
            None => folder = line.trim(),
            Some(entry) => {
                found.extend(entry.split_whitespace().next().map(|name| format!("{folder}{name}")))
            }
        }
    }
    found
}

fn sources(folder: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{folder}/{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            sources(&name, found);
        } else if name.ends_with(".rs") {
            found.insert(name);
        }
    }
}

#[test]
fn the_map_of_rooms_is_the_house() {
    let text = page("ARCHITECTURE.md");
    let map = mapped(blocks(section(&text, "Rooms"), "text")[0]);
    let stale: Vec<_> = map.iter().filter(|name| !root().join(name).exists()).collect();
    let mut files = BTreeSet::new();
    sources("src", &mut files);
    sources("dataplane/src", &mut files);
    assert!(files.len() > 40, "the sources were found");
    let missing: Vec<_> = files.difference(&map).collect();
    assert!(missing.is_empty() && stale.is_empty(), "not on the map: {missing:?}, not there: {stale:?}");
}

/// The targets of all links that do not lead out of the repository.
fn links(text: &str) -> Vec<String> {
    let targets = prose(text);
    let targets = targets.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to);
    targets.filter(|to| !to.contains("://")).map(str::to_owned).collect()
}

/// The anchors that a page's headings make.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_matches('#'));
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|h| h.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
}

fn broken(name: &str, link: &str) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target =
        if file.is_empty() { Path::new(name).to_owned() } else { Path::new(name).parent()?.join(file) };
    let path = root().join(&target);
    if !path.exists() {
        return Some(format!("{name}: {link} leads to no file"));
    }
    let leads = anchor.is_empty() || anchors(&fs::read_to_string(path).ok()?).contains(anchor);
    (!leads).then(|| format!("{name}: {link} leads to no heading"))
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    let mut found = Vec::new();
    for name in pages() {
        let links = links(&page(&name));
        checked += links.len();
        found.extend(links.iter().filter_map(|link| broken(&name, link)));
    }
    assert!(checked > 10, "the links were found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The words of each line of a README block that calls the program or a script; what follows ` -- ` is another program's.
fn calls(text: &str) -> Vec<Vec<String>> {
    let lines = blocks(text, "sh").concat();
    let own = lines.lines().map(|line| line.split(" #").next().unwrap_or(line));
    let own = own.map(|line| line.split(" -- ").next().unwrap_or(line).trim_start_matches("sudo "));
    own.map(|line| line.split_whitespace().map(str::to_owned).collect())
        .filter(|c: &Vec<_>| !c.is_empty())
        .collect()
}

fn help_of(command: &str) -> String {
    let asked = Command::new(env!("CARGO_BIN_EXE_sixway")).args([command, "--help"]).output().unwrap();
    assert!(asked.status.success(), "`sixway {command}` is no command");
    String::from_utf8(asked.stdout).unwrap()
}

#[test]
fn the_readme_s_commands_exist() {
    let all = calls(&page("README.md"));
    assert!(all.iter().filter(|words| words[0] == "sixway").count() > 8, "the commands were found");
    for words in all {
        if words[0].starts_with("scripts/") {
            assert!(root().join(&words[0]).exists(), "there is no {}", words[0]);
        }
        if words[0] != "sixway" {
            continue;
        }
        let help = help_of(&words[1]);
        for flag in words[2..].iter().filter(|word| word.starts_with('-')) {
            let known = help.split([' ', ',', '\n', '=']).any(|word| word == flag);
            assert!(known, "`sixway {}` has no {flag}", words[1]);
        }
    }
}

#[test]
fn configurations_on_pages_are_valid() {
    for (name, least) in [("README.md", 4), ("docs/dhcpv6.md", 3)] {
        let text = page(name);
        let all = blocks(&text, "toml");
        assert!(all.len() >= least, "{name}: {} blocks", all.len());
        for block in all {
            let config = Config::parse(name, block).unwrap_or_else(|mistakes| panic!("{mistakes}\n{block}"));
            assert_eq!(config.doubts(), Vec::<String>::new(), "{block}");
        }
    }
}

/// What is to be put behind another file works there.
#[test]
fn the_readme_s_pool_fits_its_router() {
    let text = page("README.md");
    let all = blocks(&text, "toml");
    let pool = all.iter().find(|block| block.contains("[[pool]]")).unwrap();
    let whole = format!("{}\n{pool}", all[0]);
    let config = Config::parse("README.md", &whole).unwrap_or_else(|mistakes| panic!("{mistakes}\n{whole}"));
    assert!(config.dhcpv6.is_some() && config.doubts().is_empty());
}

#[test]
fn what_is_missing_or_stale_is_found() {
    let on_page = named("| name |\n|---|\n| `known` | x |\n| `stale` | y |\n");
    let found = differences("x", &on_page, ["known", "new"].map(str::to_owned));
    assert_eq!(found, ["x: `new` is not on the page", "x: `stale` is not in the code"]);
    assert!(broken("docs/config.md", "nowhere.md").is_some() && broken("README.md", "#nowhere").is_some());
    assert_eq!(mapped("src/\n    x.rs   about x\n"), BTreeSet::from(["src/x.rs".to_owned()]));
    assert_eq!(calls("```sh\nsudo sixway run --config a # b\n```"), [["sixway", "run", "--config", "a"]]);
}
