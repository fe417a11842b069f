//! The progress bar on stderr; hidden where that is no terminal.
//!
//! Refuses to know what is measured.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::stream::TICK;

/// A bar as long as all streams together. Clones draw the same bar.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    // Also the lock that keeps a bar from being drawn again while another thread clears it.
    cleared: Arc<Mutex<bool>>,
}

impl Progress {
    /// A bar for `total` of streaming; an invisible one unless `wanted`.
    pub(crate) fn new(wanted: bool, total: Duration) -> Self {
        let target = if wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let ticks = (total.as_millis() / TICK.as_millis()) as u64;
        let bar = ProgressBar::with_draw_target(Some(ticks), target);
        // The template is ours, so it parses; a plain bar would do too.
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸─"));
        Self { bar, cleared: Arc::default() }
    }

    /// Says what is going on.
    pub(crate) fn say(&self, encap: &str, what: &str) {
        self.draw(encap, what.to_owned(), 0);
    }

    /// One more tick of streaming is over, at this many bits a second.
    pub(crate) fn advance(&self, encap: &str, what: &str, bits: f64) {
        self.draw(encap, format!("{what:<8} {:>6.2} Gbit/s", bits / 1e9), 1);
    }

    /// Takes the bar off the screen for good.
    pub(crate) fn clear(&self) {
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        self.bar.finish_and_clear();
        *cleared = true;
    }

    fn draw(&self, encap: &str, message: String, ticks: u64) {
        let cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        if *cleared {
            return;
        }
        self.bar.set_prefix(encap.to_owned());
        self.bar.set_message(message);
        self.bar.inc(ticks);
        self.bar.tick();
    }
}

const TEMPLATE: &str = "{spinner:.green} {prefix:<7.bold} {bar:32.cyan/dim} {percent:>3} %  {msg}";
