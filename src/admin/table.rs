//! Columns for people, and numbers that they can read.

/// Lines with every column as wide as its widest cell; the first row is the heading. Columns named in `right` are
/// aligned to the right.
pub fn columns(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(c, text)| {
            let pad = " ".repeat(width(c).saturating_sub(text.chars().count()));
            if right.contains(&c) { pad + text } else { text.clone() + &pad }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// 1234567 as `1.23M`.
pub fn short(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["", "k", "M", "G", "T", "P"] {
        if value < 1000.0 {
            let digits = if unit.is_empty() || value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.0}E")
}

/// Seconds as `3d 4h`, `5m 12s`, `7s`.
pub fn duration(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, ..) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_times_are_readable() {
        let all = [0, 999, 1000, 12_345, 123_456_789].map(short);
        assert_eq!(all, ["0", "999", "1.00k", "12.3k", "123M"]);
        assert_eq!([7, 312, 7384, 273_600].map(duration), ["7s", "5m 12s", "2h 3m", "3d 4h"]);
    }

    #[test]
    fn columns_line_up() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(columns(&[row("name", "n"), row("x", "100")], &[1]), ["name    n", "x     100"]);
    }
}
