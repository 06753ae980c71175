//! What `#[derive(Snapshot)]` makes of each shape of type.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hibernet_snapshot::{Entropy, GenerationId, Invalid, Redraw, Secret, Snapshot, codec, image::Limits};
use proptest::prelude::*;

/// Encodes, decodes and restores what needs nothing from the embedder.
fn again<T: Snapshot<Supplied = ()>>(value: &T) -> Result<T, Invalid> {
    T::restore(reread::<T>(value.save()), (), &mut Entropy::from_test_seed(9))
}

fn reread<T: Snapshot>(saved: T::Saved) -> T::Saved {
    let reread: T::Saved = codec::decode(&codec::encode(&saved).unwrap(), &Limits::default()).unwrap();
    assert_eq!(reread, saved);
    reread
}

fn check_identity<T: Snapshot<Supplied = ()> + PartialEq + Debug>(value: T) {
    assert_eq!(again(&value).unwrap(), value);
}

#[derive(Clone, Debug, PartialEq, Snapshot)]
struct Flow {
    #[snapshot(saved)]
    port: u16,
    #[snapshot(saved)]
    peer: Option<IpAddr>,
    #[snapshot(saved)]
    protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Snapshot)]
enum Protocol {
    Other,
    Icmp(#[snapshot(saved)] u8, #[snapshot(saved)] u8),
    Tcp {
        #[snapshot(saved)]
        window: u32,
    },
}

#[derive(Debug, PartialEq, Snapshot)]
struct Unit;

#[derive(Debug, PartialEq, Snapshot)]
struct Pair(#[snapshot(saved)] u16, #[snapshot(rebuilt = doubled)] u32, #[snapshot(saved)] Vec<Flow>);

fn doubled(parts: &PairParts<'_>) -> Result<u32, Invalid> {
    assert!(parts.1.len() < 10, "the second part is the second field that has one");
    Ok(u32::from(*parts.0) * 2)
}

fn flow(port: u16) -> Flow {
    Flow { port, peer: Some(Ipv4Addr::LOCALHOST.into()), protocol: Protocol::Tcp { window: 7 } }
}

#[test]
fn structs_tuple_structs_unit_structs_and_enums_come_back() {
    check_identity(Unit);
    check_identity(flow(80));
    check_identity(Flow { peer: None, protocol: Protocol::Other, ..flow(1) });
    check_identity(Flow { protocol: Protocol::Icmp(3, 4), ..flow(1) });
    check_identity(Pair(4, 8, vec![flow(1), flow(2)]));
}

#[test]
fn a_rebuilt_field_is_computed_and_not_read() {
    assert_eq!(again(&Pair(4, 99, vec![])).unwrap(), Pair(4, 8, vec![]));
}

#[test]
fn the_saved_form_can_be_printed_compared_and_cloned() {
    let saved = flow(80).save();
    assert_eq!(saved.clone(), saved);
    assert_ne!(flow(81).save(), saved);
    assert_eq!(format!("{saved:?}"), "FlowSaved { port: 80, peer: Some(127.0.0.1), protocol: Tcp { window: 7 } }");
    assert_eq!(format!("{:?}", Pair(1, 2, vec![]).save()), "PairSaved(1, [])");
    assert_eq!(format!("{:?}", Unit.save()), "UnitSaved");
}

struct Key(Secret<[u8; 16]>);

impl Redraw for Key {
    fn redraw(entropy: &mut Entropy) -> Self {
        Self(entropy.secret())
    }
}

#[derive(Snapshot)]
struct Table {
    #[snapshot(saved)]
    flows: Vec<Flow>,
    #[snapshot(redrawn)]
    key: Key,
    #[snapshot(rebuilt = file)]
    index: BTreeMap<u8, u16>,
}

fn file(parts: &TableParts<'_>) -> Result<BTreeMap<u8, u16>, Invalid> {
    let TableParts { flows, key } = parts;
    let mut index = BTreeMap::new();
    for (place, flow) in flows.iter().enumerate() {
        if flow.port == 0 {
            return Err(Invalid::new("port", "0", "1 to 65535").at(place));
        }
        index.insert(key.0.expose()[0] ^ flow.port.to_le_bytes()[0], flow.port);
    }
    Ok(index)
}

fn table(flows: Vec<Flow>) -> Table {
    Table { flows, key: Key(Secret::new([0; 16])), index: BTreeMap::new() }
}

#[test]
fn two_restores_share_no_secret_and_each_index_fits_its_own_key() {
    let saved = table(vec![flow(80), flow(443)]).save();
    let mut entropy = Entropy::from_test_seed(1);
    let one = Table::restore(saved.clone(), (), &mut entropy).unwrap();
    let two = Table::restore(saved, (), &mut entropy).unwrap();
    assert_ne!(one.key.0.expose(), two.key.0.expose());
    for restored in [one, two] {
        let slot = restored.key.0.expose()[0] ^ 80;
        assert_eq!(restored.index.get(&slot), Some(&80));
        assert_eq!(restored.flows.len(), 2);
    }
}

#[test]
fn what_is_saved_does_not_depend_on_the_secret() {
    let saved = table(vec![flow(80)]).save();
    let restored = Table::restore(saved.clone(), (), &mut Entropy::from_test_seed(1)).unwrap();
    assert_eq!(codec::encode(&restored.save()), codec::encode(&saved));
}

#[test]
fn a_refusal_while_rebuilding_names_the_field() {
    let refusal = again(&table(vec![flow(1), flow(0)])).err().unwrap();
    assert_eq!(refusal.to_string(), "index[1].port: found 0, expected 1 to 65535");
}

#[derive(Debug, PartialEq, Snapshot)]
#[snapshot(validate = in_order)]
struct Range {
    #[snapshot(saved)]
    first: u16,
    #[snapshot(saved)]
    last: u16,
}

fn in_order(range: &Range) -> Result<(), Invalid> {
    let Range { first, last } = range;
    if first > last {
        return Err(Invalid::new("first", first.to_string(), format!("at most {last}")));
    }
    Ok(())
}

#[derive(Debug, PartialEq, Snapshot)]
struct Ranges {
    #[snapshot(saved)]
    by_zone: BTreeMap<u16, (Range, bool)>,
}

#[test]
fn validation_has_the_last_word_and_says_where() {
    check_identity(Range { first: 1, last: 2 });
    let bad = || (Range { first: 2, last: 1 }, true);
    let refusal = again(&Ranges { by_zone: BTreeMap::from([(7, bad())]) }).unwrap_err();
    assert_eq!(refusal.to_string(), "by_zone[0].1.0.first: found 2, expected at most 1");
}

trait Wake {
    fn wake(&self) -> u32;
}

struct Waker(u32);

impl Wake for Waker {
    fn wake(&self) -> u32 {
        self.0
    }
}

#[derive(Snapshot)]
struct Link {
    #[snapshot(saved)]
    mtu: u32,
    #[snapshot(supplied)]
    waker: Box<dyn Wake>,
}

#[derive(Snapshot)]
struct Stack {
    #[snapshot(saved, nested)]
    link: Link,
    #[snapshot(saved)]
    flows: Vec<Flow>,
    #[snapshot(supplied)]
    name: &'static str,
}

#[test]
fn supplied_parts_come_from_the_embedder_at_every_depth() {
    let stack = Stack { link: Link { mtu: 1500, waker: Box::new(Waker(1)) }, flows: vec![flow(1)], name: "old" };
    let supplied = StackSupplied { link: LinkSupplied { waker: Box::new(Waker(2)) }, name: "new" };
    let restored = Stack::restore(stack.save(), supplied, &mut Entropy::from_test_seed(1)).unwrap();
    assert_eq!((restored.link.mtu, restored.link.waker.wake(), restored.name), (1500, 2, "new"));
    assert_eq!(restored.flows, stack.flows);
}

#[derive(Snapshot)]
enum Port {
    Closed,
    Wired(#[snapshot(saved)] u16, #[snapshot(supplied)] Waker, #[snapshot(rebuilt = cost)] u16),
    Keyed {
        #[snapshot(redrawn)]
        key: Secret<[u8; 4]>,
        #[snapshot(rebuilt = tag)]
        tag: u8,
    },
}

fn cost(parts: &PortWiredParts<'_>) -> Result<u16, Invalid> {
    Ok(parts.0 + 1)
}

fn tag(parts: &PortKeyedParts<'_>) -> Result<u8, Invalid> {
    Ok(parts.key.expose()[0])
}

#[test]
fn the_fields_of_a_variant_are_classified_like_those_of_a_struct() {
    let mut entropy = Entropy::from_test_seed(1);
    let wired = Port::Wired(7, Waker(1), 0).save();
    match Port::restore(wired.clone(), PortSupplied::Wired(Waker(2)), &mut entropy).unwrap() {
        Port::Wired(port, Waker(waker), cost) => assert_eq!((port, waker, cost), (7, 2, 8)),
        Port::Closed | Port::Keyed { .. } => panic!("another variant came back"),
    }
    let keyed = Port::Keyed { key: Secret::new([0; 4]), tag: 0 }.save();
    match Port::restore(keyed, PortSupplied::Keyed {}, &mut entropy).unwrap() {
        Port::Keyed { key, tag } => assert_eq!(key.expose()[0], tag),
        Port::Closed | Port::Wired(..) => panic!("another variant came back"),
    }
    assert!(matches!(Port::restore(Port::Closed.save(), PortSupplied::Closed, &mut entropy), Ok(Port::Closed)));

    let refusal = Port::restore(wired, PortSupplied::Closed, &mut entropy).err().unwrap();
    assert_eq!(refusal.to_string(), "found what `Port::Closed` wants supplied, expected what `Port::Wired` wants");
}

#[derive(Debug, PartialEq, Snapshot)]
struct Slab<T, const N: usize, M: Default = ()>
where
    T: Clone,
{
    #[snapshot(saved)]
    slots: Vec<Option<T>>,
    #[snapshot(saved)]
    heads: [u32; N],
    #[snapshot(rebuilt = meter)]
    meter: M,
    #[snapshot(rebuilt = count)]
    count: usize,
}

fn meter<T: Clone, const N: usize, M: Default>(_: &SlabParts<'_, T, N>) -> Result<M, Invalid> {
    Ok(M::default())
}

fn count<T: Clone, const N: usize>(parts: &SlabParts<'_, T, N>) -> Result<usize, Invalid> {
    Ok(parts.slots.iter().flatten().count())
}

#[derive(Snapshot)]
enum Either<L, R: Redraw, S> {
    Left(#[snapshot(saved, nested)] L),
    Right(#[snapshot(redrawn)] R),
    Other {
        #[snapshot(supplied)]
        handle: S,
    },
}

#[test]
fn generic_types_ask_of_their_parameters_what_the_classes_need() {
    let slab: Slab<Flow, 3, u8> = Slab { slots: vec![None, Some(flow(1))], heads: [1, 2, 3], meter: 0, count: 1 };
    check_identity(slab);

    // `Waker` has no saved form, and does not need one where it is supplied.
    type Link3 = Either<Link, Secret<[u8; 4]>, Waker>;
    let mut entropy = Entropy::from_test_seed(1);
    let left: Link3 = Either::Left(Link { mtu: 9, waker: Box::new(Waker(1)) });
    let supplied = EitherSupplied::Left(LinkSupplied { waker: Box::new(Waker(5)) });
    let Ok(Either::Left(link)) = Link3::restore(left.save(), supplied, &mut entropy) else { panic!("left comes back") };
    assert_eq!((link.mtu, link.waker.wake()), (9, 5));
    let other: Link3 = Either::Other { handle: Waker(1) };
    let supplied = EitherSupplied::Other { handle: Waker(6) };
    assert!(matches!(Link3::restore(other.save(), supplied, &mut entropy), Ok(Either::Other { handle: Waker(6) })));
    let right: Link3 = Either::Right(entropy.secret());
    assert!(matches!(Link3::restore(right.save(), EitherSupplied::Right(), &mut entropy), Ok(Either::Right(_))));
}

/// A public type may keep private ones in its fields.
mod public {
    use super::{Invalid, Snapshot};

    #[derive(Debug, PartialEq, Snapshot)]
    pub(crate) struct Open(#[snapshot(saved)] Closed, #[snapshot(rebuilt = twice)] u16);

    #[derive(Debug, PartialEq, Snapshot)]
    struct Closed {
        #[snapshot(saved)]
        r#type: u16,
    }

    fn twice(parts: &OpenParts<'_>) -> Result<u16, Invalid> {
        Ok(parts.0.r#type * 2)
    }

    impl Open {
        pub(crate) fn new(r#type: u16) -> Self {
            Self(Closed { r#type }, r#type * 2)
        }
    }
}

#[test]
fn a_public_type_keeps_private_types_and_raw_names_in_its_fields() {
    check_identity(public::Open::new(4));
    insta::assert_snapshot!(public::Open::SCHEMA.text(), @r"
    struct Open {
      saved 0: struct Closed {
        saved type: u16
      }
      rebuilt 1
    }
    ");
}

#[test]
fn a_list_of_another_length_is_no_array() {
    let refusal = <[u16; 3]>::restore(vec![1, 2], (), &mut Entropy::from_test_seed(1)).unwrap_err();
    assert_eq!(refusal.to_string(), "found 2 elements, expected 3");
}

#[test]
fn a_map_out_of_order_or_with_a_key_twice_is_refused() {
    let restore = |entries| BTreeMap::<u8, u8>::restore(entries, (), &mut Entropy::from_test_seed(1));
    assert!(restore(vec![(1, 1), (2, 1)]).is_ok());
    assert_eq!(restore(vec![(1, 1), (1, 2)]).unwrap_err().field, "[1]");
    assert_eq!(restore(vec![(2, 1), (1, 1)]).unwrap_err().field, "[1]");
}

#[test]
fn the_schema_names_every_field_with_its_type_and_class() {
    insta::assert_snapshot!(Stack::SCHEMA.text());
    insta::assert_snapshot!(Table::SCHEMA.text());
    insta::assert_snapshot!(<Slab<(u8, Protocol), 3>>::SCHEMA.text());
    insta::assert_snapshot!(Port::SCHEMA.text());
}

#[test]
fn the_schema_of_a_type_is_a_constant_that_tells_it_from_others() {
    const TABLE: u64 = Table::SCHEMA.fingerprint();
    let fingerprints =
        [TABLE, Flow::SCHEMA.fingerprint(), <Vec<Flow>>::SCHEMA.fingerprint(), <[Flow; 1]>::SCHEMA.fingerprint()];
    for (index, fingerprint) in fingerprints.iter().enumerate() {
        assert!(!fingerprints[..index].contains(fingerprint));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn leaves_and_containers_come_back(
        numbers in any::<(u8, u16, u32, u64)>(),
        wide in any::<(u128, i128, usize, isize)>(),
        signed in any::<(i8, i16, i32, i64)>(),
        plain in any::<(bool, char, String)>(),
        addresses in any::<(IpAddr, Ipv4Addr, Ipv6Addr)>(),
        duration in any::<Duration>(),
        id in any::<[u8; 16]>(),
        queue in any::<VecDeque<u16>>(),
        map in any::<BTreeMap<u16, Option<bool>>>(),
        array in any::<[u8; 33]>().prop_map(Box::new),
    ) {
        check_identity((numbers, wide, signed, plain));
        check_identity((addresses, duration, GenerationId(id)));
        check_identity((queue, map, array));
    }

    #[test]
    fn derived_types_come_back(ports in any::<Vec<(u16, Option<u32>)>>()) {
        let flows = ports.into_iter().map(|(port, window)| Flow {
            protocol: window.map_or(Protocol::Other, |window| Protocol::Tcp { window }),
            ..flow(port)
        });
        check_identity(flows.collect::<Vec<_>>());
    }
}

#[test]
fn a_duration_has_one_spelling() {
    let read = |bytes: &[u8]| {
        let saved = codec::decode::<<Duration as Snapshot>::Saved>(bytes, &Limits::default()).unwrap();
        Duration::restore(saved, (), &mut Entropy::from_test_seed(1))
    };
    let written = codec::encode(&Duration::new(3, 999_999_999).save()).unwrap();
    assert_eq!(written, codec::encode(&Duration::new(3, 999_999_999)).unwrap());
    assert_eq!(read(&written), Ok(Duration::new(3, 999_999_999)));
    let another = [2_u64.to_le_bytes().as_slice(), &1_000_000_000_u32.to_le_bytes()].concat();
    assert_eq!(read(&another).unwrap_err().to_string(), "nanos: found 1000000000, expected less than a second");
}
