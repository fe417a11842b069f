//! The report as a table a person likes to read.
//!
//! Pure: text in, text out; whether there may be colours is an argument. Refuses to know how anything
//! was measured.

use super::config::{CLIENT_INNER, Encap, HOST};
use super::{PINGS, Report, Run};

/// Whether to colour the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// ANSI colours.
    On,
    /// Plain text.
    Off,
}

impl Colour {
    /// Colours on a terminal, unless the environment's `NO_COLOR` says no (no-color.org).
    pub fn for_stream(is_terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_terminal && !refused { Self::On } else { Self::Off }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::On => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

/// Draws the table and says below what it shows and what to do next.
pub fn draw(report: &Report, seconds: u8, colour: Colour) -> String {
    let rows: Vec<[String; COLUMNS]> = report.runs.iter().map(cells).collect();
    let widths = widths(&rows);
    let mut lines = vec![String::new(), picture(colour), String::new()];
    lines.push(rule(&widths, ["╭", "┬", "╮"], colour));
    lines.push(line(&HEAD.map(str::to_owned), &widths, colour, |_| BOLD));
    lines.push(rule(&widths, ["├", "┼", "┤"], colour));
    for (row, run) in rows.iter().zip(&report.runs) {
        lines.push(line(row, &widths, colour, |column| shade(column, run)));
    }
    lines.push(rule(&widths, ["╰", "┴", "╯"], colour));
    lines.push(closing(seconds, colour));
    lines.join("\n")
}

fn picture(colour: Colour) -> String {
    let tunnel = colour.paint(CYAN, "══ IPv6 in IPv4 ══");
    let (client, router, host) =
        (colour.paint(BOLD, "client"), colour.paint(BOLD, "router"), colour.paint(BOLD, "host"));
    format!("  {client} {tunnel} {router} ── IPv6 ── {host}")
}

fn cells(run: &Run) -> [String; COLUMNS] {
    let name = match run.encap {
        Encap::Proto41 => "protocol 41",
        Encap::Udp => "UDP",
    };
    [
        name.to_owned(),
        run.ping_us.map_or("no answer".to_owned(), |us| format!("{us:.0} µs")),
        format!("{} of {PINGS}", run.lost),
        format!("{:.2} Gbit/s", run.up_gbps),
        format!("{:.2} Gbit/s", run.down_gbps),
    ]
}

fn widths(rows: &[[String; COLUMNS]]) -> [usize; COLUMNS] {
    let mut widths = HEAD.map(|text| text.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

fn rule(widths: &[usize], [left, middle, right]: [&str; 3], colour: Colour) -> String {
    let bars: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
    format!("  {}", colour.paint(DIM, &format!("{left}{}{right}", bars.join(middle))))
}

/// One row: names to the left, figures to the right.
fn line(
    row: &[String; COLUMNS],
    widths: &[usize; COLUMNS],
    colour: Colour,
    shade: impl Fn(usize) -> &'static str,
) -> String {
    let bar = colour.paint(DIM, "│");
    let cells: Vec<String> = row
        .iter()
        .zip(widths)
        .enumerate()
        .map(|(column, (text, &width))| {
            let padded = if column == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") };
            format!(" {} ", colour.paint(shade(column), &padded))
        })
        .collect();
    format!("  {bar}{}{bar}", cells.join(&bar))
}

fn shade(column: usize, run: &Run) -> &'static str {
    match column {
        0 => CYAN,
        LOST if run.lost > 0 => RED,
        _ => GREEN,
    }
}

fn closing(seconds: u8, colour: Colour) -> String {
    let program = std::env::current_exe().map_or_else(|_| "sixway".to_owned(), |p| p.display().to_string());
    let next = colour.paint(BOLD, &format!("sudo {program} run"));
    format!(
        "
  Client {CLIENT_INNER} reached host {HOST} through two sixway routers:
  {PINGS} pings, then TCP for {seconds} s each way. It all ran in private namespaces,
  which are gone now; this machine's own network was not touched.

  Next, a router of your own:  {next}
"
    )
}

const COLUMNS: usize = 5;
const LOST: usize = 2;
const HEAD: [&str; COLUMNS] = ["tunnel", "ping", "lost", "client → host", "host → client"];
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let run =
            Run { encap: Encap::Proto41, ping_us: Some(84.3), up_gbps: 12.345, down_gbps: 3.0, lost: 0 };
        let udp = Run { encap: Encap::Udp, ping_us: None, lost: PINGS, ..run.clone() };
        Report { runs: vec![run, udp] }
    }

    #[test]
    fn the_box_is_straight_and_plain_without_colours() {
        let text = draw(&report(), 3, Colour::Off);
        let edges = ['╭', '│', '├', '╰'];
        let boxed: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with(edges)).collect();
        assert_eq!(boxed.len(), 6, "{text}");
        assert!(boxed.iter().all(|line| line.chars().count() == boxed[0].chars().count()), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(
            text.contains("84 µs") && text.contains("12.35 Gbit/s") && text.contains("no answer"),
            "{text}"
        );
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        let mut painted = draw(&report(), 3, Colour::On);
        for code in [BOLD, DIM, RED, GREEN, CYAN, "0"] {
            painted = painted.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(painted, draw(&report(), 3, Colour::Off));
        assert!(draw(&report(), 3, Colour::On).contains("\x1b[31m"), "loss is red");
    }

    #[test]
    fn json_has_just_the_promised_keys() {
        let json = serde_json::to_string(&report()).unwrap();
        assert_eq!(
            json,
            r#"{"runs":[{"encap":"proto41","ping_us":84.3,"up_gbps":12.345,"down_gbps":3.0,"lost":0},"#
                .to_owned()
                + r#"{"encap":"udp","ping_us":null,"up_gbps":12.345,"down_gbps":3.0,"lost":50}]}"#
        );
    }
}
