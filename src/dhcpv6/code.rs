//! Codes of DHCPv6 options that are named in this program (the IANA registry of option codes).

#![expect(missing_docs, reason = "the names are those of the registry of DHCPv6 option codes")]

pub const CLIENT_ID: u16 = 1;
pub const SERVER_ID: u16 = 2;
pub const IA_NA: u16 = 3;
pub const IA_ADDR: u16 = 5;
pub const ORO: u16 = 6;
pub const PREFERENCE: u16 = 7;
pub const ELAPSED_TIME: u16 = 8;
pub const RELAY_MSG: u16 = 9;
pub const AUTH: u16 = 11;
pub const STATUS: u16 = 13;
pub const RAPID_COMMIT: u16 = 14;
pub const INTERFACE_ID: u16 = 18;
pub const RECONF_MSG: u16 = 19;
pub const RECONF_ACCEPT: u16 = 20;
pub const SIP_NAMES: u16 = 21;
pub const SIP_SERVERS: u16 = 22;
pub const DNS_SERVERS: u16 = 23;
pub const DOMAIN_LIST: u16 = 24;
pub const IA_PD: u16 = 25;
pub const IA_PREFIX: u16 = 26;
pub const NIS_SERVERS: u16 = 27;
pub const NISP_SERVERS: u16 = 28;
pub const NIS_NAME: u16 = 29;
pub const NISP_NAME: u16 = 30;
pub const SNTP_SERVERS: u16 = 31;
pub const REFRESH_TIME: u16 = 32;
pub const BCMCS_NAMES: u16 = 33;
pub const BCMCS_SERVERS: u16 = 34;
pub const REMOTE_ID: u16 = 37;
pub const SUBSCRIBER_ID: u16 = 38;
pub const ERO: u16 = 43;
pub const LQ_QUERY: u16 = 44;
pub const CLIENT_DATA: u16 = 45;
pub const CLT_TIME: u16 = 46;
pub const LQ_RELAY_DATA: u16 = 47;
pub const LQ_CLIENT_LINK: u16 = 48;
pub const NTP_SERVER: u16 = 56;
pub const ERP_LOCAL_DOMAIN_NAME: u16 = 65;
pub const RSOO: u16 = 66;
pub const PD_EXCLUDE: u16 = 67;
pub const SOL_MAX_RT: u16 = 82;
pub const INF_MAX_RT: u16 = 83;
pub const RELAY_PORT: u16 = 135;

/// Whether a relay can supply an option for a client: it says something, and is none that the protocol itself runs by.
pub fn is_suppliable(code: u16) -> bool {
    !matches!(code, 0..=20 | IA_PD | IA_PREFIX | REFRESH_TIME | ERO..=LQ_CLIENT_LINK | RSOO | PD_EXCLUDE | SOL_MAX_RT..=INF_MAX_RT)
        && code != RELAY_PORT
}
