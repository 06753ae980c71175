//! Images taken apart and put together again with sound checksums: how tests write what no stack would.

use std::net::IpAddr;

use hibernet_conntrack::{Tuple, proto};
use hibernet_snapshot::image::{Image, ImageWriter, Limits, Section, SectionId};

/// What a section of an image holds.
pub fn body(image: &[u8], section: &[u8; 4]) -> Vec<u8> {
    let image = Image::parse(image, &Limits::default()).expect("a sound image");
    image.section(SectionId::new(*section)).expect("the section is there").body.to_vec()
}

/// The image with one section changed.
pub fn with_body(image: &[u8], section: &[u8; 4], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    reframed(image, |id, body| {
        if id == *section {
            change(body);
        }
    })
}

/// The image with every section as `change` leaves it.
pub fn reframed(image: &[u8], change: impl Fn([u8; 4], &mut Vec<u8>)) -> Vec<u8> {
    let image = Image::parse(image, &Limits::default()).expect("a sound image");
    let mut writer = ImageWriter::new(image.header());
    for section in image.sections() {
        let mut body = section.body.to_vec();
        change(section.id.0.to_le_bytes(), &mut body);
        writer.copy(&Section { body: &body, ..section.clone() });
    }
    writer.finish()
}

/// One flow as the section `CONN` holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The record.
    pub bytes: Vec<u8>,
    /// The original direction.
    pub orig: Tuple,
    /// The reply direction.
    pub reply: Tuple,
    /// Where TCP's state begins, in records of TCP flows.
    pub tcp_at: Option<usize>,
}

impl Record {
    /// The flow at the front of a run of records, by the layout that SNAPSHOT-FORMAT.md lists.
    fn read(run: &[u8]) -> Self {
        let [kind, protocol, ..] = *run else { panic!("no record in {} bytes", run.len()) };
        let v6 = kind & 1 != 0;
        let ends = if v6 { 36 } else { 12 };
        let mut at = 8;
        let orig = read_tuple(&run[at..at + ends], v6, protocol);
        at += ends;
        let mut reply = orig.inverted().expect("a flow has an answer");
        if kind & 2 != 0 {
            reply = read_tuple(&run[at..at + ends], v6, protocol);
            at += ends;
        }
        at += if kind & 4 != 0 { 2 } else { 0 };
        at += if kind & 8 != 0 { 4 } else { 0 };
        at += 22;
        let tcp_at = (protocol == proto::TCP).then_some(at);
        at += match protocol {
            proto::TCP => 54,
            proto::UDP => 4,
            proto::SCTP => 11,
            _ => 0,
        };
        Self { bytes: run[..at].to_vec(), orig, reply, tcp_at }
    }
}

/// The image with its flows as `change` leaves them.
pub fn with_records(image: &[u8], change: impl Fn(&mut Vec<Record>)) -> Vec<u8> {
    with_body(image, b"CONN", |body| {
        let at = records_at(body);
        let mut records = Vec::new();
        let mut run = &body[at..];
        while !run.is_empty() {
            let record = Record::read(run);
            run = &run[record.bytes.len()..];
            records.push(record);
        }
        change(&mut records);
        body.truncate(at);
        records.iter().for_each(|record| body.extend(&record.bytes));
        let length = (body.len() - at) as u64;
        body[at - 8..at].copy_from_slice(&length.to_le_bytes());
        body[at - 12..at - 8].copy_from_slice(&(records.len() as u32).to_le_bytes());
    })
}

/// Where the records begin in the section `CONN`: they are the last thing in it. Before them stand their capacity, phase and
/// count, four bytes each, and their length.
pub fn records_at(body: &[u8]) -> usize {
    let length = |at: usize| u64::from_le_bytes(*body[at - 8..at].first_chunk().expect("eight bytes"));
    (12..=body.len()).find(|at| length(*at) == (body.len() - at) as u64).expect("the run has its length")
}

fn read_tuple(bytes: &[u8], v6: bool, proto: u8) -> Tuple {
    let (addr, ports) = if v6 { (16, 32) } else { (4, 8) };
    let address = |at: usize| -> IpAddr {
        match v6 {
            true => IpAddr::from(*bytes[at..].first_chunk::<16>().expect("an address")),
            false => IpAddr::from(*bytes[at..].first_chunk::<4>().expect("an address")),
        }
    };
    let port = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Tuple { src: address(0), dst: address(addr), proto, sport: port(ports), dport: port(ports + 2) }
}
