//! Nodes that come and go: a gateway that is told one node of three, and a node without a lease.

use super::api::{caller, start as start_with_api};
use super::{check, people, start, stored, write};
use crate::api::{Caller, address_in};
use crate::gateway::Backend;
use crate::process::program;
use crate::until;

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

#[test]
fn a_node_is_ready_only_while_it_holds_its_lease_and_says_why_not() {
    let test = "a_node_is_ready_only_while_it_holds_its_lease_and_says_why_not";
    let Some((mut cluster, _token)) = start_with_api(test, &[]) else { return };
    let (first, second) = (caller(&cluster, &[1]), caller(&cluster, &[2]));
    assert_eq!((first.ready().0, second.ready().0), (200, 200));
    let arguments = [vec!["backend".to_owned()], cluster.sets(2, "127.0.0.1:0")].concat();
    let (backend, line) = Backend::of_command(program(&arguments));
    let twin = Caller::new(vec![address_in(&line)]);
    // From the first answer on.
    let (status, text) = twin.ready();
    assert_eq!(status, 503, "{text}");
    until("the reason", || {
        let (status, text) = twin.ready();
        assert_eq!(status, 503, "{text}");
        text.contains("another process has the lease of this `node_number`").then_some(())
    });
    assert_eq!(second.ready().0, 200, "the first process with the number has the lease");
    cluster.nodes.remove(&2).expect("it runs").kill();
    until("the lease of the dead process", || (twin.ready().0 == 200).then_some(()));
    cluster.servers[0].kill();
    for node in [&first, &twin] {
        until("the end of the lease", || {
            let (status, text) = node.ready();
            (status == 503 && text.contains("this node has no lease: the first cell")).then_some(())
        });
    }
    drop(backend);
}
