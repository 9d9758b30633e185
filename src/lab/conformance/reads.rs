//! Cases about reads: they return exactly the last write.

use bytes::Bytes;

use super::{Bench, Harness, Suite};
use crate::store::{Expected, Store, StoreError, Version};

pub(super) async fn run<H: Harness>(suite: &mut Suite<'_, H>) {
    suite.case("a key that was never written does not exist", missing).await;
    suite.case("a read returns the value, its key and its version", read_back).await;
    suite.case("a read through another handle sees every acknowledged write", read_your_writes).await;
    suite.case("values preserve every byte", every_byte).await;
    suite.case("an empty value differs from an absent key", empty_value).await;
    suite.case("the largest value is stored whole", largest_value).await;
    let name = "a value over the limit is too large and changes nothing";
    match suite.harness.too_large_values().is_empty() {
        true => suite.not_applicable(name, "the store declares no limit"),
        false => suite.case(name, too_large_value).await,
    }
    suite.case("unusual keys work like any other key", unusual_keys).await;
    suite.case("the empty key is invalid", empty_key).await;
}

async fn missing<H: Harness>(bench: &Bench<'_, H>) {
    bench.assert_absent(&bench.key("missing")).await;
}

async fn read_back<H: Harness>(bench: &Bench<'_, H>) {
    let written = bench.create(&bench.key("key"), "value").await;
    bench.assert_current(&written).await;
}

async fn read_your_writes<H: Harness>(bench: &Bench<'_, H>) {
    let mut last = bench.create(&bench.key("key"), "0").await;
    for i in 1..50 {
        last = bench.update(&last, i.to_string()).await;
        bench.assert_current(&last).await;
    }
    bench.delete(&last).await;
    bench.assert_absent(&last.key).await;
}

async fn every_byte<H: Harness>(bench: &Bench<'_, H>) {
    let all: Bytes = (0..=u8::MAX).collect();
    let all = bench.create(&bench.key("all"), all).await;
    bench.assert_current(&all).await;
    for byte in [0, b'\n', 0x80, 0xff] {
        let written = bench.create(&bench.key(byte), vec![byte]).await;
        bench.assert_current(&written).await;
    }
}

async fn empty_value<H: Harness>(bench: &Bench<'_, H>) {
    let empty = bench.create(&bench.key("key"), "").await;
    bench.assert_current(&empty).await;
    let again = bench.store.put(&empty.key, Bytes::new(), Expected::Absent, None).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}: the key exists");
    let full = bench.update(&empty, "full").await;
    let empty = bench.update(&full, "").await;
    bench.assert_current(&empty).await;
}

async fn largest_value<H: Harness>(bench: &Bench<'_, H>) {
    // Neighbouring bytes differ, so that the comparison detects a missing or repeated piece.
    let value: Bytes = (0..bench.harness.largest_value()).map(|i| (i % 251) as u8).collect();
    let written = bench.create(&bench.key("key"), value).await;
    bench.assert_current(&written).await;
    assert_eq!(bench.watch().listing().await, [written], "a watch lists the value, too");
}

async fn too_large_value<H: Harness>(bench: &Bench<'_, H>) {
    let written = bench.create(&bench.key("key"), "small").await;
    for size in bench.harness.too_large_values() {
        let value = Bytes::from(vec![1; size]);
        let update = bench
            .store
            .put(&written.key, value.clone(), Expected::Version(written.version.clone()), None)
            .await;
        assert!(matches!(update, Err(StoreError::TooLarge { .. })), "{size} bytes: {update:?}");
        let other = bench.key("other");
        let create = bench.store.put(&other, value, Expected::Absent, None).await;
        assert!(matches!(create, Err(StoreError::TooLarge { .. })), "{size} bytes: {create:?}");
        bench.assert_current(&written).await;
        bench.assert_absent(&other).await;
    }
    bench.update(&written, "still small").await;
}

async fn unusual_keys<H: Harness>(bench: &Bench<'_, H>) {
    let long = "k".repeat(1000);
    let names = [
        " ",
        "with space",
        "/",
        "//",
        "a//b",
        "/a/",
        ".",
        "..",
        "../..",
        "ünï©ødé",
        "鍵",
        "🔑",
        "line\nbreak",
        "tab\t",
        "nul\0",
        "*",
        "?",
        "[a-z]",
        "%2F",
        "%",
        "\\",
        "\"'`",
        "{}",
        "$1",
        "#",
        ":",
        "\u{7f}",
        "\u{10ffff}",
        &long,
    ];
    let mut watch = bench.watch();
    watch.listing().await;
    let mut written = Vec::new();
    for name in names {
        let key = bench.key(name);
        if bench.harness.takes_key(&key) {
            written.push(bench.create(&key, name.to_owned()).await);
        } else {
            let refused = bench.store.put(&key, Bytes::new(), Expected::Absent, None).await;
            assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{key:?}: {refused:?}");
        }
    }
    for write in &written {
        bench.assert_current(write).await;
    }
    watch.follow(&[], &written, bench.harness.coalesces()).await;
    let mut listed = bench.watch().listing().await;
    listed.sort_by(|a, b| a.key.cmp(&b.key));
    written.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(listed, written);
    for write in &written {
        bench.delete(write).await;
        bench.assert_absent(&write.key).await;
    }
}

async fn empty_key<H: Harness>(bench: &Bench<'_, H>) {
    let get = bench.store.get("").await;
    assert!(matches!(get, Err(StoreError::Invalid { .. })), "get: {get:?}");
    let put = bench.store.put("", Bytes::new(), Expected::Absent, None).await;
    assert!(matches!(put, Err(StoreError::Invalid { .. })), "put: {put:?}");
    let delete = bench.store.delete("", &Version::ordered(1), None).await;
    assert!(matches!(delete, Err(StoreError::Invalid { .. })), "delete: {delete:?}");
}
