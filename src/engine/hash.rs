use std::hash::{Hash, Hasher};
pub(super) fn shard_of<K: Hash>(key: &K, shards: u16) -> u16 {
    let mut h = std::hash::DefaultHasher::new();
    key.hash(&mut h);
    ((u128::from(h.finish()) * u128::from(shards)) >> 64) as u16
}
