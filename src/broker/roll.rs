//! Changes of accounts by the operator: what may stand beside what is there already.
//!
//! Prefixes of an account are its own alone: not another account's, not inside one or around one, and not in use by
//! somebody else at the moment. Pure: what is there comes in, records go out.

use std::collections::{BTreeMap, HashMap, HashSet};

use sixway_dataplane::update::Ipv6Prefix;

use super::account::{MAX_OWN_PREFIXES, Secret};
use super::mechanism::Mechanisms;
use super::pool::PAIRS;
use super::{Account, Memory, Record, UserName};

/// Why the accounts are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollError {
    /// There is one already.
    #[error(
        "there is a user '{0}' already; `sixway user passwd {0}` changes the secret, `sixway user del {0}` removes it"
    )]
    Exists(UserName),
    /// There is none.
    #[error("there is no user '{0}'; `sixway user list` shows all")]
    Unknown(UserName),
    /// Two would have the same addresses.
    #[error("prefix {prefix} of '{user}' meets {other} of '{owner}'; a prefix is one user's alone")]
    Prefix {
        /// Whose it would be.
        user: UserName,
        /// What.
        prefix: Ipv6Prefix,
        /// What it meets.
        other: Ipv6Prefix,
        /// Whose that is.
        owner: UserName,
    },
    /// Somebody uses the addresses now.
    #[error(
        "prefix {prefix} meets {other}, which '{owner}' has out of a pool at the moment; choose another one"
    )]
    InUse {
        /// What.
        prefix: Ipv6Prefix,
        /// What it meets.
        other: Ipv6Prefix,
        /// Who uses that.
        owner: UserName,
    },
    /// Two would have the same address pair.
    #[error("interface {pair} is pinned to '{owner}' already; choose another number")]
    Pair {
        /// The number.
        pair: u32,
        /// Whose it is.
        owner: UserName,
    },
    /// There is no such address pair.
    #[error("interface {0} is beyond the last one, {last}", last = PAIRS - 1)]
    NoPair(u32),
    /// More prefixes than an account can have.
    #[error("'{0}' would have more than {MAX_OWN_PREFIXES} prefixes; merge some")]
    TooMany(UserName),
}

/// Who has what: made once, so that adding many accounts takes no longer for each the more there are.
#[derive(Debug, Default)]
pub struct Roll {
    names: HashSet<UserName>,
    pairs: HashMap<u32, UserName>,
    own: Taken,
    leased: Taken,
}

/// Prefixes and whose they are, by their first address. None lies within another.
#[derive(Debug, Default)]
struct Taken(BTreeMap<u128, (Ipv6Prefix, UserName)>);

impl Taken {
    fn put(&mut self, prefix: Ipv6Prefix, user: &UserName) {
        self.0.insert(prefix.addr().to_bits(), (prefix, user.clone()));
    }

    /// One that `prefix` meets: the last that begins before it, or the first that begins within it.
    fn meets(&self, prefix: Ipv6Prefix) -> Option<&(Ipv6Prefix, UserName)> {
        let start = prefix.addr().to_bits();
        let before = self.0.range(..=start).next_back();
        let within = self.0.range(start..).next();
        let near = before.into_iter().chain(within).map(|(_, taken)| taken);
        near.into_iter().find(|(other, _)| prefix.covers(*other) || other.covers(prefix))
    }
}

impl Roll {
    /// Of all that is remembered.
    pub fn new(memory: &Memory) -> Self {
        let mut roll = Self::default();
        memory.accounts.iter().for_each(|account| roll.enter(account));
        for grant in memory.leases.iter().map(|lease| &lease.grant) {
            grant.prefixes().for_each(|prefix| roll.leased.put(prefix, &grant.user));
        }
        roll
    }

    fn enter(&mut self, account: &Account) {
        self.names.insert(account.name.clone());
        self.pairs.extend(account.pair.map(|pair| (pair, account.name.clone())));
        account.prefixes.iter().for_each(|prefix| self.own.put(*prefix, &account.name));
    }

    /// Adds an account.
    ///
    /// # Errors
    /// What stands against it; nothing has changed then.
    pub fn add(&mut self, account: &Account) -> Result<Record, RollError> {
        let name = || account.name.clone();
        if self.names.contains(&account.name) {
            return Err(RollError::Exists(name()));
        }
        if account.prefixes.len() > MAX_OWN_PREFIXES {
            return Err(RollError::TooMany(name()));
        }
        if let Some(pair) = account.pair.filter(|pair| *pair >= PAIRS) {
            return Err(RollError::NoPair(pair));
        }
        for prefix in account.prefixes.iter().copied() {
            if let Some((other, owner)) = self.own.meets(prefix).cloned() {
                return Err(RollError::Prefix { user: name(), prefix, other, owner });
            }
            if let Some((other, owner)) = self.leased.meets(prefix).cloned() {
                return Err(RollError::InUse { prefix, other, owner });
            }
        }
        if let Some((pair, owner)) =
            account.pair.and_then(|pair| Some((pair, self.pairs.get(&pair)?.clone())))
        {
            return Err(RollError::Pair { pair, owner });
        }
        self.enter(account);
        Ok(Record::Account(account.clone()))
    }
}

/// Changes a secret.
///
/// # Errors
/// [`RollError::Unknown`].
pub fn change_secret(memory: &Memory, user: &UserName, secret: Secret) -> Result<Record, RollError> {
    let account = find(memory, user).ok_or_else(|| RollError::Unknown(user.clone()))?;
    Ok(Record::Account(Account { secret, ..account.clone() }))
}

/// Changes how an account may prove itself; tunnels that are up stay.
///
/// # Errors
/// [`RollError::Unknown`].
pub fn change_mechanisms(
    memory: &Memory,
    user: &UserName,
    mechanisms: Mechanisms,
) -> Result<Record, RollError> {
    let account = find(memory, user).ok_or_else(|| RollError::Unknown(user.clone()))?;
    Ok(Record::Account(Account { mechanisms, ..account.clone() }))
}

/// Removes an account; a running router ends its tunnels.
///
/// # Errors
/// [`RollError::Unknown`].
pub fn remove(memory: &Memory, user: &UserName) -> Result<Record, RollError> {
    let account = find(memory, user).ok_or_else(|| RollError::Unknown(user.clone()))?;
    Ok(Record::AccountGone(account.name.clone()))
}

fn find<'m>(memory: &'m Memory, user: &UserName) -> Option<&'m Account> {
    memory.accounts.iter().find(|account| account.name == *user)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::broker::Mechanism;

    fn account(name: &str, prefixes: &[&str], pair: Option<u32>) -> Account {
        Account {
            name: UserName::parse(name).unwrap(),
            secret: Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap(),
            prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
            pair,
            mechanisms: Mechanisms::ANY,
        }
    }

    fn refused(memory: &Memory, account: &Account) -> String {
        Roll::new(memory).add(account).unwrap_err().to_string()
    }

    #[test]
    fn what_is_one_user_s_is_no_other_s() {
        let alice = account("alice", &["2001:db8:1::/48"], Some(7));
        let memory = Memory { accounts: vec![alice.clone()], ..Memory::default() };
        assert!(refused(&memory, &alice).contains("already"));
        assert!(refused(&memory, &account("bob", &["2001:db8:1:2::/64"], None)).contains("alice"));
        assert!(refused(&memory, &account("bob", &["2001:db8::/32"], None)).contains("alice"));
        assert!(refused(&memory, &account("bob", &[], Some(7))).contains("pinned to 'alice'"));
        assert!(refused(&memory, &account("bob", &[], Some(PAIRS))).contains("beyond"));
        let bob = account("bob", &["2001:db8:2::/48"], Some(8));
        let mut roll = Roll::new(&memory);
        assert_eq!(roll.add(&bob), Ok(Record::Account(bob)));
        let inside = account("carol", &["2001:db8:2:1::/64"], None);
        assert!(
            roll.add(&inside).unwrap_err().to_string().contains("of 'bob'"),
            "the roll knows whom it added"
        );
    }

    #[test]
    fn only_known_users_change_and_go() {
        let alice = account("alice", &["2001:db8:1::/48"], Some(7));
        let memory = Memory { accounts: vec![alice.clone()], ..Memory::default() };
        let bob = UserName::parse("bob").unwrap();
        assert_eq!(remove(&memory, &bob), Err(RollError::Unknown(bob.clone())));
        assert!(change_secret(&memory, &bob, Secret::random([1; 16])).is_err());
        assert!(change_mechanisms(&memory, &bob, Mechanisms::ANY).is_err());
        let Ok(Record::Account(apop)) = change_mechanisms(&memory, &alice.name, "apop".parse().unwrap())
        else {
            panic!("alice is there")
        };
        assert!(apop.mechanisms.allow(Mechanism::Apop) && !apop.mechanisms.allow(Mechanism::Plain));
        assert_eq!(Account { mechanisms: Mechanisms::ANY, ..apop }, alice);
        let other = Secret::random([1; 16]);
        let changed = change_secret(&memory, &alice.name, other.clone()).unwrap();
        assert_eq!(changed, Record::Account(Account { secret: other, ..alice }));
    }
}
