//! Accounts out of the old files, beside those that the store has: users of `pop.auth`, with what `routetable` says.
//!
//! The store comes first: a user who is in both keeps the store's secret. What the route table says of a user holds
//! wherever the secret is from. Pure: texts have been read, and nothing is kept here.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::popauth::PopAuth;
use super::routetable::RouteTable;
use crate::broker::{Account, Mechanisms, Secret, UserName};
use crate::dtcp::interfaces::{LAST_PAIR, number};

/// All accounts, and a line for each user who could not be taken over.
pub fn merge(own: Vec<Account>, popauth: &PopAuth, table: &RouteTable) -> (Vec<Account>, Vec<String>) {
    let mut all: BTreeMap<UserName, Account> = own.into_iter().map(|one| (one.name.clone(), one)).collect();
    let mut notes = Vec::new();
    for (user, secret) in popauth.iter() {
        let account = match account(user, secret) {
            Ok(account) => account,
            Err(why) => {
                notes.push(format!("user '{}' of pop.auth is left out: {why}", user.escape_debug()));
                continue;
            }
        };
        if all.contains_key(&account.name) {
            notes.push(format!("user '{user}' is in the store too, and the secret there counts"));
            continue;
        }
        all.insert(account.name.clone(), account);
    }
    for (user, entry) in table.iter() {
        let Some(account) = UserName::parse(user).ok().and_then(|name| all.get_mut(&name)) else { continue };
        if !entry.prefixes.is_empty() {
            account.prefixes.clone_from(&entry.prefixes);
        }
        let pair = entry.interface.as_deref().and_then(number).filter(|n| *n <= LAST_PAIR);
        account.pair = pair.or(account.pair);
    }
    (all.into_values().collect(), notes)
}

/// One user of `pop.auth` as an account.
///
/// # Errors
/// That name or secret are none that an account may have.
pub fn account(user: &str, secret: &[u8]) -> Result<Account, String> {
    let name = UserName::parse(user).map_err(|why| why.to_string())?;
    let secret = Secret::parse(Zeroizing::new(secret.to_vec())).map_err(|why| why.to_string())?;
    Ok(Account { name, secret, prefixes: Vec::new(), pair: None, mechanisms: Mechanisms::ANY })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lend_accounts_and_the_store_s_come_first() {
        let mut popauth = PopAuth::default();
        for (user, secret) in [("alice", "theirs"), ("bob", "word"), ("b b", "x")] {
            popauth.set(user, Zeroizing::new(secret.into()));
        }
        let table = "alice 2001:db8:1::/48\nbob - gif12\ncarol 2001:db8:2::/48\n";
        let table = RouteTable::parse(table).unwrap();
        let own = vec![account("alice", b"ours").unwrap()];
        let (all, notes) = merge(own, &popauth, &table);
        let [alice, bob] = &all[..] else { panic!("{all:?}") };
        assert_eq!(alice.secret.expose(), b"ours");
        assert_eq!(alice.prefixes, ["2001:db8:1::/48".parse().unwrap()]);
        assert_eq!((bob.name.as_str(), bob.secret.expose(), bob.pair), ("bob", &b"word"[..], Some(12)));
        assert_eq!(notes.len(), 2, "{notes:?}");
    }
}
