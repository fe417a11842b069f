//! What sessions have taken until they end: interface numbers and UDP ports, each given back when its claim is dropped.
//!
//! Shared by all sessions. Decides who gives way: a user pinned to an interface has one tunnel, and a user with as many
//! tunnels as there may be takes over the number of the oldest, so that who comes back keeps the address pair.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::interfaces::{Family, Interfaces, NoNumber, number};
use crate::broker::{LeaseId, UserName};

/// All claims.
#[derive(Clone, Debug)]
pub struct Claims(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    interfaces: Interfaces,
    ports: Ports,
    /// Tunnels of each user, oldest first.
    users: HashMap<UserName, Vec<(u32, LeaseId)>>,
}

/// UDP ports from the lowest up.
#[derive(Debug)]
struct Ports {
    next: u32,
    back: BTreeSet<u16>,
}

/// A number, until it is dropped.
#[derive(Debug)]
pub struct Number {
    /// The number itself.
    pub n: u32,
    claims: Claims,
    holder: Option<(UserName, LeaseId)>,
}

/// A UDP port, until it is dropped.
#[derive(Debug)]
pub struct Port {
    /// The port itself.
    pub port: u16,
    claims: Claims,
}

/// How a number may be had.
#[derive(Debug)]
pub enum Way {
    /// It is claimed.
    Free(Number),
    /// These must end first: the user's own, pinned to the same interface.
    After(Number, Vec<LeaseId>),
}

impl Claims {
    /// None yet; ports from `first_port` up.
    pub fn new(interfaces: Interfaces, first_port: u16) -> Self {
        let ports = Ports { next: first_port.into(), back: BTreeSet::new() };
        Self(Arc::new(Mutex::new(Inner { interfaces, ports, users: HashMap::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are the names that users are pinned to.
    pub fn pin<'a>(&self, names: impl Iterator<Item = &'a str>) {
        self.inner().interfaces.pin(names);
    }

    /// How many numbers are taken.
    pub fn in_use(&self) -> usize {
        self.inner().interfaces.in_use()
    }

    /// Claims a number for a tunnel of `user`, who may have `most`.
    ///
    /// # Errors
    /// [`NoNumber`].
    pub fn number(
        &self,
        user: &UserName,
        family: Family,
        pin: Option<&str>,
        most: u32,
    ) -> Result<Way, NoNumber> {
        let mut inner = self.inner();
        let own = inner.users.get(user).map(Vec::as_slice).unwrap_or_default();
        let pinned = pin.map(|name| number(name).ok_or(NoNumber::Unnumbered)).transpose()?;
        let here: Vec<LeaseId> = own.iter().filter(|(n, _)| Some(*n) == pinned).map(|(_, id)| *id).collect();
        let oldest = own.first().filter(|_| own.len() >= most.max(1) as usize).map(|(n, _)| *n);
        let take_over = match pinned {
            Some(n) => (!here.is_empty()).then_some(n),
            None => oldest,
        };
        let n = match take_over {
            Some(n) => {
                inner.interfaces.take_over(n);
                n
            }
            None => inner.interfaces.take(family, pin)?,
        };
        let claim = Number { n, claims: self.clone(), holder: None };
        Ok(if here.is_empty() { Way::Free(claim) } else { Way::After(claim, here) })
    }

    /// Claims the lowest free UDP port; `None`: there is none.
    pub fn port(&self) -> Option<Port> {
        let mut inner = self.inner();
        let ports = &mut inner.ports;
        let port = ports.back.pop_first().or_else(|| {
            let port = u16::try_from(ports.next).ok()?;
            ports.next += 1;
            Some(port)
        })?;
        Some(Port { port, claims: self.clone() })
    }
}

impl Number {
    /// A tunnel goes by it now.
    pub fn held_by(&mut self, user: UserName, lease: LeaseId) {
        self.claims.inner().users.entry(user.clone()).or_default().push((self.n, lease));
        self.holder = Some((user, lease));
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut inner = self.claims.inner();
        inner.interfaces.give_back(self.n);
        let Some((user, lease)) = &self.holder else { return };
        let Some(own) = inner.users.get_mut(user) else { return };
        own.retain(|(_, held)| held != lease);
        if own.is_empty() {
            inner.users.remove(user);
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.claims.inner().ports.back.insert(self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::super::interfaces::Names;
    use super::*;

    fn claims(last: u32) -> Claims {
        Claims::new(Interfaces::new(last, &Names::All, &Names::All, false), 65_534)
    }

    fn user(name: &str) -> UserName {
        UserName::parse(name).unwrap()
    }

    fn free(way: Result<Way, NoNumber>) -> Number {
        match way {
            Ok(Way::Free(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_comes_back_takes_over_the_number() {
        let all = claims(1);
        let mut first = free(all.number(&user("a"), Family::Gif, None, 1));
        first.held_by(user("a"), LeaseId(1));
        let other = free(all.number(&user("b"), Family::Gif, None, 1));
        let mut second = free(all.number(&user("a"), Family::Gif, None, 1));
        second.held_by(user("a"), LeaseId(2));
        assert_eq!((first.n, other.n, second.n), (0, 1, 0));
        drop(first);
        assert!(matches!(all.number(&user("c"), Family::Gif, None, 1), Err(NoNumber::SoldOut)));
        drop(second);
        assert_eq!(free(all.number(&user("c"), Family::Gif, None, 1)).n, 0);
        drop(other);
        assert_eq!(all.in_use(), 0);
    }

    #[test]
    fn a_pinned_user_has_one_tunnel() {
        let all = claims(9);
        let mut first = free(all.number(&user("a"), Family::Gif, Some("gif3"), 5));
        first.held_by(user("a"), LeaseId(7));
        let Ok(Way::After(second, before)) = all.number(&user("a"), Family::Gif, Some("gif3"), 5) else {
            panic!()
        };
        assert_eq!((second.n, before), (3, vec![LeaseId(7)]));
        assert!(matches!(all.number(&user("b"), Family::Gif, Some("gif3"), 5), Err(NoNumber::SoldOut)));
        assert!(matches!(all.number(&user("b"), Family::Gif, Some("odd"), 5), Err(NoNumber::Unnumbered)));
    }

    #[test]
    fn the_lowest_free_port_is_taken() {
        let all = claims(9);
        let ports: Vec<Port> = std::iter::from_fn(|| all.port()).collect();
        assert_eq!(ports.iter().map(|p| p.port).collect::<Vec<_>>(), [65_534, 65_535]);
        drop(ports);
        assert_eq!(all.port().map(|p| p.port), Some(65_534));
    }
}
