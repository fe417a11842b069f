//! The kernel's offloads by name: which are wanted, and what became of each.
//!
//! Every offload has a knob (the operator's), a standing (what the kernel said at the start) and, while it runs, a [`Fuse`]:
//! what fails in use is left alone for a minute and then tried again. Pure; knows neither devices nor how an offload
//! works.

use std::time::Duration;

macro_rules! knobs {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// One offload.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Knob { $($(#[doc = $doc])+ $name,)+ }

        impl Knob {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in the configuration and in status output.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

knobs! {
    /// The kernel hands us TCP segment trains over the TUN device (TSO).
    TunTcp = "tun_tcp",
    /// The kernel hands us UDP datagram trains over the TUN device (USO, Linux 6.2 and later).
    TunUdp = "tun_udp",
    /// We hand TCP segments to the TUN device as trains.
    MergeTcp = "merge_tcp",
    /// We hand UDP datagrams to the TUN device as trains.
    MergeUdp = "merge_udp",
    /// The kernel cuts the trains that we send by UDP (`UDP_SEGMENT`).
    UdpGso = "udp_gso",
    /// The kernel merges the UDP datagrams that we receive (`UDP_GRO`).
    UdpGro = "udp_gro",
    /// Protocol-41 trains leave whole, cut by the outer interface (Linux 6.6 and later).
    Proto41Gso = "proto41_gso",
}

/// How many offloads there are.
pub const COUNT: usize = Knob::ALL.len();

/// Which offloads are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs([bool; COUNT]);

impl Knobs {
    /// All of them.
    pub const ON: Self = Self([true; COUNT]);
    /// None.
    pub const OFF: Self = Self([false; COUNT]);

    /// Whether this one is wanted.
    pub fn is_on(self, knob: Knob) -> bool {
        self.0[knob as usize]
    }

    /// The same with one knob turned.
    #[must_use]
    pub fn with(mut self, knob: Knob, on: bool) -> Self {
        self.0[knob as usize] = on;
        self
    }
}

/// What became of an offload at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In use; where there is a test, it passed.
    On,
    /// In use, although the test could not be made; why not.
    Untested(String),
    /// The operator does not want it.
    Off,
    /// The kernel does not do it, or not right; how that showed.
    Refused(String),
}

impl Standing {
    /// Whether the offload is used.
    pub fn is_used(&self) -> bool {
        match self {
            Self::On | Self::Untested(_) => true,
            Self::Off | Self::Refused(_) => false,
        }
    }
}

/// The standings of all offloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standings([Standing; COUNT]);

impl Standings {
    /// As wanted, before the kernel has been asked.
    pub fn wanted(knobs: Knobs) -> Self {
        Self(std::array::from_fn(|n| if knobs.0[n] { Standing::On } else { Standing::Off }))
    }

    /// Of this one.
    pub fn of(&self, knob: Knob) -> &Standing {
        &self.0[knob as usize]
    }

    /// What the kernel said of a wanted one; what is not wanted stays off.
    pub fn settle(&mut self, knob: Knob, found: Standing) {
        if self.of(knob).is_used() {
            self.0[knob as usize] = found;
        }
    }

    /// Those in use.
    pub fn in_use(&self) -> Knobs {
        Knobs(std::array::from_fn(|n| self.0[n].is_used()))
    }
}

/// How long what has failed is left alone.
pub const PAUSE: Duration = Duration::from_secs(60);

/// Something that is used until it fails too often in a row, and tried again after [`PAUSE`].
#[derive(Clone, Copy, Debug)]
pub struct Fuse {
    strikes: u8,
    failed: u8,
    blown: Option<Duration>,
}

impl Fuse {
    /// Blows after so many failures in a row, at least one.
    pub fn new(strikes: u8) -> Self {
        Self { strikes, failed: 0, blown: None }
    }

    /// Whether it may be used. After a pause it may, and the next failure blows it again.
    pub fn holds(&mut self, now: Duration) -> bool {
        if self.blown.is_some_and(|until| until <= now) {
            self.blown = None;
        }
        self.blown.is_none()
    }

    /// It worked.
    pub fn worked(&mut self) {
        self.failed = 0;
    }

    /// It is known not to work now. Returns until when it is left alone.
    pub fn blow(&mut self, now: Duration) -> Duration {
        let until = now + PAUSE;
        self.blown = Some(until);
        until
    }

    /// It failed. Returns until when it is left alone, if this failure was the one that counts.
    pub fn failed(&mut self, now: Duration) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        if self.failed < self.strikes || self.blown.is_some() {
            return None;
        }
        Some(self.blow(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_fuse_blows_after_failures_in_a_row_and_is_tried_again() {
        let mut fuse = Fuse::new(3);
        for _ in 0..5 {
            assert_eq!((fuse.failed(SECOND), fuse.failed(SECOND)), (None, None));
            fuse.worked();
        }
        assert!(fuse.holds(SECOND));
        assert_eq!((fuse.failed(SECOND), fuse.failed(SECOND)), (None, None));
        assert_eq!(fuse.failed(SECOND), Some(SECOND + PAUSE));
        assert_eq!(fuse.failed(SECOND), None, "one pause is told once");
        assert!(!fuse.holds(PAUSE));
        assert!(fuse.holds(SECOND + PAUSE));
        let again = 2 * PAUSE;
        assert_eq!(fuse.failed(again), Some(again + PAUSE), "the next failure is enough");
        assert!(fuse.holds(again + PAUSE));
        fuse.worked();
        assert_eq!(fuse.failed(again), None, "and one success forgives");
        assert_eq!(fuse.blow(again), again + PAUSE);
        assert!(!fuse.holds(again) && fuse.holds(again + PAUSE));
    }

    #[test]
    fn what_is_not_wanted_is_not_asked_for() {
        let wanted = Knobs::ON.with(Knob::UdpGro, false);
        let mut standings = Standings::wanted(wanted);
        standings.settle(Knob::UdpGro, Standing::On);
        standings.settle(Knob::TunUdp, Standing::Refused("old".to_owned()));
        standings.settle(Knob::UdpGso, Standing::Untested("no loopback".to_owned()));
        assert_eq!(*standings.of(Knob::UdpGro), Standing::Off);
        assert_eq!(standings.in_use(), wanted.with(Knob::TunUdp, false));
    }
}
