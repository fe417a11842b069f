//! Bodies about text: configuration, the operator's socket, the old programs' files.

use sixway::admin::{Request, Response};
use sixway::compat::popauth::PopAuth;
use sixway::compat::routetable::RouteTable;
use sixway::config::Config;
use sixway_dataplane::update::Ipv6Prefix;

/// A configuration is right, or every mistake is told in words.
pub(crate) fn config(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    if let Err(mistakes) = Config::parse("fuzz.toml", &text) {
        assert!(!mistakes.to_string().is_empty());
    }
}

/// A question to the admin socket, and an answer as commands read it: what is understood is understood again.
pub(crate) fn admin(octets: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(octets) {
        let said = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&said).unwrap(), request);
    }
    if let Ok(response) = serde_json::from_slice::<Response>(octets) {
        let said = serde_json::to_vec(&response).unwrap();
        assert_eq!(serde_json::from_slice::<Response>(&said).unwrap(), response);
    }
}

/// qpopper's dump: what is read is read again when it is written.
pub(crate) fn popauth(octets: &[u8]) {
    let Ok(read) = PopAuth::parse(octets) else { return };
    let again = PopAuth::parse(read.emit().as_bytes()).unwrap();
    assert!(read.iter().eq(again.iter()));
}

/// The DTCP route table: each user that is named is found.
pub(crate) fn routetable(octets: &[u8]) {
    match RouteTable::parse(&String::from_utf8_lossy(octets)) {
        Ok(table) => assert!(table.iter().all(|(user, entry)| table.entry(user) == Some(entry))),
        Err(mistakes) => assert!(!mistakes.is_empty()),
    }
}

/// A prefix is read as it is printed.
pub(crate) fn prefix(octets: &[u8]) {
    let Ok(prefix) = String::from_utf8_lossy(octets).parse::<Ipv6Prefix>() else { return };
    assert_eq!(prefix.to_string().parse(), Ok(prefix));
    assert!(prefix.contains(prefix.addr()) && prefix.covers(prefix));
}
