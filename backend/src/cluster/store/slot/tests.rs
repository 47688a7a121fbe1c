//! Tests of the memory of a slot, and what other ways to choose rows would give.

use super::*;
use moorline_proto::random::Random;
use std::collections::{BTreeSet, HashMap as Map};

fn user(number: u64) -> (UserId, Arc<str>) {
    (UserId::new(number), format!("user{number}").into())
}

/// Uses a user, who is read if unknown. True: the user was in memory.
fn take(owned: &mut OwnedSlot, number: u64) -> bool {
    let (user, uid) = user(number);
    if owned.user_mut(user).is_some() {
        return true;
    }
    owned.users.insert(user, User::new(uid.clone()));
    owned.uids.insert(uid, Some(user));
    false
}

#[test]
fn rows_that_were_not_used_lately_are_forgotten_and_names_go_with_them() {
    let mut owned = OwnedSlot::default();
    (0..64).for_each(|number| _ = take(&mut owned, number));
    assert_eq!((owned.trim(64), owned.version()), (0, (0, 0)), "there is room");
    (0..16).for_each(|number| _ = owned.absent.insert(1000 + number));
    (0..16).for_each(|number| _ = owned.uids.insert(format!("nobody{number}").into(), None));
    assert_eq!(owned.trim(64), 32, "what does not exist goes first");
    assert_eq!((owned.users.len(), owned.version()), (64, (0, 0)), "all of them are used");
    (0..8).for_each(|number| _ = take(&mut owned, number));
    (64..70).for_each(|number| _ = take(&mut owned, number));
    assert_eq!((owned.trim(64), owned.version()), (14, (0, 1)));
    assert!((0..8).chain(64..70).all(|number| owned.users.contains_key(&user(number).0)));
    assert!(owned.uids.len() == 56 && owned.users.len() == 56);
    assert!(owned.uids.values().flatten().all(|user| owned.users.contains_key(user)));
}

#[test]
fn a_slot_of_rows_that_are_all_in_use_is_still_bounded() {
    let mut owned = OwnedSlot::default();
    for number in 0..10_000 {
        take(&mut owned, number);
        owned.trim(1024);
        assert!(owned.rows() <= 1025, "{}", owned.rows());
    }
}

/// Shares of 100,000 uses that find their row in memory, where names are drawn by Zipf's law (exponent 1) from 16,384 and memory
/// has 2,048 places. Every 12,500 uses half of the names change.
#[test]
fn rows_not_used_lately_are_as_good_a_choice_as_the_longest_unused_ones() {
    const NAMES: usize = 16_384;
    const PLACES: usize = 2_048;
    const USES: u64 = 100_000;
    let mut sums = Vec::with_capacity(NAMES);
    let mut sum = 0.0;
    for rank in 1..=NAMES {
        sum += 1.0 / f64::from(u32::try_from(rank).expect("small"));
        sums.push(sum);
    }
    let mut random = Random::new(7);
    let mut draw = |at: u64| {
        let part = f64::from(u32::try_from(random.below(1 << 32)).expect("32 bits")) / 4_294_967_296.0;
        let rank = sums.partition_point(|known| *known < part * sum) as u64;
        let shift = if rank.is_multiple_of(2) { 0 } else { at / 12_500 };
        rank + shift * NAMES as u64
    };
    let uses: Vec<u64> = (0..USES).map(&mut draw).collect();
    let share = |hits: u64| hits * 1000 / USES;

    let (mut owned, mut ours) = (OwnedSlot::default(), 0);
    for (at, name) in uses.iter().enumerate() {
        ours += u64::from(take(&mut owned, *name));
        if at.is_multiple_of(64) {
            owned.trim(PLACES);
        }
    }
    // The row that was not used for the longest time, exactly.
    let (mut last, mut order, mut longest) = (Map::new(), BTreeSet::new(), 0);
    for (at, name) in uses.iter().enumerate() {
        if let Some(before) = last.insert(*name, at) {
            order.remove(&(before, *name));
            longest += 1;
        }
        order.insert((at, *name));
        if order.len() > PLACES
            && let Some((_, name)) = order.pop_first()
        {
            last.remove(&name);
        }
    }
    // The row that was used the fewest times.
    let (mut count, mut order, mut fewest) = (Map::<u64, u64>::new(), BTreeSet::new(), 0);
    for name in &uses {
        let times = count.entry(*name).or_default();
        fewest += u64::from(order.remove(&(*times, *name)));
        *times += 1;
        let times = *times;
        if order.len() >= PLACES
            && let Some((_, gone)) = order.pop_first()
        {
            count.remove(&gone);
        }
        order.insert((times, *name));
    }
    // All rows, when there are too many.
    let (mut here, mut whole) = (BTreeSet::new(), 0);
    for name in &uses {
        whole += u64::from(!here.insert(*name));
        if here.len() > PLACES {
            here.clear();
        }
    }
    let [ours, longest, fewest, whole] = [ours, longest, fewest, whole].map(share);
    println!(
        "found in memory, of a thousand uses: not used lately {ours}, longest unused {longest}, fewest uses {fewest}, all at once {whole}"
    );
    assert!(ours + 20 >= longest && ours > whole, "{ours}, {longest}, {whole}");
}
