//! Nodes as entries of a store, and zxids as versions.

use std::sync::Arc;

use zookeeper_client::Stat;

use crate::store::{Current, Entry, StoreError, Version};

pub(super) fn version(stat: &Stat) -> Version {
    Version::ordered(stat.mzxid.unsigned_abs()).with_token(stat.version.to_be_bytes().to_vec())
}

/// The zxid and the data version. A version that is none of ours belongs to no key.
pub(super) fn parts(version: &Version) -> Result<(i64, i32), StoreError> {
    let zxid = version.revision().and_then(|order| i64::try_from(order).ok());
    let data_version = version.token().try_into().ok().map(i32::from_be_bytes);
    zxid.zip(data_version).ok_or(StoreError::Conflict { current: Current::Unknown })
}

pub(super) fn entry(key: Arc<str>, value: Vec<u8>, stat: &Stat) -> Entry {
    Entry { key, value: value.into(), version: version(stat) }
}
