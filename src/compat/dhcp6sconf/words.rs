//! The words of `dhcp6s.conf`: options with their codes, keywords of the old program, and our own.

/// Options with addresses, and their codes (the IANA registry of DHCPv6 options).
pub(super) const ADDRESSES: &[(&str, u16)] = &[
    ("domain-name-servers", 23),
    ("ntp-servers", 31),
    ("sip-server-address", 22),
    ("nis-server-address", 27),
    ("nisp-server-address", 28),
    ("bcmcs-server-address", 34),
];

/// Options with a name. The second spelling of NIS and NIS+ is in old files.
pub(super) const DOMAINS: &[(&str, u16)] = &[
    ("domain-name", 24),
    ("sip-server-domain-name", 21),
    ("nis-domain-name", 29),
    ("nis-server-domain-name", 29),
    ("nisp-domain-name", 30),
    ("nisp-server-domain-name", 30),
    ("bcmcs-server-domain-name", 33),
];

/// Words that cannot stand where a pool or a key is meant, because the old program takes them as keywords.
pub(super) const KEYWORDS: &[&str] = &[
    "interface",
    "host",
    "pool",
    "keyinfo",
    "authentication",
    "include",
    "profile",
    "id-assoc",
    "option",
    "allow",
    "send",
    "request",
    "information-only",
    "script",
    "preference",
    "address-pool",
    "rapid-commit",
    "duid",
    "prefix",
    "address",
    "delayedkey",
    "range",
    "to",
    "realm",
    "keyid",
    "secret",
    "expire",
    "protocol",
    "algorithm",
    "rdm",
    "key",
    "delayed",
    "reconfig",
    "monocounter",
    "hmac-md5",
    "HMAC-MD5",
    "hmacmd5",
    "HMACMD5",
    "infinity",
    "refreshtime",
    "ia-pd",
    "ia-na",
    "prefix-interface",
    "sla-id",
    "sla-len",
    "ifid",
    "ifid-random",
];

/// Our own keywords.
pub(super) const PREFIX_POOL: &str = "delegated-prefix-pool";
pub(super) const RELAY_ID: &str = "relay-interface-id";
pub(super) const EXCLUDED_SUBNET: &str = "excluded-subnet";
pub(super) const LEASE_QUERY: &str = "lease-query";

pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word) || ADDRESSES.iter().chain(DOMAINS).any(|(name, _)| *name == word)
}

pub(super) fn options() -> String {
    let names: Vec<&str> = ADDRESSES.iter().chain(DOMAINS).map(|(name, _)| *name).collect();
    format!("an option ({}, refreshtime)", names.join(", "))
}
