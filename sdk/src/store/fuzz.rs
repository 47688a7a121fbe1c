//! Fuzz body of the store, for the tests and for the target `sdk_store` of `fuzz/`.
//!
//! The first byte of an input chooses: even, the rest is a file; odd, the rest is records, each behind its length in two bytes,
//! little-endian, and the body adds the title, the heads and the checksums.

use super::journal::{HEAD_BYTES, MAGIC, frame, head, read};
use super::{ConversationCursor, FileStore, Newest, Unsent};
use crate::core::Target;
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use std::path::PathBuf;
use std::{fs, process};

/// A file of these records.
fn file_of(mut input: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    while let Some((length, rest)) = input.split_first_chunk() {
        let (body, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        file.extend_from_slice(&head(body));
        file.extend_from_slice(body);
        input = rest;
    }
    file
}

/// Reads a file: the journal is refused as damaged, or what it holds can be written and is then read again as it was.
pub fn body(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let file = if kind % 2 == 0 { rest.to_vec() } else { file_of(rest) };
    let Ok((records, end)) = read(&file) else { return };
    let held =
        usize::try_from(end).ok().and_then(|end| file.get(..end)).expect("the end is inside of the file");
    assert_eq!(read(held), Ok((records.clone(), end)), "without the part that was cut off");
    let written = records.iter().fold(MAGIC.to_vec(), |file, record| [file, frame(record)].concat());
    assert!(written.len() >= MAGIC.len() + records.len() * HEAD_BYTES);
    assert_eq!(read(&written).map(|(records, _)| records).as_ref(), Ok(&records), "written anew");
    if kind % 4 == 3 {
        open(&file);
    }
}

/// Opens the file as a client does, uses the store, and opens it once more.
fn open(file: &[u8]) {
    let path: PathBuf = std::env::temp_dir().join(format!("moorline-fuzz-store-{}", process::id()));
    fs::write(&path, file).expect("a writable temporary folder");
    let mut store = FileStore::open(&path).expect("its records are valid");
    store.claim("ann", "phone").ok();
    let unsent =
        Unsent { key: MessageKey([1; 16]), target: Target::user("ben"), kind: 1, payload: Bytes::new() };
    // A file can hold the last of all numbers; there is none behind it.
    if let Ok(number) = store.put(unsent.clone()) {
        let last = store.unsent().last().map(|(number, unsent)| (number, unsent.clone()));
        assert_eq!(last, Some((number, unsent)), "the newest send is the last one");
    }
    store.place("c2c:ann:ben", ConversationCursor { start: 1, next: 2, newest: Newest::default() });
    let (sends, places, owner) = (store.unsent.clone(), store.places.clone(), store.owner.clone());
    drop(store);
    let mut again = FileStore::open(&path).expect("just written");
    assert_eq!((&again.unsent, &again.places, &again.owner), (&sends, &places, &owner));
    sends.keys().for_each(|number| again.done(*number));
    assert!(again.unsent.is_empty());
    fs::remove_file(&path).ok();
}

/// Files of an ordinary life, and their records.
#[cfg(test)]
fn seeds() -> Vec<Vec<u8>> {
    use super::journal::{Record, record};
    let key = Bytes::from_static(&[7; 16]);
    let unsent = |number, user: &str, conversation: &str| {
        record::What::Unsent(record::Unsent {
            number,
            key: key.clone(),
            user: user.into(),
            conversation: conversation.into(),
            kind: 1,
            payload: Bytes::from_static(b"hi"),
        })
    };
    let place = |next| {
        record::What::Place(record::Place {
            conversation: "c2c:ann:ben".into(),
            next,
            start: 1,
            newest: next,
            stored_ms: 1_700_000_000_000,
        })
    };
    let life = [
        record::What::Owner("ann:phone".into()),
        unsent(1, "ben", ""),
        unsent(2, "", "group:g"),
        record::What::Done(1),
        place(4),
        unsent(3, "ben", ""),
        place(5),
        record::What::Done(3),
    ];
    let records: Vec<Record> = life.into_iter().map(|what| Record { what: Some(what) }).collect();
    let mut seeds = vec![vec![0], vec![1]];
    for count in 1..=records.len() {
        let (mut file, mut parts) = (MAGIC.to_vec(), vec![3]);
        for record in &records[..count] {
            let framed = frame(record);
            file.extend_from_slice(&framed);
            let body = &framed[HEAD_BYTES..];
            parts.extend(u16::try_from(body.len()).expect("a short record").to_le_bytes());
            parts.extend_from_slice(body);
        }
        seeds.push([&[0], &file[..]].concat());
        seeds.push(parts);
    }
    seeds
}

#[test]
fn every_input_of_the_corpus_passes() {
    crate::corpus::replay("sdk_store", &seeds(), body);
}
