//! Tokens to statements, with all included files in their places.
//!
//! Form alone: whether a pool exists or a lifetime makes sense is `apply`'s business. Behind a mistake it goes on with the next
//! word that begins a statement and stands nowhere else.

use std::io::ErrorKind;
use std::net::Ipv6Addr;

use super::lexer::{Lexer, Token};
use super::values::{Duid, Lifetimes};
use super::words::{
    ADDRESSES, DOMAINS, EXCLUDED_SUBNET, LEASE_QUERY, PREFIX_POOL, RELAY_ID, is_keyword, options,
};
use super::{MAX_DEPTH, MAX_INCLUDES, MAX_WRONG, Notes, Place, Remark, Surroundings};

/// One statement with its place.
pub(super) enum Statement {
    /// `option` with addresses, by option code.
    Addresses(Place, u16, Vec<Ipv6Addr>),
    /// `option` with a name, by option code.
    Name(Place, u16, String),
    /// `option refreshtime`, in seconds.
    Refresh(Place, u64),
    /// `lease-query`: addresses with prefix lengths.
    LeaseQuery(Place, Vec<(Ipv6Addr, u64)>),
    Interface(Block<InterfaceDecl>),
    Host(Block<HostDecl>),
    Pool(Block<PoolDecl>),
    Key(Block<KeyDecl>),
    Authentication(Block<AuthDecl>),
}

/// A statement with a name and declarations between braces.
pub(super) struct Block<T> {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) decls: Vec<(Place, T)>,
}

pub(super) enum InterfaceDecl {
    AllowRapidCommit,
    SendRapidCommit,
    Preference(u64),
    Pool(PoolRef),
    PrefixPool(PrefixPoolDecl),
    RelayId(String),
    DeclineTime(u64),
    /// By option code.
    MaxRt(u16, u64),
    Unasked(Vec<u64>),
    Supplied(Vec<u64>),
    ExcludedSubnet(SubnetDecl),
}

pub(super) enum HostDecl {
    Duid(Duid),
    Prefix(Ipv6Addr, u64, Life),
    Address(Ipv6Addr, Life),
    Pool(PoolRef),
    PrefixPool(PrefixPoolDecl),
    ExcludedPrefix(Ipv6Addr, u64),
    ExcludedSubnet(SubnetDecl),
    DelayedKey(String),
    /// The enterprise's number, and what its relays say.
    RemoteId(u64, String),
    SubscriberId(String),
}

pub(super) enum PoolDecl {
    /// From the lowest address to the highest.
    Range(Ipv6Addr, Ipv6Addr),
    LowestFirst,
}

/// `excluded-subnet LENGTH NUMBER`.
pub(super) struct SubnetDecl {
    pub(super) len: u64,
    pub(super) number: u64,
}

/// `address-pool NAME LIFE [LIFE]`.
pub(super) struct PoolRef {
    pub(super) name: String,
    pub(super) life: Life,
}

/// `delegated-prefix-pool PREFIX/LENGTH LENGTH LIFE [LIFE]`.
pub(super) struct PrefixPoolDecl {
    pub(super) space: (Ipv6Addr, u64),
    pub(super) len: u64,
    pub(super) life: Life,
}

/// Preferred and valid lifetime as written, in seconds; whether the pair makes sense is not known yet.
#[derive(Clone, Copy)]
pub(super) struct Life {
    pub(super) preferred: u32,
    pub(super) valid: u32,
}

pub(super) enum KeyDecl {
    Realm(String),
    Id(u64),
    Secret(String),
    Expire(String),
}

pub(super) enum AuthDecl {
    Delayed,
    Reconfigure,
    /// Algorithm, replay detection or key: nothing follows from them in a server.
    Other,
}

type Parsed<T> = Result<T, Remark>;

/// All statements of a file and of those that it includes, in order.
pub(super) fn parse(
    file: &str,
    text: &[u8],
    around: &dyn Surroundings,
    notes: &mut Notes,
) -> Result<Vec<Statement>, Vec<Remark>> {
    let mut all = Vec::new();
    let mut inner = Includes { around, read: 0, depth: 0, wrong: Vec::new(), is_over: false };
    Parser::new(file, text, notes).file(&mut inner, &mut all);
    if inner.wrong.is_empty() { Ok(all) } else { Err(inner.wrong) }
}

struct Includes<'a> {
    around: &'a dyn Surroundings,
    read: usize,
    depth: usize,
    wrong: Vec<Remark>,
    /// Nothing is read any further, in whatever file.
    is_over: bool,
}

/// Words that begin statements. What lies between a mistake and the next of them is not looked at.
const BEGINNINGS: &[&str] = &[
    "option",
    "interface",
    "host",
    "pool",
    "keyinfo",
    "authentication",
    "include",
    "profile",
    "id-assoc",
    LEASE_QUERY,
];

struct Parser<'a, 'n> {
    lexer: Lexer<'a>,
    notes: &'n mut Notes,
    ahead: Option<(Token, Place)>,
    /// What was read last, and where ends what stands before it.
    last: Option<(Token, Place)>,
    behind: Place,
}

impl<'a, 'n> Parser<'a, 'n> {
    fn new(file: &str, text: &'a [u8], notes: &'n mut Notes) -> Self {
        let lexer = Lexer::new(file, text);
        let behind = lexer.place();
        Self { lexer, notes, ahead: None, last: None, behind }
    }

    fn next(&mut self) -> (Token, Place) {
        if let Some(ahead) = self.ahead.take() {
            return ahead;
        }
        self.behind = self.lexer.place();
        let next = self.lexer.next(self.notes);
        self.last = Some(next.clone());
        next
    }

    /// A sign that is missing is missing behind what stands before it, however many lines follow.
    fn sign(&mut self, sign: char, after: &str) -> Parsed<()> {
        match self.next() {
            (Token::Punct(found), _) if found == sign => Ok(()),
            (found, _) => wrong(&self.behind, &format!("'{sign}' {after}"), &found),
        }
    }

    /// All statements of a file, with every mistake.
    fn file(&mut self, inner: &mut Includes<'_>, all: &mut Vec<Statement>) {
        while !inner.is_over {
            let Err(mistake) = self.statements(inner, all) else { return };
            inner.wrong.push(mistake);
            inner.is_over |= inner.wrong.len() >= MAX_WRONG;
            if !self.find_beginning() {
                return;
            }
        }
    }

    /// Goes to the next word that begins a statement; says whether there is one. What was read last may be one.
    fn find_beginning(&mut self) -> bool {
        let mut at = self.ahead.take().or_else(|| self.last.take());
        loop {
            match at {
                Some((Token::End, _)) => return false,
                Some((Token::Word(word), place)) if BEGINNINGS.contains(&word.as_str()) => {
                    self.ahead = Some((Token::Word(word), place));
                    return true;
                }
                _ => at = Some(self.next()),
            }
        }
    }

    fn end(&mut self) -> Parsed<()> {
        self.sign(';', "at the end of the statement")
    }

    fn statements(&mut self, inner: &mut Includes<'_>, all: &mut Vec<Statement>) -> Parsed<()> {
        const WANTED: &str =
            "'option', 'interface', 'host', 'pool', 'keyinfo', 'authentication', 'lease-query' or 'include'";
        loop {
            let (token, place) = self.next();
            let word = match token {
                Token::End => return Ok(()),
                Token::Word(word) => word,
                found @ (Token::Name(_)
                | Token::Number(_)
                | Token::Quoted(_)
                | Token::Duid(_)
                | Token::Punct(_)) => {
                    return wrong(&place, WANTED, &found);
                }
            };
            let statement = match word.as_str() {
                "option" => self.option(place)?,
                "interface" => Statement::Interface(self.block(place, Self::interface_decl)?),
                "host" => Statement::Host(self.block(place, Self::host_decl)?),
                "pool" => Statement::Pool(self.block(place, Self::pool_decl)?),
                "keyinfo" => Statement::Key(self.block(place, Self::key_decl)?),
                "authentication" => Statement::Authentication(self.block(place, Self::auth_decl)?),
                LEASE_QUERY => Statement::LeaseQuery(place, self.requestors()?),
                "include" => {
                    self.include(&place, inner, all)?;
                    continue;
                }
                "profile" | "id-assoc" => {
                    self.foreign(&place, &word)?;
                    continue;
                }
                _ => return wrong(&place, WANTED, &Token::Word(word)),
            };
            all.push(statement);
        }
    }

    fn option(&mut self, place: Place) -> Parsed<Statement> {
        let (token, at) = self.next();
        let Token::Word(word) = &token else { return wrong(&at, &options(), &token) };
        let code = |list: &[(&str, u16)]| list.iter().find(|(name, _)| name == word).map(|(_, code)| *code);
        let statement = if let Some(code) = code(ADDRESSES) {
            Statement::Addresses(place, code, self.addresses()?)
        } else if let Some(code) = code(DOMAINS) {
            Statement::Name(place, code, self.quoted("a name in quotes")?)
        } else if word == "refreshtime" {
            Statement::Refresh(place, self.number("a time in seconds, 600 to 4294967295")?)
        } else {
            return wrong(&at, &options(), &token);
        };
        self.end()?;
        Ok(statement)
    }

    fn addresses(&mut self) -> Parsed<Vec<Ipv6Addr>> {
        let mut list = Vec::new();
        loop {
            let (token, place) = self.next();
            if token == Token::Punct(';') {
                self.ahead = Some((token, place));
                return Ok(list);
            }
            list.push(address(token, &place, "an IPv6 address, or ';' (addresses are parted by blanks)")?);
        }
    }

    /// Addresses, and prefixes, up to the end of the statement; commas between them are allowed.
    fn requestors(&mut self) -> Parsed<Vec<(Ipv6Addr, u64)>> {
        const WANTED: &str = "an IPv6 address or prefix of those who may ask, as in 2001:db8::/48";
        let mut list = Vec::new();
        loop {
            let (token, at) = self.next();
            let addr = address(token, &at, WANTED)?;
            let (mut token, mut at) = self.next();
            let mut len = 128;
            if token == Token::Punct('/') {
                len = self.number("a prefix length, 0 to 128")?;
                (token, at) = self.next();
            }
            list.push((addr, len));
            if token == Token::Punct(';') {
                return Ok(list);
            }
            if token != Token::Punct(',') {
                self.ahead = Some((token, at));
            }
        }
    }

    fn block<T>(&mut self, place: Place, decl: fn(&mut Self, &str, &Place) -> Parsed<T>) -> Parsed<Block<T>> {
        let (token, at) = self.next();
        let Token::Name(name) = token else { return wrong(&at, "a name", &token) };
        self.sign('{', "behind the name")?;
        let mut decls = Vec::new();
        loop {
            let (token, at) = self.next();
            let word = match &token {
                Token::Punct('}') => break,
                Token::Word(word) => word.as_str(),
                // What says nothing but itself is refused by the declaration, which knows what it wants.
                Token::Name(_)
                | Token::Number(_)
                | Token::Quoted(_)
                | Token::Duid(_)
                | Token::Punct(_)
                | Token::End => {
                    return wrong(&at, "a declaration, or '}'", &token);
                }
            };
            let said = decl(self, word, &at)?;
            self.end()?;
            decls.push((at, said));
        }
        self.sign(';', "behind '}'")?;
        Ok(Block { place, name, decls })
    }

    fn interface_decl(&mut self, word: &str, place: &Place) -> Parsed<InterfaceDecl> {
        Ok(match word {
            "allow" => {
                self.keyword("rapid-commit")?;
                InterfaceDecl::AllowRapidCommit
            }
            "send" => {
                self.keyword("rapid-commit")?;
                InterfaceDecl::SendRapidCommit
            }
            "preference" => InterfaceDecl::Preference(self.number("a preference, 0 to 255")?),
            "address-pool" => InterfaceDecl::Pool(self.pool_ref()?),
            PREFIX_POOL => InterfaceDecl::PrefixPool(self.prefix_pool()?),
            RELAY_ID => InterfaceDecl::RelayId(self.quoted("what relays call the interface, in quotes")?),
            "decline-time" => InterfaceDecl::DeclineTime(self.number("a time in seconds")?),
            "solicit-max-rt" => InterfaceDecl::MaxRt(82, self.number("a time in seconds, 60 to 86400")?),
            "information-max-rt" => InterfaceDecl::MaxRt(83, self.number("a time in seconds, 60 to 86400")?),
            "send-unasked" => InterfaceDecl::Unasked(self.numbers()?),
            "relay-supplied" => InterfaceDecl::Supplied(self.numbers()?),
            EXCLUDED_SUBNET => InterfaceDecl::ExcludedSubnet(self.subnet()?),
            "request" | "information-only" | "script" => {
                return remark(place, format!("'{word}' is for clients; remove it from a server's file"));
            }
            _ => {
                const WANTED: &str = "'allow', 'preference', 'address-pool', 'delegated-prefix-pool', \
                                      'excluded-subnet', 'relay-interface-id', 'relay-supplied', 'decline-time', \
                                      'solicit-max-rt', 'information-max-rt' or 'send-unasked' (in an interface)";
                return wrong(place, WANTED, &Token::Word(word.to_owned()));
            }
        })
    }

    fn host_decl(&mut self, word: &str, place: &Place) -> Parsed<HostDecl> {
        Ok(match word {
            "duid" => {
                let (token, at) = self.next();
                let Token::Duid(duid) = token else { return wrong(&at, "a DUID", &token) };
                HostDecl::Duid(duid.or_else(|why| remark(&at, why.to_string()))?)
            }
            "prefix" => {
                let (addr, len) = self.prefix()?;
                HostDecl::Prefix(addr, len, self.life()?)
            }
            "address" => {
                let (token, at) = self.next();
                let addr = address(token, &at, "an IPv6 address")?;
                HostDecl::Address(addr, self.life()?)
            }
            "address-pool" => HostDecl::Pool(self.pool_ref()?),
            PREFIX_POOL => HostDecl::PrefixPool(self.prefix_pool()?),
            "excluded-prefix" => {
                let (addr, len) = self.prefix()?;
                HostDecl::ExcludedPrefix(addr, len)
            }
            EXCLUDED_SUBNET => HostDecl::ExcludedSubnet(self.subnet()?),
            "remote-id" => {
                let enterprise = self.number("the number of the relay's enterprise, as in 9 \"line7\"")?;
                HostDecl::RemoteId(enterprise, self.quoted("what relays call the line, in quotes")?)
            }
            "subscriber-id" => {
                HostDecl::SubscriberId(self.quoted("what relays call the subscriber, in quotes")?)
            }
            "delayedkey" => HostDecl::DelayedKey(self.reference("a key")?),
            _ => {
                const WANTED: &str = "'duid', 'prefix', 'address', 'address-pool', 'delegated-prefix-pool', \
                                      'excluded-prefix', 'excluded-subnet', 'remote-id', 'subscriber-id' or 'delayedkey' \
                                      (in a host)";
                return wrong(place, WANTED, &Token::Word(word.to_owned()));
            }
        })
    }

    fn pool_decl(&mut self, word: &str, place: &Place) -> Parsed<PoolDecl> {
        match word {
            "range" => {}
            "lowest-first" => return Ok(PoolDecl::LowestFirst),
            _ => {
                const WANTED: &str = "'range ADDRESS to ADDRESS' or 'lowest-first' (in a pool)";
                return wrong(place, WANTED, &Token::Word(word.to_owned()));
            }
        }
        let (token, at) = self.next();
        let first = address(token, &at, "the lowest IPv6 address of the range")?;
        self.keyword("to")?;
        let (token, at) = self.next();
        Ok(PoolDecl::Range(first, address(token, &at, "the highest IPv6 address of the range")?))
    }

    fn key_decl(&mut self, word: &str, place: &Place) -> Parsed<KeyDecl> {
        Ok(match word {
            "realm" => KeyDecl::Realm(self.quoted("a realm in quotes")?),
            "keyid" => KeyDecl::Id(self.number("a key number, 0 to 4294967295")?),
            "secret" => KeyDecl::Secret(self.quoted("a secret in quotes, in base64")?),
            "expire" => KeyDecl::Expire(self.quoted("a time in quotes")?),
            _ => {
                const WANTED: &str = "'realm', 'keyid', 'secret' or 'expire' (in a keyinfo)";
                return wrong(place, WANTED, &Token::Word(word.to_owned()));
            }
        })
    }

    fn auth_decl(&mut self, word: &str, place: &Place) -> Parsed<AuthDecl> {
        match word {
            "protocol" => match self.next() {
                (Token::Word(word), _) if word == "delayed" => Ok(AuthDecl::Delayed),
                (Token::Word(word), _) if word == "reconfig" => Ok(AuthDecl::Reconfigure),
                (found, at) => wrong(&at, "'reconfig'", &found),
            },
            "algorithm" => self.one_of(&["hmac-md5", "HMAC-MD5", "hmacmd5", "HMACMD5"]),
            "rdm" => self.one_of(&["monocounter"]),
            "key" => self.reference("a key").map(|_| AuthDecl::Other),
            _ => {
                const WANTED: &str = "'protocol', 'algorithm', 'rdm' or 'key' (in an authentication)";
                wrong(place, WANTED, &Token::Word(word.to_owned()))
            }
        }
    }

    fn one_of(&mut self, words: &[&str]) -> Parsed<AuthDecl> {
        match self.next() {
            (Token::Word(word), _) if words.contains(&word.as_str()) => Ok(AuthDecl::Other),
            (found, at) => wrong(&at, &format!("'{}'", words.first().copied().unwrap_or_default()), &found),
        }
    }

    fn keyword(&mut self, wanted: &str) -> Parsed<()> {
        match self.next() {
            (Token::Word(word), _) if word == wanted => Ok(()),
            (found, place) => wrong(&place, &format!("'{wanted}'"), &found),
        }
    }

    fn number(&mut self, wanted: &str) -> Parsed<u64> {
        match self.next() {
            (Token::Number(number), _) => Ok(number),
            (found, place) => wrong(&place, wanted, &found),
        }
    }

    /// Numbers up to the end of the statement.
    fn numbers(&mut self) -> Parsed<Vec<u64>> {
        let mut list = vec![self.number("the code of an option")?];
        loop {
            match self.next() {
                (Token::Number(number), _) => list.push(number),
                other => {
                    self.ahead = Some(other);
                    return Ok(list);
                }
            }
        }
    }

    fn quoted(&mut self, wanted: &str) -> Parsed<String> {
        match self.next() {
            (Token::Quoted(text), _) => Ok(text),
            (found, place) => wrong(&place, wanted, &found),
        }
    }

    /// The name of a pool or a key, where neither numbers nor keywords are understood.
    fn reference(&mut self, what: &str) -> Parsed<String> {
        match self.next() {
            (Token::Word(word), _) if !is_keyword(&word) => Ok(word),
            (found, place) => {
                wrong(&place, &format!("the name of {what} (neither a number nor a keyword)"), &found)
            }
        }
    }

    fn pool_ref(&mut self) -> Parsed<PoolRef> {
        Ok(PoolRef { name: self.reference("a pool")?, life: self.life()? })
    }

    fn prefix_pool(&mut self) -> Parsed<PrefixPoolDecl> {
        let space = self.prefix()?;
        let len = self.number("the length of each delegated prefix, as in 2001:db8::/40 56 3600 7200")?;
        Ok(PrefixPoolDecl { space, len, life: self.life()? })
    }

    fn subnet(&mut self) -> Parsed<SubnetDecl> {
        let len = self.number("the length of what is excluded from each delegated prefix, as in 64 0")?;
        Ok(SubnetDecl { len, number: self.number("which one that is, from 0")? })
    }

    fn prefix(&mut self) -> Parsed<(Ipv6Addr, u64)> {
        let (token, at) = self.next();
        let addr = address(token, &at, "an IPv6 prefix, as in 2001:db8::/48")?;
        self.sign('/', "behind the prefix's address")?;
        Ok((addr, self.number("a prefix length, 0 to 128")?))
    }

    /// One lifetime for both, or two.
    fn life(&mut self) -> Parsed<Life> {
        const WANTED: &str = "a lifetime: seconds or 'infinity'";
        let (token, place) = self.next();
        let preferred =
            self.one_life(&token, &place).ok_or(()).or_else(|()| wrong(&place, WANTED, &token))?;
        let (token, place) = self.next();
        let valid = match self.one_life(&token, &place) {
            Some(valid) => valid,
            None => {
                self.ahead = Some((token, place));
                preferred
            }
        };
        Ok(Life { preferred, valid })
    }

    fn one_life(&mut self, token: &Token, place: &Place) -> Option<u32> {
        match token {
            Token::Word(word) if word == "infinity" => Some(Lifetimes::INFINITY),
            Token::Number(seconds) => Some(u32::try_from(*seconds).unwrap_or_else(|_| {
                self.notes.push(place, format!("a lifetime of {seconds} s is taken as 'infinity'"));
                Lifetimes::INFINITY
            })),
            Token::Word(_)
            | Token::Name(_)
            | Token::Quoted(_)
            | Token::Duid(_)
            | Token::Punct(_)
            | Token::End => None,
        }
    }

    fn include(&mut self, place: &Place, inner: &mut Includes<'_>, all: &mut Vec<Statement>) -> Parsed<()> {
        let file = self.quoted("a file's name in quotes")?;
        self.end()?;
        if inner.depth == MAX_DEPTH || inner.read == MAX_INCLUDES {
            let what = format!(
                "files include files {MAX_DEPTH} deep and {MAX_INCLUDES} in all at most; does one include itself?"
            );
            inner.is_over = true;
            return remark(place, what);
        }
        inner.read += 1;
        let text = match inner.around.read(&file) {
            Ok(text) => text,
            Err(why) if why.kind() == ErrorKind::NotFound => {
                self.notes.push(place, format!("'{file}' is not there and left out"));
                return Ok(());
            }
            Err(why) => return remark(place, format!("cannot read '{file}': {why}")),
        };
        inner.depth += 1;
        Parser::new(&file, &text, self.notes).file(inner, all);
        inner.depth -= 1;
        Ok(())
    }

    /// A client's statement: read to its end, without effect.
    fn foreign(&mut self, place: &Place, word: &str) -> Parsed<()> {
        self.notes.push(place, format!("'{word}' is for clients and says nothing here"));
        let mut deep = 0_usize;
        let mut opened = false;
        loop {
            match self.next() {
                (Token::Punct('{'), _) => {
                    deep += 1;
                    opened = true;
                }
                (Token::Punct('}'), _) if deep > 0 => deep -= 1,
                (Token::Punct(';'), _) if deep == 0 && opened => return Ok(()),
                (found @ (Token::Punct('}' | ';') | Token::End), at) if deep == 0 || found == Token::End => {
                    return wrong(&at, "'{', declarations, '}' and ';'", &found);
                }
                (found, at) if deep == 0 && opened => return wrong(&at, "';' behind '}'", &found),
                _ => {}
            }
        }
    }
}

fn address(token: Token, place: &Place, wanted: &str) -> Parsed<Ipv6Addr> {
    match &token {
        Token::Word(word) => word.parse().or_else(|_| wrong(place, wanted, &token)),
        Token::Name(_)
        | Token::Number(_)
        | Token::Quoted(_)
        | Token::Duid(_)
        | Token::Punct(_)
        | Token::End => wrong(place, wanted, &token),
    }
}

fn wrong<T>(place: &Place, wanted: &str, found: &Token) -> Parsed<T> {
    remark(place, format!("{wanted} is expected, and {found} found"))
}

fn remark<T>(place: &Place, what: String) -> Parsed<T> {
    Err(Remark { place: place.clone(), what })
}
