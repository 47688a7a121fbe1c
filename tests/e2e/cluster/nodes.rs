//! A gateway that is told one node of three: it learns the others from the nodes themselves.

use super::{check, people, start, stored, write};

#[test]
fn one_node_in_the_settings_is_enough_and_may_die_and_come_back_elsewhere() {
    let test = "one_node_in_the_settings_is_enough_and_may_die_and_come_back_elsewhere";
    let Some(mut cluster) = start(test, 1, 0) else { return };
    cluster.start_gateway(&[1], &["gateway.id=g0".to_owned()]);
    // The slots of these people are of all three nodes.
    let mut people = people(&cluster);
    let mut all = stored(write(&people, 0));
    check(&mut people, &all);
    let under_way = write(&people, 1);
    cluster.nodes.remove(&1).expect("it runs").kill();
    all.extend(stored(under_way));
    cluster.until_owned(&[2, 3]);
    all.extend(stored(write(&people, 2)));
    check(&mut people, &all);
    // The settings name the dead node alone; the process that takes over has the others from the one before.
    cluster.gateways[0].restart();
    all.extend(stored(write(&people, 3)));
    check(&mut people, &all);
    // Node 1 lives at an address that nobody was told, and then alone.
    cluster.start_node(1, "127.0.0.1:0");
    cluster.until_owned(&[1, 2, 3]);
    all.extend(stored(write(&people, 4)));
    for node in [2, 3] {
        cluster.nodes.remove(&node).expect("it runs").kill();
    }
    all.extend(stored(write(&people, 5)));
    check(&mut people, &all);
}
