//! DIGEST-MD5 (RFC 2831): `algorithm=md5-sess`, `qop=auth`, one round, as TSP has it (RFC 5572 section 4.4.2).
//!
//! What is written is what deployed clients read: all four of realm, nonce, qop and charset, no blank behind a comma. What
//! is read may be quoted or bare. No second login by the same nonce (subsequent authentication, section 2.2), and no layer
//! for integrity or secrecy. MD5 is no good hash, but what real clients know.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Claim, Identity, Mechanism, Proof, Site, decode, hexadecimal};

/// The most `key=value` pairs of one message; ten are known.
const MOST_PAIRS: usize = 32;
/// A nonce serves one login, so its count is always the first.
const FIRST: &str = "00000001";
const QOP: &str = "auth";

/// What is hashed beside the secret.
#[derive(Debug)]
struct Terms {
    realm: String,
    nonce: String,
    cnonce: String,
    uri: String,
    authzid: Option<String>,
}

impl Terms {
    /// HA1 of RFC 2831 section 2.1.2.1, as digits.
    fn key(&self, user: &str, secret: &[u8]) -> Zeroizing<String> {
        let inner: [u8; 16] = md5(&[user.as_bytes(), b":", self.realm.as_bytes(), b":", secret]);
        let inner = Zeroizing::new(inner);
        let mut hash = Md5::new();
        hash.update(inner.as_slice());
        for part in [&self.nonce, &self.cnonce].into_iter().chain(&self.authzid) {
            hash.update(b":");
            hash.update(part.as_bytes());
        }
        Zeroizing::new(hexadecimal(&hash.finalize()))
    }

    /// The digits that prove `key`: the client's with `AUTHENTICATE`, the server's without it.
    fn proof(&self, key: &str, verb: &str) -> String {
        let last = hexadecimal(&md5(&[verb.as_bytes(), b":", self.uri.as_bytes()]));
        let parts = [key, &self.nonce, FIRST, &self.cnonce, QOP, &last];
        hexadecimal(&md5(&[parts.join(":").as_bytes()]))
    }

    fn of_client(&self, key: &str) -> String {
        self.proof(key, "AUTHENTICATE")
    }

    fn of_server(&self, key: &str) -> String {
        self.proof(key, "")
    }
}

fn md5(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// A challenge that waits for its answer.
#[derive(Debug)]
pub(super) struct Server {
    realm: String,
    service: &'static str,
    nonce: String,
}

impl Server {
    pub(super) fn new(site: &Site, nonce: String) -> Self {
        Self { realm: site.realm.clone(), service: site.service, nonce }
    }

    pub(super) fn challenge(&self) -> String {
        let Self { realm, nonce, .. } = self;
        format!("realm=\"{realm}\",nonce=\"{nonce}\",qop=\"{QOP}\",algorithm=md5-sess,charset=utf-8")
    }

    /// The answer to it.
    pub(super) fn claim(self, message: &[u8]) -> Result<Claim, &'static str> {
        let pairs = Pairs::parse(&decode(message)?)?;
        let user = pairs.need("username")?;
        let right_nonce: bool = pairs.need("nonce")?.as_bytes().ct_eq(self.nonce.as_bytes()).into();
        if !right_nonce {
            return Err("the nonce is not ours");
        }
        if pairs.one("realm")?.unwrap_or_default() != self.realm {
            return Err("the realm is not ours");
        }
        if pairs.need("nc")? != FIRST {
            return Err("the nonce has been used before");
        }
        if pairs.one("qop")?.is_some_and(|qop| qop != QOP) {
            return Err("only qop=auth is done");
        }
        let uri = pairs.need("digest-uri")?;
        if !uri.strip_prefix(self.service).is_some_and(|rest| rest.starts_with('/')) {
            return Err("digest-uri is another service's");
        }
        let authzid = pairs.one("authzid")?;
        if authzid.is_some_and(|other| other != user) {
            return Err("nobody can act for another user");
        }
        let terms = Terms {
            realm: self.realm,
            nonce: self.nonce,
            cnonce: pairs.need("cnonce")?.to_owned(),
            uri: uri.to_owned(),
            authzid: authzid.map(str::to_owned),
        };
        let said = pairs.need("response")?.to_ascii_lowercase();
        let proof = Proof::Digest(Response { terms, said });
        Ok(Claim { user: user.to_owned(), mechanism: Mechanism::DigestMd5, proof })
    }
}

/// An answer that has not been looked at.
#[derive(Debug)]
pub(super) struct Response {
    terms: Terms,
    said: String,
}

impl Response {
    /// The server's own proof, where the client knows `secret`.
    pub(super) fn prove(&self, user: &str, secret: &[u8]) -> Option<String> {
        let is_right = |secret: &[u8]| {
            let key = self.terms.key(user, secret);
            let right: bool = self.terms.of_client(&key).as_bytes().ct_eq(self.said.as_bytes()).into();
            right.then(|| format!("rspauth={}", self.terms.of_server(&key)))
        };
        // Clients hash what was typed, or, as section 2.1.2.1 has it, ISO 8859-1 where that can be written so.
        is_right(secret).or_else(|| is_right(&latin(secret)?))
    }
}

/// The secret in ISO 8859-1, where that is something else and can be.
fn latin(secret: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if secret.is_ascii() {
        return None;
    }
    let text = std::str::from_utf8(secret).ok()?;
    let octets = text.chars().map(|c| u8::try_from(u32::from(c)).ok());
    octets.collect::<Option<Vec<u8>>>().map(Zeroizing::new)
}

/// The client's half.
#[derive(Debug)]
pub(super) struct Client {
    uri: String,
    cnonce: String,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Challenge,
    /// The server must prove itself by these digits.
    Answered(String),
    Convinced,
    Failed,
}

impl Client {
    pub(super) fn new(uri: &str, cnonce: String) -> Self {
        Self { uri: uri.to_owned(), cnonce, stage: Stage::Challenge }
    }

    pub(super) fn is_convinced(&self) -> bool {
        matches!(self.stage, Stage::Convinced)
    }

    pub(super) fn step(&mut self, who: &Identity, line: &[u8]) -> Result<Option<String>, &'static str> {
        let pairs = Pairs::parse(&decode(line)?)?;
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Challenge => self.answer(who, &pairs).map(Some),
            Stage::Answered(wanted) => {
                let right: bool = pairs.need("rspauth")?.as_bytes().ct_eq(wanted.as_bytes()).into();
                if !right {
                    return Err("it does not know our password");
                }
                self.stage = Stage::Convinced;
                Ok(None)
            }
            Stage::Convinced | Stage::Failed => Err("nothing is expected there"),
        }
    }

    fn answer(&mut self, who: &Identity, challenge: &Pairs) -> Result<String, &'static str> {
        // Several realms may be offered: the first.
        let realm = challenge.first("realm").unwrap_or_default().to_owned();
        let nonce = challenge.need("nonce")?.to_owned();
        if !challenge.first("algorithm").is_none_or(|word| word.eq_ignore_ascii_case("md5-sess")) {
            return Err("the algorithm is not md5-sess");
        }
        let offers = challenge.first("qop").unwrap_or(QOP);
        if !offers.split(',').any(|word| word.trim().eq_ignore_ascii_case(QOP)) {
            return Err("it does not offer qop=auth");
        }
        let uri = self.uri.clone();
        let terms = Terms { realm, nonce, cnonce: self.cnonce.clone(), uri, authzid: None };
        let key = terms.key(&who.user, &who.secret);
        self.stage = Stage::Answered(terms.of_server(&key));
        // Old servers write utf8; they get back what they sent.
        let charset = challenge.first("charset").map(|word| format!("charset={word},")).unwrap_or_default();
        let Terms { realm, nonce, cnonce, uri, .. } = &terms;
        let (user, response) = (quoted(&who.user), terms.of_client(&key));
        Ok(format!(
            "{charset}username=\"{user}\",realm=\"{}\",nonce=\"{}\",nc={FIRST},cnonce=\"{cnonce}\",digest-uri=\"{uri}\",\
             response={response},qop={QOP}",
            quoted(realm),
            quoted(nonce),
        ))
    }
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// `key=value,key="value"`.
#[derive(Debug)]
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut found = Vec::new();
        let mut rest = text.trim_start_matches(BETWEEN);
        while !rest.is_empty() {
            if found.len() == MOST_PAIRS {
                return Err("it has too many parts");
            }
            let (key, after) = rest.split_once('=').ok_or("a part of it has no value")?;
            let (value, after) = value(after.trim_start())?;
            found.push((key.trim().to_ascii_lowercase(), value));
            rest = after.trim_start_matches(BETWEEN);
        }
        Ok(Self(found))
    }

    fn first(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The only value of that key.
    fn one(&self, key: &str) -> Result<Option<&str>, &'static str> {
        match self.0.iter().filter(|(name, _)| name == key).count() {
            0 | 1 => Ok(self.first(key)),
            _ => Err("a part of it is there twice"),
        }
    }

    fn need(&self, key: &str) -> Result<&str, &'static str> {
        self.one(key)?.filter(|value| !value.is_empty()).ok_or("a part of it is missing")
    }
}

const BETWEEN: &[char] = &[' ', '\t', '\r', '\n', '\0', ','];

/// The value at the beginning of `text`, without its quotes, and what follows it.
fn value(text: &str) -> Result<(String, &str), &'static str> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Ok((text[..end].trim_end_matches(BETWEEN).to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut letters = inner.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &inner[at + 1..])),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    Err("a quote has no end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::encode;

    struct Vector {
        user: &'static str,
        secret: &'static str,
        realm: &'static str,
        nonce: &'static str,
        cnonce: &'static str,
        uri: &'static str,
        response: &'static str,
        rspauth: &'static str,
    }

    /// The two examples of RFC 2831 section 4, the one of RFC 5572 (figure 12, whose password is `password`), and two
    /// sessions of gogoc 1.2.
    const VECTORS: [Vector; 5] = [
        Vector {
            user: "chris",
            secret: "secret",
            realm: "elwood.innosoft.com",
            nonce: "OA6MG9tEQGm2hh",
            cnonce: "OA6MHXh6VqTrRk",
            uri: "imap/elwood.innosoft.com",
            response: "d388dad90d4bbd760a152321f2143af7",
            rspauth: "ea40f60335c427b5527b84dbabcdfffd",
        },
        Vector {
            user: "chris",
            secret: "secret",
            realm: "elwood.innosoft.com",
            nonce: "OA9BSXrbuRhWay",
            cnonce: "OA9BSuZWMSpW8m",
            uri: "acap/elwood.innosoft.com",
            response: "6084c6db3fede7352c551284490fd0fc",
            rspauth: "2f0b3d7c3c2e486600ef710726aa2eae",
        },
        Vector {
            user: "username1",
            secret: "password",
            realm: "hexos",
            nonce: "1113908968",
            cnonce: "1113923311",
            uri: "tsp/hexos",
            response: "f8e42b3c50c59771853f6274fcffd1ca",
            rspauth: "70d5cabc9235568be380ba2c907381fe",
        },
        Vector {
            user: "alice",
            secret: "wonderland",
            realm: "broker.example",
            nonce: "1795214011797",
            cnonce: "1795214011",
            uri: "tsp/broker.example",
            response: "e211e062d7a2b6cc302bbf600cc547c9",
            rspauth: "ee3d2c5809bab5bd247bba01e693ebc2",
        },
        Vector {
            user: "alice",
            secret: "wonderland",
            realm: "broker.example",
            nonce: "1795214017167",
            cnonce: "1795214017",
            uri: "tsp/broker.example",
            response: "87c25c137577bc2879b80b24d7ff2825",
            rspauth: "5b7563e2e6cd3c833a7302544bf1553f",
        },
    ];

    /// A challenge of a TSP server and gogoc's answer to it, as they went over the wire.
    const CHALLENGE: &[u8] = b"cmVhbG09ImJyb2tlci5leGFtcGxlIixub25jZT0iMTc5NTIxNDAxMTc5NyIscW9wPSJhdXRoIixhbGdvcml0aG09bWQ1LXNlc3MsY2hhcnNldD11dGYtOA==";
    const ANSWER: &[u8] = b"Y2hhcnNldD11dGYtOCx1c2VybmFtZT0iYWxpY2UiLHJlYWxtPSJicm9rZXIuZXhhbXBsZSIsbm9uY2U9IjE3OTUyMTQwMTE3OTciLG5jPTAwMDAwMDAxLGNub25jZT0iMTc5NTIxNDAxMSIsZGlnZXN0LXVyaT0idHNwL2Jyb2tlci5leGFtcGxlIixyZXNwb25zZT1lMjExZTA2MmQ3YTJiNmNjMzAyYmJmNjAwY2M1NDdjOSxxb3A9YXV0aA==";
    const PROOF: &[u8] = b"cnNwYXV0aD1lZTNkMmM1ODA5YmFiNWJkMjQ3YmJhMDFlNjkzZWJjMg==";

    fn server(vector: &Vector, service: &'static str) -> Server {
        Server { realm: vector.realm.to_owned(), service, nonce: vector.nonce.to_owned() }
    }

    fn who(vector: &Vector) -> Identity {
        Identity { user: vector.user.to_owned(), secret: Zeroizing::new(vector.secret.into()) }
    }

    #[test]
    fn both_halves_agree_with_the_known_vectors() {
        for (vector, service) in VECTORS.iter().zip(["imap", "acap", "tsp", "tsp", "tsp"]) {
            let server = server(vector, service);
            let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
            let answer = client.step(&who(vector), &encode(server.challenge().as_bytes())).unwrap().unwrap();
            assert!(answer.contains(&format!("response={}", vector.response)), "{answer}");
            let claim = server.claim(&encode(answer.as_bytes())).unwrap();
            let proof = claim.prove(vector.secret.as_bytes()).unwrap();
            assert_eq!(decode(&proof).unwrap(), format!("rspauth={}", vector.rspauth));
            assert_eq!(client.step(&who(vector), &proof), Ok(None));
            assert!(client.is_convinced());
        }
    }

    #[test]
    fn lines_are_octet_by_octet_those_of_a_real_session() {
        let vector = &VECTORS[3];
        let server = server(vector, "tsp");
        assert_eq!(encode(server.challenge().as_bytes()), CHALLENGE);
        let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
        let answer = client.step(&who(vector), CHALLENGE).unwrap().unwrap();
        assert_eq!(encode(answer.as_bytes()), ANSWER);
        assert_eq!(server.claim(ANSWER).unwrap().prove(b"wonderland").unwrap(), PROOF);
    }

    #[test]
    fn old_servers_write_bare_values() {
        let vector = &VECTORS[2];
        let bare = "realm=hexos,nonce=1113908968,qop=auth,algorithm=md5-sess,charset=utf8";
        let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
        let answer = client.step(&who(vector), &encode(bare.as_bytes())).unwrap().unwrap();
        assert!(answer.starts_with("charset=utf8,username=\"username1\",realm=\"hexos\""), "{answer}");
        assert!(answer.contains(&format!("response={},", vector.response)));
    }

    /// What the server makes of gogoc's answer with `old` replaced by `new`.
    fn altered(old: &str, new: &str) -> Result<Claim, &'static str> {
        let answer = decode(ANSWER).unwrap();
        assert!(answer.contains(old));
        server(&VECTORS[3], "tsp").claim(&encode(answer.replace(old, new).as_bytes()))
    }

    #[test]
    fn what_is_wrong_with_an_answer_is_seen() {
        for (old, new, why) in [
            ("1795214011797", "1795214011798", "not ours"),
            ("realm=\"broker.example\"", "realm=\"other\"", "realm"),
            ("realm=\"broker.example\",", "", "realm"),
            ("nc=00000001", "nc=00000002", "used before"),
            ("qop=auth", "qop=auth-int", "qop"),
            ("tsp/broker", "imap/broker", "service"),
            ("tsp/broker", "tspbroker", "service"),
            ("cnonce=\"1795214011\",", "", "missing"),
            ("username=\"alice\"", "username=\"\"", "missing"),
            ("qop=auth", "nonce=x", "twice"),
            ("qop=auth", "authzid=bob", "act for"),
            ("qop=auth", "qop=\"auth", "no end"),
            ("qop=auth", "qop", "no value"),
        ] {
            let told = altered(old, new).map(|_| ()).unwrap_err();
            assert!(told.contains(why), "{new}: {told}");
        }
        let many = "a=b,".repeat(MOST_PAIRS + 1);
        assert!(server(&VECTORS[3], "tsp").claim(&encode(many.as_bytes())).is_err());
    }

    #[test]
    fn order_blanks_and_quotes_are_the_client_s_own() {
        assert!(altered("qop=auth", "qop=\"auth\" , x=y").unwrap().prove(b"wonderland").is_some());
        let case =
            altered("response=e211e062d7a2b6cc302bbf600cc547c9", "Response=E211E062D7A2B6CC302BBF600CC547C9");
        assert!(case.unwrap().prove(b"wonderland").is_some());
        assert!(altered(",qop=auth", "").unwrap().prove(b"wonderland").is_some());
        assert!(altered("e211", "e212").unwrap().prove(b"wonderland").is_none());
        // Only a name that is hashed differently is somebody else's.
        assert!(altered("username=\"alice\"", "username=\"bob\"").unwrap().prove(b"wonderland").is_none());
    }

    #[test]
    fn names_are_escaped_but_hashed_as_they_are() {
        let vector = Vector { user: "a\"b\\c", ..VECTORS[3] };
        let server = server(&vector, "tsp");
        let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
        let answer = client.step(&who(&vector), &encode(server.challenge().as_bytes())).unwrap().unwrap();
        assert!(answer.contains(r#"username="a\"b\\c""#), "{answer}");
        let claim = server.claim(&encode(answer.as_bytes())).unwrap();
        assert!(claim.user() == vector.user && claim.prove(b"wonderland").is_some());
    }

    #[test]
    fn secrets_may_be_hashed_in_latin_1() {
        let vector = &VECTORS[3];
        let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
        let latin = Identity { user: "alice".to_owned(), secret: Zeroizing::new(b"h\xf6".to_vec()) };
        let answer = client.step(&latin, CHALLENGE).unwrap().unwrap();
        let claim = server(vector, "tsp").claim(&encode(answer.as_bytes())).unwrap();
        assert!(claim.prove("hö".as_bytes()).is_some() && claim.prove(b"h\xf6").is_some());
        assert!(claim.prove("hō".as_bytes()).is_none());
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        let vector = &VECTORS[3];
        let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
        client.step(&who(vector), CHALLENGE).unwrap();
        let wrong = format!("rspauth={}", vector.response);
        assert!(client.step(&who(vector), &encode(wrong.as_bytes())).is_err());
        assert!(client.step(&who(vector), PROOF).is_err() && !client.is_convinced());
        for bad in ["realm=x,qop=auth", "nonce=x,qop=auth-conf", "nonce=x,algorithm=md5"] {
            let mut client = Client::new(vector.uri, vector.cnonce.to_owned());
            assert!(client.step(&who(vector), &encode(bad.as_bytes())).is_err(), "{bad}");
        }
    }
}
