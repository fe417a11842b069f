//! Accounts: a name, a secret, and what the operator has set aside for it.
//!
//! Secrets are kept in clear, in memory and in the store: APOP-like digests (RFC 1939 section 7, DTCP) and DIGEST-MD5
//! (RFC 2831) are computed from the secret itself. They are overwritten when they go, never printed, and compared in
//! constant time. Knows no protocol: how a proof is made is the caller's business.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use dashmap::DashMap;
use sixway_dataplane::update::Ipv6Prefix;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::mechanism::{Mechanism, Mechanisms};

/// The longest name of a user, in characters.
pub const MAX_USER: usize = 64;
/// The longest secret, in octets.
pub const MAX_SECRET: usize = 256;
/// The most prefixes set aside for one account.
pub const MAX_OWN_PREFIXES: usize = 32;

/// A user's name: 1 to [`MAX_USER`] of `A-Z a-z 0-9 . _ - + @`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName(Arc<str>);

/// Why a text is no user name or no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// Empty, too long, or a character that may not be in it.
    #[error("a user name has 1 to {MAX_USER} of the characters A-Z a-z 0-9 . _ - + @")]
    Name,
    /// Empty, too long, or not on one line.
    #[error("a secret has 1 to {MAX_SECRET} octets, none of them a line end or zero")]
    Secret,
}

impl UserName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`AccountError::Name`].
    pub fn parse(text: &str) -> Result<Self, AccountError> {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-+@".contains(c);
        if text.is_empty() || text.len() > MAX_USER || !text.chars().all(known) {
            return Err(AccountError::Name);
        }
        Ok(Self(text.into()))
    }

    /// The name under which nobody in particular is served who comes from `peer`. Nobody has an account of that name.
    pub fn anonymous(peer: Ipv4Addr) -> Self {
        Self(format!("{ANONYMOUS}{peer}").into())
    }

    /// Whether it stands for nobody in particular.
    pub fn is_anonymous(&self) -> bool {
        self.0.strip_prefix(ANONYMOUS).is_some_and(|peer| peer.parse::<Ipv4Addr>().is_ok())
    }

    /// A name that no account has: `parse` refuses it.
    pub(super) fn nobody() -> Self {
        Self("".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the names of those begin with who did not say who they are.
const ANONYMOUS: &str = "anonymous@";

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A secret: 1 to [`MAX_SECRET`] octets without line ends. Overwritten in memory when it goes.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Checks a secret; it is taken over, not copied.
    ///
    /// # Errors
    /// [`AccountError::Secret`].
    pub fn parse(octets: Zeroizing<Vec<u8>>) -> Result<Self, AccountError> {
        let refused = |octet: &u8| matches!(octet, b'\n' | b'\r' | 0);
        if octets.is_empty() || octets.len() > MAX_SECRET || octets.iter().any(refused) {
            return Err(AccountError::Secret);
        }
        Ok(Self(octets))
    }

    /// Makes one out of 16 random octets: 26 characters that are hard to mistake for each other.
    pub fn random(octets: [u8; 16]) -> Self {
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let bits = u128::from_be_bytes(octets);
        let text = (0..26).map(|n| LETTERS[(bits >> (n * 5)) as usize & 31]).collect();
        Self(Zeroizing::new(text))
    }

    /// The octets, to compute a proof from.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Whether two texts are the same, in a time that depends on their lengths only.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// One account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose it is.
    pub name: UserName,
    /// What proves it.
    pub secret: Secret,
    /// Networks that are this account's alone, instead of one from a pool.
    pub prefixes: Vec<Ipv6Prefix>,
    /// The number of its address pair, instead of the next free one.
    pub pair: Option<u32>,
    /// How it may prove itself.
    pub mechanisms: Mechanisms,
}

/// All accounts: written by the office when the store has changed, read by whoever checks a proof.
#[derive(Clone, Debug)]
pub struct Accounts {
    all: Arc<DashMap<UserName, Account>>,
    /// What a proof is computed from where there is no such account, so that it takes the same time.
    nobody: Secret,
}

impl Accounts {
    /// None yet. `seed` makes the secret that nobody has.
    pub fn new(seed: [u8; 16]) -> Self {
        Self { all: Arc::default(), nobody: Secret::random(seed) }
    }

    /// The account of that name.
    pub fn find(&self, user: &UserName) -> Option<Account> {
        if user.is_anonymous() {
            return Some(self.anonymous(user));
        }
        self.all.get(user).map(|found| found.clone())
    }

    /// Whoever it is, there is nothing set aside for him.
    fn anonymous(&self, user: &UserName) -> Account {
        Account {
            name: user.clone(),
            secret: self.nobody.clone(),
            prefixes: Vec::new(),
            pair: None,
            mechanisms: Mechanisms::ANY,
        }
    }

    /// Shows each one to `look`.
    pub fn each(&self, mut look: impl FnMut(&Account)) {
        self.all.iter().for_each(|account| look(&account));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Lets `prove` look at the user's secret; what it makes of it comes back where it was convinced. For a user who does
    /// not exist, or may not prove himself by this mechanism, it looks at another secret and is never convinced.
    pub fn prove<T>(
        &self,
        user: &str,
        by: Mechanism,
        prove: impl FnOnce(&Secret) -> Option<T>,
    ) -> Option<(UserName, T)> {
        let name = UserName::parse(user).ok();
        let found = name.as_ref().and_then(|name| self.all.get(name));
        let found = found.filter(|account| account.mechanisms.allow(by));
        let secret = found.as_ref().map_or(&self.nobody, |account| &account.secret);
        let proven = prove(secret);
        let owner = found.as_ref().map(|account| account.name.clone());
        owner.zip(proven)
    }

    /// Puts this account in the place of the one with its name.
    pub fn put(&self, account: Account) {
        self.all.insert(account.name.clone(), account);
    }

    /// Makes `wanted` all there is; returns the names of those that are gone.
    pub fn replace(&self, wanted: Vec<Account>) -> Vec<UserName> {
        let names: std::collections::HashSet<UserName> = wanted.iter().map(|a| a.name.clone()).collect();
        let gone: Vec<UserName> =
            self.all.iter().map(|a| a.name.clone()).filter(|name| !names.contains(name)).collect();
        gone.iter().for_each(|name| drop(self.all.remove(name)));
        wanted.into_iter().for_each(|account| self.put(account));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(Zeroizing::new(text.into())).unwrap()
    }

    fn account(name: &str, word: &str) -> Account {
        Account {
            name: UserName::parse(name).unwrap(),
            secret: secret(word),
            prefixes: Vec::new(),
            pair: None,
            mechanisms: Mechanisms::ANY,
        }
    }

    #[test]
    fn names_and_secrets_are_checked() {
        assert!(UserName::parse("alice.b-c_d+e@f").is_ok());
        for wrong in ["", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert_eq!(UserName::parse(wrong), Err(AccountError::Name), "{wrong:?}");
        }
        for wrong in ["", "a\nb", "a\0", &"x".repeat(257)] {
            assert!(Secret::parse(Zeroizing::new(wrong.into())).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nobody_in_particular_has_nothing_of_his_own() {
        let nobody = UserName::anonymous(Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(nobody.as_str(), "anonymous@192.0.2.9");
        assert!(UserName::parse(nobody.as_str()).is_ok_and(|name| name.is_anonymous()));
        assert!(!UserName::parse("anonymous@home").unwrap().is_anonymous());
        let all = Accounts::new([7; 16]);
        let prefixes = vec!["2001:db8::/48".parse().unwrap()];
        all.put(Account { prefixes, ..account(nobody.as_str(), "hush") });
        assert_eq!(all.find(&nobody).map(|found| found.prefixes), Some(vec![]), "whoever took the name");
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", account("alice", "hush"));
        assert!(!text.contains("hush"), "{text}");
    }

    #[test]
    fn made_secrets_are_long_and_differ() {
        let (a, b) = (Secret::random([1; 16]), Secret::random([2; 16]));
        assert!(a != b && a.expose().len() == 26 && Secret::parse(Zeroizing::new(a.expose().into())).is_ok());
    }

    #[test]
    fn only_the_right_secret_proves_and_nobody_is_never_proven() {
        let all = Accounts::new([7; 16]);
        all.put(account("alice", "hush"));
        let is = |word: &'static str| move |s: &Secret| same(s.expose(), word.as_bytes()).then_some(());
        assert_eq!(
            all.prove("alice", Mechanism::Apop, is("hush")).map(|(who, ())| who.to_string()),
            Some("alice".into())
        );
        assert!(all.prove("alice", Mechanism::Apop, is("hus")).is_none());
        assert!(all.prove("bob", Mechanism::Apop, |_| Some(())).is_none(), "whatever the proof says");
        assert!(all.prove("no name", Mechanism::Apop, |_| Some(())).is_none());
        all.put(Account { mechanisms: "digest-md5".parse().unwrap(), ..account("alice", "hush") });
        assert!(all.prove("alice", Mechanism::DigestMd5, is("hush")).is_some());
        for other in [Mechanism::Apop, Mechanism::Plain, Mechanism::ScramSha256] {
            assert!(all.prove("alice", other, |_| Some(())).is_none(), "whatever the proof says");
        }
    }

    #[test]
    fn a_new_list_names_who_is_gone() {
        let all = Accounts::new([7; 16]);
        assert!(all.replace(vec![account("a", "1"), account("b", "2")]).is_empty());
        let gone = all.replace(vec![account("b", "3")]);
        assert_eq!(gone, [UserName::parse("a").unwrap()]);
        assert_eq!(all.find(&UserName::parse("b").unwrap()).map(|a| a.secret), Some(secret("3")));
        assert_eq!(all.len(), 1);
    }
}
