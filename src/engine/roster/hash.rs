//! The hash that all replicas agree on, whatever their version and machine.

use std::hash::{Hash, Hasher};

/// Returns the shard of a key: the shards divide the range of the hash into equal parts.
///
/// The hash is FNV-1a of 64 bits with a finalizer, [`mix`]. FNV-1a multiplies once per byte, so the
/// last bytes of a key barely reach the high bits of the hash, and the high bits choose the range:
/// without the finalizer, 400 keys from `obj-0000` on fill 38 of 64 ranges, with it all.
///
/// | key, as a `str` | hash | of 64 shards |
/// |---|---|---|
/// | `""` | `0x1bbd_5c81_3c69_a8d7` | 6 |
/// | `"a"` | `0x3aec_69d2_86fb_d39b` | 14 |
/// | `"default/my-route"` | `0xa8b7_9aa0_a85d_eeec` | 42 |
/// | `"obj-0000"` | `0x4b06_89d5_0b2a_ee22` | 18 |
/// | `"obj-0399"` | `0xb7bd_5e79_0485_f13b` | 45 |
///
/// Equal keys of different types, such as `String` and `Arc<str>`, are in the same shard. The standard
/// library hashes a slice of integers as the bytes in memory, so a key that contains a slice of
/// integers wider than a byte is in another shard on a machine of another byte order.
pub(in crate::engine) fn shard_of<K: Hash + ?Sized>(key: &K, shards: u16) -> u16 {
    ((u128::from(stable_hash(key)) * u128::from(shards)) >> 64) as u16
}

/// Returns a hash of which all bits depend on all bits of the key.
pub(super) fn stable_hash<K: Hash + ?Sized>(key: &K) -> u64 {
    let mut hasher = Fnv1a::default();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Mixes the bits of a number one to one: the finalizer of MurmurHash3 (Appleby), `fmix64`.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

/// FNV-1a (Fowler, Noll and Vo; RFC 9923) over bytes that are the same on every machine: integers
/// are little endian, and sizes have 64 bits.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    // By default the other signed integers are written as unsigned ones of their size.
    fn write_isize(&mut self, number: isize) {
        self.write_i64(number as i64);
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;

    #[test]
    fn published_vector_holds() {
        for (key, hash, shard) in [
            ("", 0x1bbd_5c81_3c69_a8d7, 6),
            ("a", 0x3aec_69d2_86fb_d39b, 14),
            ("default/my-route", 0xa8b7_9aa0_a85d_eeec, 42),
            ("obj-0000", 0x4b06_89d5_0b2a_ee22, 18),
            ("obj-0399", 0xb7bd_5e79_0485_f13b, 45),
        ] {
            assert_eq!((stable_hash(key), shard_of(key, 64)), (hash, shard), "{key}");
        }
    }

    #[test]
    fn bytes_are_hashed_as_fnv_1a() {
        // The vectors of the FNV reference code.
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut hasher = Fnv1a::default();
            hasher.write(text.as_bytes());
            assert_eq!(hasher.0, hash, "{text}");
        }
    }

    #[test]
    fn integers_are_little_endian_and_sizes_have_64_bits() {
        let bytes = |bytes: &[u8]| {
            let mut hasher = Fnv1a::default();
            hasher.write(bytes);
            hasher.finish()
        };
        assert_eq!(stable_hash(&0x0102_u16), bytes(&[2, 1]));
        assert_eq!(stable_hash(&0x0102_0304_u32), bytes(&[4, 3, 2, 1]));
        assert_eq!(stable_hash(&-2_i32), bytes(&[254, 255, 255, 255]));
        assert_eq!(stable_hash(&5_u64), bytes(&[5, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(stable_hash(&5_usize), stable_hash(&5_u64));
        assert_eq!(stable_hash(&-5_isize), stable_hash(&-5_i64));
        assert_eq!(stable_hash(&5_u128), bytes(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn equal_strings_of_any_type_share_a_shard() {
        let key = "default/my-route";
        assert_eq!(stable_hash(key), stable_hash(&String::from(key)));
        assert_eq!(stable_hash(key), stable_hash(&Arc::<str>::from(key)));
    }

    #[test]
    fn every_shard_number_is_in_range() {
        assert_eq!(shard_of("any", 1), 0);
        for shards in [1, 2, 3, 64, 1000, u16::MAX] {
            assert!((0..2000_u32).all(|key| shard_of(&key, shards) < shards), "{shards}");
        }
    }

    #[test]
    fn keys_that_differ_at_their_end_fill_the_shards() {
        let keys = || (0..400).map(|i| format!("obj-{i:04}"));
        let mut plain = BTreeSet::new();
        let mut loads = [0; 64];
        for key in keys() {
            let mut hasher = Fnv1a::default();
            key.hash(&mut hasher);
            plain.insert(hasher.0 >> 58);
            loads[usize::from(shard_of(&key, 64))] += 1;
        }
        println!("plain FNV-1a fills {} of 64 ranges; mixed: {loads:?}", plain.len());
        assert!(plain.len() < 40, "FNV-1a alone fills {} of 64 ranges", plain.len());
        // Of 400 balls thrown at random into 64 bins, the fullest has 13 or so.
        assert!(loads.iter().all(|load| (1..=16).contains(load)), "{loads:?}");
    }
}
