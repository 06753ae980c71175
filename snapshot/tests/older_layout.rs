//! A type whose layout has changed reads the images of its earlier layouts.

use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Decoded, Entropy, Invalid, Older, Secret, Snapshot, to_image};

/// The layout that programs up to 1 wrote: one port, and no name.
mod version_1 {
    use hibernet_snapshot::{Secret, Snapshot};

    #[derive(Debug, Snapshot)]
    pub(crate) struct Table {
        #[snapshot(saved)]
        pub(crate) port: u16,
        #[snapshot(redrawn)]
        pub(crate) key: Secret<[u8; 16]>,
    }
}

/// The present one.
#[derive(Debug, Snapshot)]
#[snapshot(validate = has_a_real_port)]
struct Table {
    #[snapshot(saved)]
    name: String,
    #[snapshot(saved)]
    ports: Vec<u16>,
    #[snapshot(redrawn)]
    key: Secret<[u8; 16]>,
}

fn has_a_real_port(table: &Table) -> Result<(), Invalid> {
    match table.ports.as_slice() {
        [] | [0, ..] => Err(Invalid::new("ports", format!("{:?}", table.ports), "ports from 1 on")),
        _ => Ok(()),
    }
}

fn older() -> [Older<Table>; 1] {
    [Older::new::<version_1::Table>(|old| TableSaved { name: "unnamed".to_owned(), ports: vec![old.port] })]
}

fn image_of_version_1(port: u16) -> Vec<u8> {
    let table = version_1::Table { port, key: Secret::new([1; 16]) };
    let image = to_image(&table, "table 1.0", Entropy::from_test_seed(1).public_id()).unwrap();
    assert!(!image.windows(16).any(|window| window == table.key.expose()), "it was never written either");
    image
}

fn restored(image: &[u8]) -> Result<Table, String> {
    let decoded = Decoded::open_or_older(image, &Limits::default(), &older()).map_err(|error| error.to_string())?;
    decoded.restore((), &mut Entropy::from_test_seed(2)).map_err(|error| error.to_string())
}

#[test]
fn an_image_of_the_older_layout_becomes_a_value_of_the_present_one() {
    let table = restored(&image_of_version_1(443)).unwrap();
    assert_eq!((table.name.as_str(), table.ports.as_slice()), ("unnamed", &[443][..]));
    assert_ne!(table.key.expose(), &[1; 16], "secrets are drawn afresh, from whichever layout");
}

#[test]
fn an_image_of_the_present_layout_is_read_as_ever() {
    let table = Table { name: "web".to_owned(), ports: vec![80, 443], key: Secret::new([1; 16]) };
    let image = to_image(&table, "table 2.0", Entropy::from_test_seed(1).public_id()).unwrap();
    assert_eq!(restored(&image).unwrap().ports, [80, 443]);
}

#[test]
fn what_the_present_rules_forbid_is_refused_in_the_older_layout_too() {
    let error = restored(&image_of_version_1(0)).unwrap_err();
    assert!(error.contains("expected ports from 1 on"), "{error}");
}

#[test]
fn a_layout_that_was_never_read_is_refused_with_its_writer() {
    let image = to_image(&7_u32, "other 3.2.1", Entropy::from_test_seed(1).public_id()).unwrap();
    let error = restored(&image).unwrap_err();
    assert!(error.contains("other 3.2.1"), "{error}");
}

#[test]
fn a_changed_byte_of_an_older_image_is_refused() {
    let image = image_of_version_1(443);
    for at in 0..image.len() {
        let mut changed = image.clone();
        changed[at] ^= 1;
        assert!(restored(&changed).is_err(), "byte {at}");
    }
}
